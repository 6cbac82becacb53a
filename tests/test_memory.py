"""Memory of a long-lived process."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from rustunnel_py import memory
from rustunnel_py.memory import DUE, LOOK_SECONDS, OVERDUE

if TYPE_CHECKING:
    from trio.testing import MockClock

FREED = """
import resource, sys
from rustunnel_py import memory
if sys.argv[1] == "told":
    memory.give_large_blocks_back()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

for _ in range(3):  # what is freed teaches malloc
    bytes(8 << 20)
before = resident()
kept = []
for _ in range(200):  # 200 blocks of 200 KiB, each with a small one behind it that stays
    large = b"x" * (200 << 10)
    kept.append((large, b"y" * 3000))
kept = [small for _, small in kept]
del large
print((resident() - before) >> 20)
"""


def test_what_start_up_made_is_left_out_of_collections() -> None:
    gc.collect()
    try:
        memory.spare_start_up()
        assert gc.get_freeze_count() > 10_000  # the modules of this process
        assert len(gc.get_objects()) < 1000
    finally:
        gc.unfreeze()


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="the interpreter's collections are incremental")
async def test_full_collections_wait_until_it_is_quiet(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens in each second: how much was made, and how busy the process was."""
    before = gc.get_threshold()
    due, overdue = (-(-number // (before[0] * before[1])) for number in (DUE, OVERDUE))
    seconds = [
        (due - 1, 0.0),
        (1, 0.5),
        (due, 0.9),
        (0, 0.05),
        (due - 1, 0.0),
        (overdue - due, 0.9),
        (1, 1.0),
        (0, 0.0),
    ]
    collections, cpu, looked = 0, 0.0, 0
    collected: list[int] = []

    def middle() -> int:
        return collections

    async def pass_time() -> None:
        nonlocal collections, cpu, looked
        for made, busy in seconds:
            collections += made
            cpu += busy
            looked += 1
            await trio.sleep(LOOK_SECONDS)

    monkeypatch.setattr(memory, "_middle_collections", middle)
    monkeypatch.setattr("time.process_time", lambda: cpu)
    monkeypatch.setattr("gc.collect", lambda: collected.append(looked))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(memory.collect_when_quiet)
            await trio.testing.wait_all_tasks_blocked()
            assert gc.get_threshold()[2] > 1_000_000
            await trio.sleep(LOOK_SECONDS / 2)
            await pass_time()
            nursery.cancel_scope.cancel()
    finally:
        gc.unfreeze()
    assert collected == [4, 7]
    assert gc.get_threshold() == before


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_large_blocks_go_back_to_the_system() -> None:
    run = subprocess.run([sys.executable, "-c", FREED, "told"], capture_output=True, text=True, check=True, timeout=60)
    assert int(run.stdout) <= 4  # MiB of 40
