"""Policies as a visitor meets them: every verdict, waits, collected bodies, slots given back however a visit ends."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from rustunnel_py.edges.parked import Parking
from rustunnel_py.errors import Hop, HopError
from rustunnel_py.hub.gate import PASS, Answer, Delay, Gate, NeedBody, Pass, Reply, Slow, Verdict
from rustunnel_py.hub.policies import gate_for
from rustunnel_py.hub.policies.concurrent_visits import ConcurrentVisits
from rustunnel_py.hub.policies.settings import PolicySettings
from rustunnel_py.model.visit import Carries, LocalTarget, Visit
from tests.support.fake_link import OK, FakeExchange
from tests.support.visitor_rig import Rig, get, post, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rustunnel_py.hub.link import ExchangeSink, Link
    from rustunnel_py.hub.registry import Tunnel
    from rustunnel_py.wire.http1 import RequestHead

NO = Answer(HopError(Hop.EDGE, 403, "not-you", "You may not."))


class Saying:
    holds: ClassVar[bool] = False

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict

    def judge(self, tunnel: Tunnel, visit: Visit, head: RequestHead | None) -> Verdict:
        return self.verdict

    def leave(self, visit: Visit) -> None: ...


def rig_with(*verdicts: Verdict) -> tuple[Rig, ConcurrentVisits]:
    """A rig whose tunnel has a policy with slots, then the given ones, then again one with slots."""
    rig = Rig()
    rig.link.answer = OK
    slots = ConcurrentVisits(10)
    rig.tunnel.gate = Gate([slots, *(Saying(verdict) for verdict in verdicts), slots])
    return rig, slots


@asynccontextmanager
async def parking(rig: Rig) -> AsyncIterator[None]:
    rig.pump.now = trio.current_time()
    async with trio.open_nursery() as nursery:
        rig.shared.parking = Parking(rig.pump, nursery, rig.registry.owns, rig.shared.census)  # type: ignore[arg-type]
        yield
        nursery.cancel_scope.cancel()


def test_an_answer_reaches_no_link_and_holds_nothing() -> None:
    rig, slots = rig_with(NO)
    connection = rig.send(get("/", "Accept: application/json"))
    answer = connection.take()
    assert status_of(answer) == 403
    assert b'"not-you"' in answer
    assert rig.link.exchanges == []
    assert slots.now == 0
    assert not connection.is_over


def test_a_reply_of_a_policy_s_own() -> None:
    rig, slots = rig_with(Answer(Reply(200, ((b"Content-Type", b"text/plain"),), b"hi")))
    answer = rig.send(get()).take()
    assert answer.endswith(b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi")
    assert slots.now == 0
    assert rig.told[0][2] == 200


def test_a_pass_with_changes_changes_what_is_sent_on() -> None:
    target = LocalTarget(host_header=b"inside")
    rig, slots = rig_with(Pass(remove=(b"cookie",), add=((b"X-User", b"me"),), target=target))
    rig.send(get("/", "Cookie: secret", "X-A: 1"))
    sent = rig.link.canonical[0]
    assert b"Cookie" not in sent
    assert b"\r\nX-User: me\r\n" in sent
    assert b"\r\nX-A: 1\r\n" in sent
    assert b"\r\nHost: inside\r\n" in sent
    assert slots.now == 0


class Doubling:
    """A Link around a Link."""

    def __init__(self, inner: Link) -> None:
        self.inner = inner
        self.carries: Carries = inner.carries

    def exchange(self, visit: Visit, head: RequestHead, sink: ExchangeSink) -> FakeExchange:
        return self.inner.exchange(visit, head._replace(target=head.target * 2), sink)  # type: ignore[return-value]

    def open(self, visit: Visit) -> object:
        return self.inner.open(visit)


def test_a_wrap_is_a_link_around_the_link() -> None:
    rig, _ = rig_with(Pass(wrap=Doubling))  # type: ignore[arg-type]
    assert rig.send(get("/x")).take() == OK
    assert rig.exchange.request.target == b"/x/x"


@pytest.mark.parametrize("how", ["end", "fail", "lost", "bad body", "expired", "refused", "crash", "cut"])
def test_slots_are_given_back_however_a_visit_ends(how: str) -> None:
    rig, slots = rig_with(PASS)
    rig.link.answer = None
    if how == "refused":
        rig.link.refusal = HopError(Hop.AGENT, 501, "cannot", "No.")
    connection = rig.send(post(b"", "Connection: close") if how == "end" else get("/", "Transfer-Encoding: chunked"))
    if how != "refused":
        assert slots.now == 2
    if how == "end":
        rig.exchange.reply(OK)
    elif how == "fail":
        rig.exchange.fail(HopError(Hop.AGENT, 502, "gone", "Gone."))
    elif how == "lost":
        connection.lose()
    elif how == "bad body":
        connection.feed(b"zz\r\n")
    elif how == "expired":
        connection.expire(rig.pump)
        connection.expire(rig.pump)
    elif how == "crash":
        connection.sink.crashed(ValueError())  # type: ignore[attr-defined]
    elif how == "cut":
        rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")
        rig.exchange.fail(HopError(Hop.AGENT, 502, "gone", "Gone."))
    assert slots.now == 0
    assert len(rig.told) == 1


async def test_a_delay_parks_the_visitor_and_then_goes_on(autojump_clock: MockClock) -> None:
    rig, slots = rig_with(Delay(3.0))
    async with parking(rig):
        connection = rig.send(get())
        assert slots.now == 1
        await trio.sleep(2.9)
        assert rig.link.exchanges == []
        await trio.sleep(0.2)
        rig.link.run()
        assert connection.take() == OK
        assert slots.now == 0


@pytest.mark.parametrize("when", [0.5, 3.0])
async def test_who_leaves_in_a_delay_gives_its_slots_back(autojump_clock: MockClock, when: float) -> None:
    rig, slots = rig_with(Delay(3.0))
    async with parking(rig):
        connection = rig.send(get())
        await trio.sleep(when)
        connection.lose()
        await trio.sleep(5)
        assert slots.now == 0
        assert [exchange for exchange in rig.link.exchanges if exchange.is_live] == []


async def test_a_slow_function_runs_in_a_thread_and_its_verdict_counts() -> None:
    threads: list[str] = []

    def slow() -> Verdict:
        threads.append(threading.current_thread().name)
        return NO

    rig, slots = rig_with(Slow(slow, key="k", keep_seconds=60.0))
    async with parking(rig):
        connection = rig.send(get())
        with trio.fail_after(10):
            while not connection.written:
                await trio.lowlevel.checkpoint()
        assert status_of(connection.take()) == 403
        assert threads != [threading.current_thread().name]
        assert status_of(rig.send(get(), connection).take()) == 403  # kept: no second call
        assert len(threads) == 1
        assert slots.now == 0


async def test_a_slow_function_that_fails_refuses() -> None:
    def slow() -> Verdict:
        raise ValueError("secret")

    rig, _ = rig_with(Slow(slow))
    async with parking(rig):
        connection = rig.send(get())
        with trio.fail_after(10):
            while not connection.written:
                await trio.lowlevel.checkpoint()
        answer = connection.take()
        assert status_of(answer) == 500
        assert b"secret" not in answer
        assert rig.pump.crashes == 1


def body_policy(limit: int = 100) -> NeedBody:
    return NeedBody(limit, lambda body: NO if b"evil" in body else Pass(add=((b"X-Size", b"%d" % len(body)),)))


@pytest.mark.parametrize("step", [1, 1000])
def test_a_needed_body_is_read_judged_and_sent_on(step: int) -> None:
    rig, slots = rig_with(body_policy())
    connection = rig.connect()
    raw = get("/", "Transfer-Encoding: chunked", method="POST") + b"5\r\nhello\r\n3\r\nyou\r\n0\r\nX-T: 1\r\n\r\n"
    connection.feed(raw + get("/2"), step=step)
    rig.link.run()
    assert rig.link.exchanges[0].body == b"helloyou"
    assert rig.link.exchanges[0].finished
    assert rig.link.exchanges[0].trailers == ((b"X-T", b"1"),)
    assert b"\r\nX-Size: 8\r\n" in rig.link.canonical[0]
    assert b"\r\nX-Size: 0\r\n" in rig.link.canonical[1]
    assert connection.take() == OK * 2
    assert (slots.now, connection.uncredited) == (0, 0)
    rig.assert_clean()


@pytest.mark.parametrize("cut", [0, 1, 7, 12])
def test_a_needed_body_may_be_refused_and_the_connection_stays(cut: int) -> None:
    rig, slots = rig_with(body_policy())
    raw = post(b"so evil") + get("/2")
    at = len(post(b"so evil")) - cut
    connection = rig.send(raw[:at])
    rig.send(raw[at:], connection)
    answer = connection.take()
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert answer.endswith(OK)
    assert len(rig.link.exchanges) == 1
    assert slots.now == 0


def test_H47_a_flood_of_refused_bodies_does_not_deepen_the_stack() -> None:
    rig, slots = rig_with(body_policy())
    connection = rig.send(post(b"so evil") * 500 + get("/2"))
    answer = connection.take()
    assert answer.count(b"HTTP/1.1 403 ") == 500
    assert answer.endswith(OK)
    assert (slots.now, connection.uncredited) == (0, 0)
    rig.assert_clean()


@pytest.mark.parametrize("evil", [b"so evil", b"good"])
def test_H47_H64_requests_with_a_needed_body_before_a_half_close_are_all_judged(evil: bytes) -> None:
    rig, slots = rig_with(body_policy())
    rig.link.answer = None
    connection = rig.connect()
    connection.feed(get("/0") + post(evil) + post(b"fine") + post(b"cut off")[:-1])
    connection.feed_eof()
    rig.link.answer = OK
    rig.link.exchanges[0].reply(OK)
    rig.link.run()
    statuses = [int(part[:3]) for part in connection.take().split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 403 if evil == b"so evil" else 200, 200, 400]
    assert (slots.now, connection.end) == (0, "linger")
    rig.assert_clean()


async def test_H64_a_body_that_was_cut_before_a_policy_wants_it_is_refused_at_once(autojump_clock: MockClock) -> None:
    rig, _ = rig_with(Delay(1.0), body_policy())
    async with parking(rig):
        connection = rig.send(post(b"hello")[:-1])
        connection.feed_eof()
        await trio.sleep(1.5)
        assert status_of(connection.take()) == 400
        assert rig.link.exchanges == []


async def test_H47_requests_behind_one_that_a_policy_refuses_late_are_served(autojump_clock: MockClock) -> None:
    refused: list[Verdict] = [NO]

    class Once(Saying):
        def judge(self, tunnel: Tunnel, visit: Visit, head: RequestHead | None) -> Verdict:
            return Delay(1.0) if refused else PASS

    class Late(Saying):
        def judge(self, tunnel: Tunnel, visit: Visit, head: RequestHead | None) -> Verdict:
            return refused.pop() if refused else PASS

    rig, _ = rig_with()
    rig.tunnel.gate = Gate([Once(PASS), Late(PASS)])
    async with parking(rig):
        connection = rig.send(get("/1") + get("/2") + get("/3"))
        await trio.sleep(1.5)
        rig.link.run()
        answer = connection.take()
        assert status_of(answer) == 403
        assert answer.endswith(OK * 2)
        assert [exchange.request.target for exchange in rig.link.exchanges] == [b"/2", b"/3"]
        rig.assert_clean()


@pytest.mark.parametrize(("size", "status"), [(99, 200), (100, 200), (101, 413)])
def test_a_needed_body_over_its_limit_is_413(size: int, status: int) -> None:
    rig, slots = rig_with(body_policy())
    connection = rig.send(post(b"x" * size))
    assert status_of(connection.take()) == status
    assert slots.now == 0


def test_H46_a_needed_body_is_asked_for_by_ourselves_once() -> None:
    rig, _ = rig_with(body_policy())
    rig.link.answer = None
    connection = rig.send(get("/", "Content-Length: 2", "Expect: 100-continue", method="POST"))
    assert connection.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.feed(b"ab")
    rig.exchange.reply(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)
    assert connection.take() == OK


def test_a_needed_body_that_comes_too_slowly_is_408() -> None:
    rig, slots = rig_with(body_policy())
    connection = rig.send(get("/", "Content-Length: 2", method="POST"))
    connection.expire(rig.pump)
    assert status_of(connection.take()) == 408
    assert slots.now == 0


def test_a_visitor_that_leaves_in_a_needed_body_gives_its_slots_back() -> None:
    rig, slots = rig_with(body_policy())
    connection = rig.send(get("/", "Content-Length: 2", method="POST"))
    assert slots.now == 1
    connection.lose()
    assert slots.now == 0


async def test_a_delay_behind_a_needed_body_keeps_the_body(autojump_clock: MockClock) -> None:
    rig, slots = rig_with(body_policy(), Delay(1.0))
    async with parking(rig):
        connection = rig.send(post(b"hello") + get("/2"))
        await trio.sleep(2)
        rig.link.run()
        await trio.sleep(2)
        rig.link.run()
        assert connection.take() == OK * 2
        assert rig.link.exchanges[0].body == b"hello"
        assert slots.now == 0


async def test_an_admitted_visitor_may_still_wait_for_its_link(autojump_clock: MockClock) -> None:
    rig, slots = rig_with(PASS)
    rig.tunnel.links.remove(rig.link, 0.0)
    async with parking(rig):
        connection = rig.send(get())
        assert slots.now == 2
        rig.tunnel.links.add(rig.link)
        await wait_all_tasks_blocked()
        rig.link.run()
        assert connection.take() == OK
        assert slots.now == 0


@pytest.mark.parametrize(("visits", "refused"), [(2, 0), (3, 0), (4, 1)])
def test_visits_at_a_time_at_the_limit(visits: int, refused: int) -> None:
    rig = Rig()
    rig.tunnel.gate = gate_for(PolicySettings(concurrent_visits=3))
    connections = [rig.send(get()) for _ in range(visits)]
    assert len([c for c in connections if c.written.startswith(b"HTTP/1.1 503 ")]) == refused
    for exchange in rig.link.exchanges:
        exchange.reply(OK)
    assert rig.send(get()).written == b""


@pytest.mark.parametrize(("requests", "refused"), [(4, 0), (5, 0), (6, 1)])
def test_requests_a_second_at_the_limit(requests: int, refused: int) -> None:
    rig = Rig()
    rig.link.answer = OK
    rig.tunnel.gate = gate_for(PolicySettings(requests_per_second=5))
    answers = [rig.send(get()).take() for _ in range(requests)]
    assert len([answer for answer in answers if answer.startswith(b"HTTP/1.1 429 ")]) == refused
