"""The seam for policies: every verdict, in order, and what is held given back however a visit ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from rustunnel_py.errors import Hop, HopError
from rustunnel_py.hub.gate import PASS, Answer, Delay, Gate, NeedBody, Pass, Reply, Slow, Verdict, Wait, edited
from rustunnel_py.hub.policies import gate_for
from rustunnel_py.hub.policies.concurrent_visits import ConcurrentVisits
from rustunnel_py.hub.policies.requests_per_second import RequestsPerSecond
from rustunnel_py.hub.policies.settings import PolicySettings
from rustunnel_py.hub.registry import Tunnel
from rustunnel_py.model.tunnel import HttpHost, Peer, Protocol
from rustunnel_py.model.visit import LocalTarget, Visit, VisitKind
from rustunnel_py.wire.http1 import HeadLimits, RequestHead, judge_request, render_request

if TYPE_CHECKING:
    from collections.abc import Callable

NO = Answer(HopError(Hop.EDGE, 403, "no", "No."))


class Saying:
    """A policy that says what it is told to, and notes what it holds."""

    holds: ClassVar[bool] = True

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.asked = 0
        self.held: list[Visit] = []

    def judge(self, tunnel: Tunnel, visit: Visit, head: RequestHead | None) -> Verdict:
        self.asked += 1
        if not isinstance(self.verdict, Answer):
            self.held.append(visit)
        return self.verdict

    def leave(self, visit: Visit) -> None:
        self.held.remove(visit)


@pytest.fixture
def tunnel() -> Tunnel:
    return Tunnel("t", "owner", HttpHost("a.example.test"), Protocol.HTTP, 0.0)


def visit_at(now: float = 0.0) -> Visit:
    return Visit("0" * 32, "t", VisitKind.HTTP, Peer("203.0.113.7", 1), Peer("198.51.100.1", 80), arrived=now)


def a_head() -> RequestHead:
    return judge_request(b"GET / HTTP/1.1\r\nHost: a.example.test\r\nX-A: 1\r\nCookie: c\r\n\r\n", HeadLimits())


def test_policies_are_asked_in_order_until_one_answers(tunnel: Tunnel) -> None:
    first, second, third = Saying(PASS), Saying(NO), Saying(PASS)
    visit = visit_at()
    assert Gate([first, second, third]).admit(tunnel, visit) is NO
    assert (first.asked, second.asked, third.asked) == (1, 1, 0)
    assert first.held == []


def test_who_is_admitted_owes_one_leave(tunnel: Tunnel) -> None:
    policies = [Saying(PASS), Saying(PASS)]
    gate, visit = Gate(policies), visit_at()
    assert gate.admit(tunnel, visit) is PASS
    assert all(policy.held == [visit] for policy in policies)
    gate.leave(visit)
    assert all(policy.held == [] for policy in policies)


def test_changes_of_several_policies_add_up(tunnel: Tunnel) -> None:
    order: list[str] = []

    def wrap(name: str) -> Callable[[object], object]:
        def around(link: object) -> object:
            order.append(name)
            return link

        return around

    target = LocalTarget(host_header=b"x")
    gate = Gate(
        [
            Saying(Pass(remove=(b"cookie",), wrap=wrap("inner"))),  # type: ignore[arg-type]
            Saying(PASS),
            Saying(Pass(add=((b"X-B", b"2"),), target=target, wrap=wrap("outer"))),  # type: ignore[arg-type]
        ]
    )
    verdict = gate.admit(tunnel, visit_at(), a_head())
    assert isinstance(verdict, Pass)
    assert (verdict.remove, verdict.add, verdict.target) == ((b"cookie",), ((b"X-B", b"2"),), target)
    assert verdict.wrap is not None
    verdict.wrap(object())  # type: ignore[arg-type]
    assert order == ["inner", "outer"]


def test_head_edits_change_what_is_sent_on_and_nothing_of_the_original() -> None:
    head = a_head()
    changed = edited(head, Pass(remove=(b"cookie",), add=((b"X-B", b"2"),)))
    assert changed.block.forward == b"X-A: 1\r\nX-B: 2\r\n"
    assert head.block.forward == b"X-A: 1\r\nCookie: c\r\n"
    assert render_request(changed, None, b"", body=0) == (
        b"GET / HTTP/1.1\r\nHost: a.example.test\r\nX-A: 1\r\nX-B: 2\r\n\r\n"
    )
    assert edited(head, PASS) is head


def test_a_delay_goes_on_behind_its_policy(tunnel: Tunnel) -> None:
    slow, last = Saying(Delay(2.0)), Saying(PASS)
    gate, visit = Gate([slow, last]), visit_at()
    wait = gate.admit(tunnel, visit)
    assert isinstance(wait, Wait)
    assert wait.verdict == Delay(2.0)
    assert last.asked == 0
    assert wait.settle(PASS) is PASS
    assert (slow.asked, last.asked) == (1, 1)
    gate.leave(visit)
    assert slow.held == last.held == []


def test_who_leaves_while_waiting_gives_back_what_was_taken(tunnel: Tunnel) -> None:
    first, second, third = Saying(PASS), Saying(Delay(1.0)), Saying(PASS)
    wait = Gate([first, second, third]).admit(tunnel, visit_at())
    assert isinstance(wait, Wait)
    assert first.held
    wait.abandon()
    assert first.held == second.held == third.held == []


def test_a_wait_may_come_to_an_answer_or_to_another_wait(tunnel: Tunnel) -> None:
    first, second = Saying(Delay(1.0)), Saying(Delay(2.0))
    gate = Gate([first, second])
    wait = gate.admit(tunnel, visit_at())
    assert isinstance(wait, Wait)
    again = wait.settle(PASS)
    assert isinstance(again, Wait)
    assert again.verdict == Delay(2.0)
    first, refusing = Saying(PASS), Saying(Slow(lambda: NO))
    wait = Gate([first, refusing]).admit(tunnel, visit_at())
    assert isinstance(wait, Wait)
    assert wait.settle(NO) is NO
    assert first.held == []


def test_a_body_is_asked_for_with_its_limit(tunnel: Tunnel) -> None:
    asked = NeedBody(100, lambda body: NO if b"evil" in body else PASS)
    wait = Gate([Saying(asked)]).admit(tunnel, visit_at())
    assert isinstance(wait, Wait)
    assert wait.verdict is asked
    assert wait.settle(asked.then(b"good")) is PASS
    wait = Gate([Saying(asked)]).admit(tunnel, visit_at())
    assert isinstance(wait, Wait)
    assert wait.settle(asked.then(b"evil")) is NO


def test_a_slow_result_is_kept_for_its_time(tunnel: Tunnel) -> None:
    gate = Gate([Saying(Slow(lambda: PASS, key="k", keep_seconds=60.0))])
    wait = gate.admit(tunnel, visit_at(0.0))
    assert isinstance(wait, Wait)
    assert wait.settle(PASS) is PASS
    assert gate.admit(tunnel, visit_at(59.0)) is PASS
    assert isinstance(gate.admit(tunnel, visit_at(60.0)), Wait)


def test_slow_results_are_bounded(tunnel: Tunnel) -> None:
    gate = Gate([])
    for number in range(5000):
        gate.keep(Slow(lambda: PASS, key=number, keep_seconds=60.0), PASS, 0.0)
    assert len(gate._kept) <= 1024


def test_a_reply_of_a_policy_s_own(tunnel: Tunnel) -> None:
    reply = Answer(Reply(200, ((b"Content-Type", b"text/plain"),), b"hi"))
    assert Gate([Saying(reply)]).admit(tunnel, visit_at()) is reply


def test_nothing_switched_on_is_no_gate() -> None:
    assert gate_for(PolicySettings(requests_per_second=0, concurrent_visits=0)) is None
    assert repr(gate_for(PolicySettings(5, 5))) == "<Gate RequestsPerSecond, ConcurrentVisits>"


def test_concurrent_visits_at_the_limit(tunnel: Tunnel) -> None:
    policy = ConcurrentVisits(2)
    gate = Gate([policy])
    visits = [visit_at() for _ in range(3)]
    assert gate.admit(tunnel, visits[0]) is PASS
    assert gate.admit(tunnel, visits[1]) is PASS
    refused = gate.admit(tunnel, visits[2])
    assert isinstance(refused, Answer)
    assert isinstance(refused.content, HopError)
    assert (refused.content.status, refused.content.retry_after) == (503, 1.0)
    assert (policy.now, policy.refused) == (2, 1)
    gate.leave(visits[0])
    assert gate.admit(tunnel, visits[2]) is PASS
    gate.leave(visits[1])
    gate.leave(visits[2])
    assert policy.now == 0


def test_requests_per_second_at_the_limit(tunnel: Tunnel) -> None:
    gate = Gate([RequestsPerSecond(3.0)])
    assert [gate.admit(tunnel, visit_at(10.0)) is PASS for _ in range(4)] == [True, True, True, False]
    refused = gate.admit(tunnel, visit_at(10.0))
    assert isinstance(refused, Answer)
    assert isinstance(refused.content, HopError)
    assert refused.content.status == 429
    assert refused.content.retry_after == pytest.approx(1 / 3)
    assert gate.admit(tunnel, visit_at(10.4)) is PASS


def test_a_refusal_by_rate_takes_no_slot(tunnel: Tunnel) -> None:
    visits = ConcurrentVisits(5)
    gate = Gate([RequestsPerSecond(1.0), visits])
    gate.admit(tunnel, visit_at())
    gate.admit(tunnel, visit_at())
    assert visits.now == 1
