"""F01 for captures: what a batch's writer was told is there survives a kill of the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from rustunnel_py.store.captures import Captures
from rustunnel_py.store.store import open_store

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 4

_WRITER = """
import sys
from pathlib import Path
import trio
from rustunnel_py.store.captures import Captures
from rustunnel_py.store.store import open_store
from tests.store.test_captures import OWNERS, capture

async def main(folder):
    async with open_store(folder / "main.db", folder / "captured.db") as store:
        captures = Captures(store.captured)
        await captures.load()
        seq = captures.last_seq
        while True:
            await captures.write([capture(number) for number in range(seq + 1, seq + 101)], OWNERS)
            seq += 100
            print(seq, flush=True)

trio.run(main, Path(sys.argv[1]))
"""


def write_until_killed(folder: Path, batches: int) -> int:
    """The last number that the writer was told is stored."""
    argv = [sys.executable, "-c", _WRITER, str(folder)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()}) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(batches)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines(keepends=True)
    return int(next(line for line in reversed(lines) if line.endswith(b"\n")))


@pytest.mark.slow
async def test_F01_stored_batches_survive_a_kill(tmp_path: Path) -> None:
    for number in range(ROUNDS):
        told = await trio.to_thread.run_sync(write_until_killed, tmp_path, 3 + number)
        async with open_store(tmp_path / "main.db", tmp_path / "captured.db") as store:
            captures = Captures(store.captured)
            await captures.load()
            assert captures.last_seq >= told > 0
            assert captures.shares["t1"].rows == captures.last_seq
