from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from rustunnel_py.errors import ConfigError
from rustunnel_py.store import line_file
from rustunnel_py.store.line_file import LineFile

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock


async def test_lines_are_in_the_file_soon(tmp_path: Path, mock_clock: MockClock) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"before\n")
    lines = LineFile(path, "k")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lines.run)
        lines.write(b"one\n")
        await wait_all_tasks_blocked()
        assert path.read_bytes() == b"before\n"
        mock_clock.jump(line_file.WRITE_SECONDS)
        while path.read_bytes() == b"before\n":  # a thread of its own writes
            await trio.lowlevel.checkpoint()
        assert path.read_bytes() == b"before\none\n"
        lines.write(b"two\n")
        nursery.cancel_scope.cancel()
    assert path.read_bytes() == b"before\none\ntwo\n"


async def test_log_rotation(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    lines = LineFile(path, "k")
    lines.write(b"old\n")
    path.rename(tmp_path / "a.log.1")
    await lines.reopen()
    lines.write(b"new\n")
    await lines.flush()
    assert (tmp_path / "a.log.1").read_bytes() == b"old\n"
    assert path.read_bytes() == b"new\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    os.close(lines._descriptor)


async def test_P11_a_file_that_cannot_be_opened_again(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "a.log"
    lines = LineFile(path, "k")
    folder.rename(tmp_path / "gone")
    await lines.reopen()
    lines.write(b"still\n")
    await lines.flush()
    assert (tmp_path / "gone" / "a.log").read_bytes() == b"still\n"
    os.close(lines._descriptor)


async def test_P11_a_full_disk_costs_lines_not_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = LineFile(tmp_path / "a.log", "k")
    good, lines._descriptor = lines._descriptor, os.open("/dev/full", os.O_WRONLY)
    lines.write(b"x\n")
    await lines.flush()
    os.close(lines._descriptor)
    lines._descriptor = good
    assert lines.dropped == 1
    monkeypatch.setattr(line_file, "WAITING_MAX", 5)
    for _ in range(3):
        lines.write(b"abc\n")
    assert lines.dropped == 3
    await lines.flush()
    os.close(lines._descriptor)
    assert (tmp_path / "a.log").read_bytes() == b"abc\n"


def test_P13_a_file_that_cannot_be_opened_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the key: .*nothing"):
        LineFile(tmp_path / "nothing" / "a.log", "the key")
