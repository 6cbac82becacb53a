"""A blocked loop is told of, and callbacks that raise are."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import trio
from structlog.testing import capture_logs

from rustunnel_py import watchdog
from rustunnel_py.watchdog import BEAT_SECONDS, BLOCKED_SECONDS, CrashLog, Watchdog, watched_loop

if TYPE_CHECKING:
    import pytest
    from structlog.typing import EventDict


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def life(steps: str) -> tuple[Watchdog, list[EventDict]]:
    """Quarter seconds: `b` the loop beats and the thread looks, `-` only the thread, `.` neither."""
    clock = Clock()
    dog = Watchdog(clock=clock)
    with capture_logs() as logged:
        for step in steps:
            clock.now += BEAT_SECONDS
            if step != ".":
                dog.look()
            if step == "b":
                dog.beaten()
    return dog, logged


def test_P10_a_loop_that_turns_is_not_spoken_of() -> None:
    assert life("bbbbbbbb" + "--b" * 5)[1] == []


def test_P10_a_blocked_loop_is_told_of_once_with_where_it_is_and_then_for_how_long() -> None:
    dog, logged = life("bb" + "-" * 12 + "bbb")
    assert [line["event"] for line in logged] == ["the event loop is blocked", "the event loop was blocked"]
    assert "life (" in logged[0]["where"]
    assert logged[1]["seconds"] == 12 * BEAT_SECONDS
    assert dog.blocks == 1


def test_P10_each_block_is_counted() -> None:
    assert life("b" + ("-" * 6 + "bb") * 3)[0].blocks == 3


def test_P06_a_stopped_process_is_no_blocked_loop() -> None:
    assert life("bb" + "." * 240 + "bbbb")[1] == []
    assert life("bb" + "." * 240 + "-bbbb")[1] == []


async def test_P10_the_stack_of_the_loop_is_what_the_thread_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()

    def hold_everything_up() -> None:
        until = time.monotonic() + 20
        while not told.is_set() and time.monotonic() < until:
            pass

    with capture_logs() as logged:
        kept = watchdog.log.error
        over = trio.Event()

        def hear(event: str, **fields: object) -> None:
            kept(event, **fields)
            if told.is_set():
                over.set()
            told.set()

        monkeypatch.setattr(watchdog.log, "error", hear)
        async with watched_loop() as dog:
            hold_everything_up()
            with trio.fail_after(10):
                await over.wait()
    assert "hold_everything_up" in logged[0]["where"]
    assert logged[1]["seconds"] >= BLOCKED_SECONDS - BEAT_SECONDS
    assert dog.blocks == 1


def test_P09_crashes_are_logged_with_their_traceback_and_bounded() -> None:
    clock = Clock()
    crash_log = CrashLog(clock=clock)
    with capture_logs() as logged:
        for _ in range(100):
            crash_log(ValueError("oops"))
        clock.now += 5
        crash_log(ValueError("again"))
    assert len(logged) == 11
    assert logged[0]["exc_info"].args == ("oops",)
    assert (logged[-1]["exc_info"].args, logged[-1]["unsaid"]) == (("again",), 90)
