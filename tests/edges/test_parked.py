"""Visitors that wait for a link: bounds, the returning agent, the end of patience, and who left meanwhile."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from rustunnel_py.edges.limits import ParkingLimits
from rustunnel_py.edges.parked import Parking
from rustunnel_py.errors import Crash, HopError
from rustunnel_py.model.tunnel import Peer
from rustunnel_py.model.visit import Visit, VisitKind
from tests.support.fake_link import OK, FakeLink
from tests.support.visitor_rig import Rig, get, post, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from rustunnel_py.hub.link import Link

VISIT = Visit("0" * 32, "t", VisitKind.TCP, Peer("203.0.113.7", 1), Peer("198.51.100.1", 80))


class Waiter:
    """Who is parked, as the TCP edge would be."""

    def __init__(self) -> None:
        self.heard: list[Link | HopError] = []
        self.errors: list[Exception] = []

    def crashed(self, error: Exception) -> None:
        self.errors.append(error)


@asynccontextmanager
async def parked_rig(limits: ParkingLimits | None = None) -> AsyncIterator[Rig]:
    """A rig whose tunnel nobody serves, on trio's clock."""
    rig = Rig(parking=limits or ParkingLimits())
    rig.pump.now = trio.current_time()
    rig.link.answer = OK
    rig.tunnel.links.remove(rig.link, rig.pump.now)
    async with trio.open_nursery() as nursery:
        rig.shared.parking = Parking(rig.pump, nursery, rig.registry.owns, rig.shared.census)  # type: ignore[arg-type]
        yield rig
        await trio.sleep(1000)  # all patience is over
        assert nursery.child_tasks == set()
        assert rig.shared.census.parked == 0
        assert rig.shared.census._parked_by_tunnel == {}


async def test_a_visitor_waits_and_is_served_when_the_agent_is_back(autojump_clock: MockClock) -> None:
    async with parked_rig() as rig:
        connection = rig.connect()
        connection.feed(post(b"hello") + get("/2"))
        assert connection.due == math.inf
        await trio.sleep(9)
        assert connection.written == b""
        assert connection.uncredited > 0
        rig.tunnel.links.add(rig.link)
        await wait_all_tasks_blocked()
        rig.link.run()
        assert connection.take() == OK * 2
        assert connection.uncredited == 0
        assert [exchange.request.target for exchange in rig.link.exchanges] == [b"/", b"/2"]
        rig.assert_clean()


async def test_patience_ends_with_503_that_says_since_when(autojump_clock: MockClock) -> None:
    async with parked_rig() as rig:
        await trio.sleep(5)
        rig.pump.now = trio.current_time()
        connection = rig.connect()
        connection.feed(get("/", "Accept: application/json"))
        await trio.sleep(9.9)
        assert connection.written == b""
        await trio.sleep(0.2)
        answer = connection.take()
        assert status_of(answer) == 503
        assert b"away for 15 s" in answer
        assert b'"since"' in answer
        assert b"\r\nRetry-After: 5\r\n" in answer
        assert not connection.is_over
        rig.tunnel.links.add(rig.link)
        rig.send(get(), connection)
        assert connection.take() == OK


async def test_H47_requests_behind_one_that_waited_in_vain_are_taken_up(autojump_clock: MockClock) -> None:
    async with parked_rig() as rig:
        connection = rig.send(get("/1") + get("/2") + get("/3"))
        await trio.sleep(15)
        assert status_of(connection.take()) == 503
        assert not connection.is_over
        rig.tunnel.links.add(rig.link)
        await wait_all_tasks_blocked()
        rig.link.run()
        assert connection.take() == OK * 2
        assert [exchange.request.target for exchange in rig.link.exchanges] == [b"/2", b"/3"]
        rig.assert_clean()


async def test_nobody_waits_where_waiting_is_off(autojump_clock: MockClock) -> None:
    async with parked_rig(ParkingLimits(wait_seconds=0)) as rig:
        assert status_of(rig.send(get()).take()) == 503


async def test_a_tunnel_that_ends_meanwhile_is_404(autojump_clock: MockClock) -> None:
    async with parked_rig() as rig:
        connection = rig.send(get())
        await wait_all_tasks_blocked()
        rig.registry.release(rig.tunnel)
        await wait_all_tasks_blocked()
        assert status_of(connection.take()) == 404


@pytest.mark.parametrize(("per_tunnel", "in_all"), [(2, 100), (100, 2)])
async def test_the_number_of_waiting_visitors_is_bounded(
    per_tunnel: int, in_all: int, autojump_clock: MockClock
) -> None:
    async with parked_rig(ParkingLimits(per_tunnel=per_tunnel, in_all=in_all)) as rig:
        waiting = [rig.send(get()) for _ in range(2)]
        refused = rig.send(get())
        answer = refused.take()
        assert status_of(answer) == 503
        assert b"too-many-waiting" in answer
        assert b"\r\nRetry-After: " in answer
        waiting[0].lose()
        await wait_all_tasks_blocked()
        waiting.append(rig.send(get()))
        assert waiting[2].written == b""
        rig.tunnel.links.add(rig.link)
        await wait_all_tasks_blocked()
        rig.link.run()
        assert [connection.take() for connection in waiting[1:]] == [OK, OK]
        assert waiting[0].take() == b""


async def test_another_tunnel_has_places_of_its_own(autojump_clock: MockClock) -> None:
    async with parked_rig(ParkingLimits(per_tunnel=1)) as rig:
        rig.add_tunnel("other.example.test", None)
        rig.send(get())
        connection = rig.send(get(host="other.example.test"))
        assert connection.written == b""


async def test_who_leaves_while_waiting_is_not_served(autojump_clock: MockClock) -> None:
    async with parked_rig() as rig:
        connection = rig.send(get())
        connection.lose()
        rig.tunnel.links.add(rig.link)
        await wait_all_tasks_blocked()
        assert rig.link.exchanges == []
        assert rig.told[0][2] == 499


async def test_who_leaves_in_the_moment_of_the_return_is_not_served(autojump_clock: MockClock) -> None:
    async with parked_rig() as rig:
        connection = rig.send(get())
        await wait_all_tasks_blocked()
        rig.tunnel.links.add(rig.link)
        connection.lose()
        await wait_all_tasks_blocked()
        assert rig.link.exchanges == []


class NeverResuming:
    """Parks everybody and keeps what would resume them."""

    def __init__(self) -> None:
        self.resume: list[Callable[[Link | HopError], None]] = []

    def for_link(
        self, by: object, tunnel: object, visit: object, resume: Callable[[Link | HopError], None]
    ) -> trio.CancelScope:
        self.resume.append(resume)
        return trio.CancelScope()


def test_a_visitor_that_has_gone_on_is_not_resumed() -> None:
    rig = Rig()
    parking = NeverResuming()
    rig.shared.parking = parking  # type: ignore[assignment]
    rig.tunnel.links.remove(rig.link, 0.0)
    connection = rig.send(get())
    connection.lose()
    parking.resume[0](rig.link)
    assert rig.link.exchanges == []


async def test_P03_the_end_of_the_server_ends_those_who_wait(autojump_clock: MockClock) -> None:
    async with parked_rig() as rig:
        connection = rig.connect()
        visitor = connection.sink
        connection.feed(get())
        visitor.end()  # type: ignore[attr-defined]
        assert connection.end == "cut"


async def test_a_half_closed_visitor_waits_too(autojump_clock: MockClock) -> None:
    async with parked_rig() as rig:
        connection = rig.send(get())
        connection.feed_eof()
        rig.tunnel.links.add(rig.link)
        await wait_all_tasks_blocked()
        rig.link.run()
        assert status_of(connection.take()) == 200
        assert connection.end == "close"


async def test_H47_H64_a_half_closed_visitor_waits_with_all_its_requests(autojump_clock: MockClock) -> None:
    async with parked_rig() as rig:
        connection = rig.send(get("/1") + get("/2"))
        connection.feed_eof()
        rig.tunnel.links.add(rig.link)
        await wait_all_tasks_blocked()
        rig.link.run()
        answer = connection.take()
        assert answer.count(b"HTTP/1.1 200 ") == 2
        assert answer.count(b"Connection: close") == 1
        assert connection.end == "close"
        rig.assert_clean()


async def test_a_cut_body_is_refused_after_the_wait(autojump_clock: MockClock) -> None:
    async with parked_rig() as rig:
        connection = rig.send(post(b"hello")[:-1])
        connection.feed_eof()
        rig.tunnel.links.add(rig.link)
        await wait_all_tasks_blocked()
        assert status_of(connection.take()) == 400
        assert rig.exchange.was_reset
        rig.assert_clean()


async def test_anybody_may_wait_for_a_link(autojump_clock: MockClock) -> None:
    async with parked_rig() as rig:
        parking, waiter = rig.shared.parking, Waiter()
        assert parking is not None
        parking.for_link(waiter, rig.tunnel, VISIT, waiter.heard.append)
        scope = parking.for_link(waiter, rig.tunnel, VISIT, waiter.heard.append)
        scope.cancel()
        other = FakeLink()
        rig.tunnel.links.add(other)
        await wait_all_tasks_blocked()
        assert waiter.heard == [other]


async def test_a_crash_when_resumed_is_the_waiter_s_own(autojump_clock: MockClock) -> None:
    async with parked_rig() as rig:
        parking, waiter = rig.shared.parking, Waiter()
        assert parking is not None

        def resume(found: object) -> None:
            raise Crash("in the callback")

        parking.for_link(waiter, rig.tunnel, VISIT, resume)
        rig.tunnel.links.add(rig.link)
        await wait_all_tasks_blocked()
        assert [str(error) for error in waiter.errors] == ["in the callback"]
        rig.pump.errors.clear()
