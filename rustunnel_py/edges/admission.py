"""One request that does not go straight to a link: what its tunnel's policies say of it, and what it waits for.

Made only where a policy says more than PASS, or no link is there; the straight way needs none of this. It decides
what comes next and leaves the connection, its phase and its deadlines to the visitor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rustunnel_py.edges.pages import own_reply
from rustunnel_py.edges.parked import agent_away
from rustunnel_py.errors import Hop, HopError
from rustunnel_py.hub.gate import PASS, Answer, Delay, NeedBody, Pass, Slow, edited

if TYPE_CHECKING:
    from rustunnel_py.edges.turn import Turn
    from rustunnel_py.edges.visitor import Visitor
    from rustunnel_py.hub.gate import Gate, Verdict, Wait
    from rustunnel_py.hub.link import Link
    from rustunnel_py.wire.http1 import Headers


class Admission:
    """The way of one turn to a link. The body that a policy wanted to see goes on from here."""

    __slots__ = ("_body", "_trailers", "_turn", "_visitor")

    def __init__(self, visitor: Visitor, turn: Turn) -> None:
        self._visitor = visitor
        self._turn = turn
        self._body: bytes | None = None
        self._trailers: Headers = ()

    def __repr__(self) -> str:
        return f"<Admission of {self._turn!r}>"

    def judged(self, gate: Gate, verdict: Pass | Answer | Wait) -> None:
        """What the gate says, at first or after a wait."""
        turn, visitor = self._turn, self._visitor
        if isinstance(verdict, Answer):
            turn.wait = None
            content = verdict.content
            if isinstance(content, HopError):
                visitor.give_up(content)
            else:
                visitor.answer_turn(turn, own_reply(content.status, content.headers, content.body))
        elif isinstance(verdict, Pass):
            turn.wait = None
            turn.gate = gate
            turn.request = edited(turn.request, verdict)
            if verdict.target is not None:
                turn.visit.target = verdict.target
            turn.wrap = verdict.wrap
            link = turn.tunnel.links.pick(turn.visit)
            if link is None:
                self.wait_for_link()
            else:
                self._send_to(link)
        else:
            turn.wait = verdict
            self._wait(gate, verdict)

    def wait_for_link(self) -> None:
        """Parked until the agent is back, or told that it is away."""
        turn, visitor = self._turn, self._visitor
        parking = visitor.parking
        if parking is None:
            visitor.give_up(agent_away(turn.tunnel, turn.visit.arrived))
            return

        def resume(found: Link | HopError) -> None:
            if not visitor.unparked(turn):
                return
            if isinstance(found, HopError):
                visitor.give_up(found)
            else:
                self._send_to(found)
            visitor.go_on()

        visitor.park(turn, lambda: parking.for_link(visitor, turn.tunnel, turn.visit, resume))

    def _send_to(self, link: Link) -> None:
        self._visitor.send_to(self._turn, self._turn.wrapped(link), self._body, self._trailers)

    def _wait(self, gate: Gate, wait: Wait) -> None:
        turn, visitor = self._turn, self._visitor
        asked = wait.verdict

        def settle(verdict: Verdict) -> None:
            if visitor.unparked(turn):
                self.judged(gate, wait.settle(verdict))
                visitor.go_on()

        if isinstance(asked, NeedBody):
            self._need_body(gate, wait, asked)
            return
        parking = visitor.parking
        if parking is None:
            visitor.give_up(HopError(Hop.EDGE, 503, "not-ready", "The server is starting.", retry_after=1.0))
        elif isinstance(asked, Delay):
            visitor.park(turn, lambda: parking.for_seconds(visitor, turn.tunnel, asked.seconds, lambda _: settle(PASS)))
        elif isinstance(asked, Slow):
            visitor.park(turn, lambda: parking.for_slow(visitor, turn.tunnel, asked.function, settle))

    def _need_body(self, gate: Gate, wait: Wait, asked: NeedBody) -> None:
        if self._body is not None or not self._turn.request.body:
            self.judged(gate, wait.settle(asked.then(self._body or b"")))
            return

        def collected(body: bytes, trailers: Headers) -> None:
            self._body, self._trailers = body, trailers
            self.judged(gate, wait.settle(asked.then(body)))

        self._visitor.collect(self._turn, asked.limit, collected)
