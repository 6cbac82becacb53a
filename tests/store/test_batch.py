from __future__ import annotations

import pytest
import trio

from rustunnel_py.errors import StoreError
from rustunnel_py.store import batch as batch_module
from rustunnel_py.store.batch import WRITE_SECONDS, Batch


class Disk:
    """Takes rows, fails while told to, and holds a write up until it may go on."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.writes = 0
        self.error: BaseException | None = None
        self.may_go_on = trio.Event()
        self.may_go_on.set()
        self.batch: Batch[int] = Batch("a log", self.write)

    async def write(self, rows: list[int]) -> None:
        self.writes += 1
        await self.may_go_on.wait()
        if self.error is not None:
            raise self.error
        self.rows += rows


@pytest.fixture
def disk() -> Disk:
    return Disk()


async def test_rows_are_written_together_and_in_order(disk: Disk) -> None:
    for row in range(5):
        disk.batch.append(row)
    assert len(disk.batch) == 5
    await disk.batch.flush()
    await disk.batch.flush()
    assert (disk.rows, disk.writes, len(disk.batch)) == ([0, 1, 2, 3, 4], 1, 0)


async def test_D03_what_failed_is_written_before_what_came_meanwhile(disk: Disk) -> None:
    disk.error = StoreError("disk I/O error")
    disk.may_go_on = trio.Event()
    disk.batch.append(1)
    disk.batch.append(2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.batch.flush)
        await trio.testing.wait_all_tasks_blocked()
        disk.batch.append(3)
        disk.may_go_on.set()
    assert len(disk.batch) == 3
    disk.error = None
    await disk.batch.flush()
    assert (disk.rows, disk.batch.dropped) == ([1, 2, 3], 0)


@pytest.mark.parametrize("before", [0, 1, 3, 4])
async def test_D12_past_the_bound_the_oldest_go_and_are_counted(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    monkeypatch.setattr(batch_module, "PENDING_MAX", 4)
    disk.error = StoreError("database or disk is full")
    for row in range(before):
        disk.batch.append(row)
    disk.may_go_on = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.batch.flush)
        await trio.testing.wait_all_tasks_blocked()
        for row in range(before, 6):
            disk.batch.append(row)
        disk.may_go_on.set()
    disk.error = None
    await disk.batch.flush()
    assert (disk.rows, disk.batch.dropped) == ([2, 3, 4, 5], 2)


async def test_a_flush_that_is_cancelled_still_sees_its_rows_written(disk: Disk) -> None:
    disk.may_go_on = trio.Event()
    disk.batch.append(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.batch.flush)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        disk.may_go_on.set()
    assert disk.rows == [1]


async def test_no_error_of_a_write_costs_its_rows(disk: Disk) -> None:
    disk.error = ValueError("not the disk's")
    disk.batch.append(1)
    with pytest.raises(ValueError, match="not the disk's"):
        await disk.batch.flush()
    disk.error = None
    await disk.batch.flush()
    assert disk.rows == [1]


async def test_run_writes_every_second_and_what_is_left_at_the_end(
    disk: Disk, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.batch.run)
        await trio.testing.wait_all_tasks_blocked()
        disk.batch.append(1)
        await trio.sleep(WRITE_SECONDS * 1.5)
        assert disk.rows == [1]
        disk.batch.append(2)
        nursery.cancel_scope.cancel()
    assert disk.rows == [1, 2]


async def test_what_is_due_is_written_although_nothing_waits() -> None:
    due = [True]
    written: list[list[int]] = []

    async def write(rows: list[int]) -> None:
        await trio.lowlevel.checkpoint()
        written.append(rows)
        due.clear()

    batch: Batch[int] = Batch("a log", write, due=lambda: bool(due))
    await batch.flush()
    await batch.flush()
    assert written == [[]]
