"""What only the pump in trio's own place must keep: trio's turns, its idleness, and a way back to the public one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from rustunnel_py.transport import instrument_pump
from rustunnel_py.transport.instrument_pump import InstrumentPump
from rustunnel_py.transport.pump import EpollPump, open_pump
from tests.support.pairs import do, spin, tcp_pair
from tests.support.poison import Recorder

if TYPE_CHECKING:
    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.transport.tcp import TcpConnection

pytestmark = pytest.mark.skipif("not hasattr(__import__('select'), 'epoll')", reason="needs epoll")


def joined(pump: Pump) -> tuple[TcpConnection, Recorder]:
    one, other = tcp_pair(pump)
    ear = Recorder()
    other.sink = ear
    ear.pipe = other
    return one, ear


async def test_it_is_taken_under_the_systems_clock_and_only_there() -> None:
    assert instrument_pump.fits()
    async with open_pump() as pump:
        assert isinstance(pump, InstrumentPump)


async def test_a_clock_that_jumps_gets_the_public_way(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pump() as pump:
        assert type(pump) is EpollPump
        one, ear = joined(pump)
        do(pump, one, lambda: one.send(b"hello"))
        await ear.wait_received(5)


async def test_a_version_that_nobody_tried_gets_the_public_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio, "__version__", "99.0")
    assert not instrument_pump.fits()


async def test_a_second_pump_of_one_run_goes_the_public_way() -> None:
    async with open_pump("instrument") as first, open_pump("instrument") as second:
        for pump in (first, second, first):
            one, ear = joined(pump)
            do(pump, one, lambda one=one: one.send(b"hello"))  # type: ignore[misc]
            await ear.wait_received(5)
    async with open_pump() as third:
        assert isinstance(third, InstrumentPump)  # the place is free again


async def test_after_a_failure_it_goes_on_the_public_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_pump("instrument") as pump:
        one, ear = joined(pump)
        do(pump, one, lambda: one.send(b"before"))
        await ear.wait_received(6)
        failures = []

        def fail(self: InstrumentPump, timeout: float) -> None:
            failures.append(timeout)
            raise ZeroDivisionError

        monkeypatch.setattr(InstrumentPump, "_run_until_trio_is_wanted", fail)
        await spin(lambda: bool(failures))
        do(pump, one, lambda: one.send(b"after"))
        await ear.wait_received(11)
        assert pump.crashes == 1
        assert len(failures) == 1


async def test_a_saturated_pump_leaves_trio_its_turn() -> None:
    """A task that only runs, and one that sleeps, get on while every pass finds work."""
    async with open_pump("instrument") as pump:
        one, _ = joined(pump)
        passes = pump.passes

        def more() -> None:
            pump.later(one, more)  # so that no pass is the last one

        pump.call(one, more)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        with trio.fail_after(10):
            await trio.sleep(0.01)
            await trio.to_thread.run_sync(lambda: None)
        assert pump.passes > passes + 10


async def test_callbacks_wake_tasks_and_tasks_wake_the_pump() -> None:
    async with open_pump("instrument") as pump:
        one, ear = joined(pump)
        heard = trio.Event()
        with trio.fail_after(10):
            for _ in range(50):
                pump.later(one, heard.set)
                await heard.wait()
                heard = trio.Event()
            pump.call(one, lambda: one.send(b"x"))
            await ear.wait_received(1)


async def test_trio_can_still_tell_that_nobody_runs() -> None:
    async with open_pump("instrument") as pump:
        one, ear = joined(pump)
        do(pump, one, lambda: one.send(b"hello"))
        with trio.fail_after(10):
            await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked(0.01)
        await ear.wait_received(5)
