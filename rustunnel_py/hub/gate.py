"""Run a tunnel's policies in order and act on their verdicts.

A policy decides in plain code and says what should happen:

    Pass        go on, perhaps with changes
    Answer      this is the answer; nothing reaches the agent
    Delay       go on after so many seconds
    NeedBody    the request's body is needed to decide, up to a limit
    Slow        the decision takes long (a password hash): call this in a thread

`Gate.admit` settles `Pass` and `Answer` in the call. The others come back as a `Wait`: the edge parks the
visitor, a trio task waits, reads or computes, and `Wait.settle` goes on behind the policy that asked.

A policy that `holds` something for as long as the visit lasts (a slot) hears `leave(visit)` once for
every `judge` that it did not answer, however the visit ends. A tunnel without policies has no gate: the
hot path pays one `if`. A policy that watches or changes traffic passes with a `wrap`: a Link around a Link.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from rustunnel_py.errors import HopError
    from rustunnel_py.hub.link import Link
    from rustunnel_py.hub.registry import Tunnel
    from rustunnel_py.model.visit import LocalTarget, Visit
    from rustunnel_py.wire.http1 import Headers, RequestHead

SLOW_RESULTS_MAX = 1024  # results of slow functions kept per gate: one a set of credentials, in all some 200 KiB


@dataclass(frozen=True, slots=True)
class Pass:
    """Go on. `remove` holds names in lower case; `add` comes after it; `wrap` puts a Link around the Link."""

    remove: tuple[bytes, ...] = ()
    add: Headers = ()
    target: LocalTarget | None = None
    wrap: Callable[[Link], Link] | None = None

    def joined(self, later: Pass) -> Pass:
        """These changes, then those of a later policy."""
        if later is PASS:
            return self
        if self is PASS:
            return later
        first, second = self.wrap, later.wrap
        return Pass(
            remove=self.remove + later.remove,
            add=self.add + later.add,
            target=later.target or self.target,
            wrap=_both(first, second) if first and second else first or second,
        )


PASS = Pass()
"""Go on, nothing changes. Compared by identity on the hot path."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply of a policy's own; length and connection are the edge's to say."""

    status: int
    headers: Headers = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """The visit ends here: with an error page (an error of hop `edge`), or with a reply as it is."""

    content: HopError | Reply


@dataclass(frozen=True, slots=True)
class Delay:
    seconds: float


@dataclass(frozen=True, slots=True)
class NeedBody:
    """Read the request's body, at most `limit` bytes (else 413), and ask `then`. The body goes on to the agent."""

    limit: int
    then: Callable[[bytes], Verdict]


@dataclass(frozen=True, slots=True)
class Slow:
    """Call `function` in a thread. Its verdict is kept under `key` for `keep_seconds`; key None: not kept."""

    function: Callable[[], Verdict]
    key: Hashable = None
    keep_seconds: float = 0.0


Verdict: TypeAlias = Pass | Answer | Delay | NeedBody | Slow


class Policy(Protocol):
    holds: ClassVar[bool]

    def judge(self, tunnel: Tunnel, visit: Visit, head: RequestHead | None) -> Verdict:
        """What shall happen to this visit; `head` is None for TCP. Never waits."""

    def leave(self, visit: Visit) -> None:
        """The visit is over; heard only by a policy that `holds`."""


class Wait:
    """A visit that one policy keeps waiting. `verdict` says what for."""

    __slots__ = ("_changes", "_gate", "_head", "_index", "_tunnel", "_visit", "verdict")

    def __init__(
        self,
        gate: Gate,
        index: int,
        verdict: Delay | NeedBody | Slow,
        tunnel: Tunnel,
        visit: Visit,
        head: RequestHead | None,
        changes: Pass,
    ) -> None:
        self._gate = gate
        self._index = index
        self._tunnel = tunnel
        self._visit = visit
        self._head = head
        self._changes = changes
        self.verdict = verdict

    def __repr__(self) -> str:
        return f"<Wait for {self.verdict} of policy {self._index}>"

    def settle(self, verdict: Verdict) -> Pass | Answer | Wait:
        """It has been waited for: `verdict` is what the policy says now (after a Delay: PASS)."""
        slow = self.verdict
        if isinstance(slow, Slow) and slow.key is not None:
            self._gate.keep(slow, verdict, self._visit.arrived)
        return self._gate.run(self._index, self._tunnel, self._visit, self._head, self._changes, verdict)

    def abandon(self) -> None:
        """The visitor left; what was taken is given back."""
        self._gate.give_back(self._index, self._visit)


class Gate:
    """The policies of one tunnel, in order."""

    __slots__ = ("_holders", "_kept", "_policies")

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._policies = tuple(policies)
        self._holders = tuple(policy for policy in self._policies if policy.holds)
        self._kept: OrderedDict[Hashable, tuple[Verdict, float]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Gate {', '.join(type(policy).__name__ for policy in self._policies)}>"

    def admit(self, tunnel: Tunnel, visit: Visit, head: RequestHead | None = None) -> Pass | Answer | Wait:
        """Ask every policy. After a Pass the caller owes one `leave(visit)`."""
        for index, policy in enumerate(self._policies):
            verdict = policy.judge(tunnel, visit, head)
            if verdict is not PASS:
                return self.run(index, tunnel, visit, head, PASS, verdict)
        return PASS

    def leave(self, visit: Visit) -> None:
        """An admitted visit is over."""
        for policy in self._holders:
            policy.leave(visit)

    def run(
        self, index: int, tunnel: Tunnel, visit: Visit, head: RequestHead | None, changes: Pass, verdict: Verdict
    ) -> Pass | Answer | Wait:
        """Go on from a policy's verdict."""
        while True:
            if isinstance(verdict, Slow):
                verdict = self._known(verdict, visit.arrived)
            if isinstance(verdict, Pass):
                changes = changes.joined(verdict)
            elif isinstance(verdict, Answer):
                self.give_back(index - 1, visit)
                return verdict
            else:
                return Wait(self, index, verdict, tunnel, visit, head, changes)
            index += 1
            if index == len(self._policies):
                return changes
            verdict = self._policies[index].judge(tunnel, visit, head)

    def give_back(self, last: int, visit: Visit) -> None:
        """What the policies up to and with `last` hold for this visit."""
        for policy in self._policies[: last + 1]:
            if policy.holds:
                policy.leave(visit)

    def keep(self, slow: Slow, verdict: Verdict, now: float) -> None:
        """Remember what a slow function said."""
        self._kept[slow.key] = verdict, now + slow.keep_seconds
        self._kept.move_to_end(slow.key)
        if len(self._kept) > SLOW_RESULTS_MAX:
            self._kept.popitem(last=False)

    def _known(self, slow: Slow, now: float) -> Verdict:
        if slow.key is None or slow.key not in self._kept:
            return slow
        verdict, until = self._kept[slow.key]
        return verdict if now < until else slow


def edited(head: RequestHead, changes: Pass) -> RequestHead:
    """The head with a Pass's edits; framing, Host and forwarding lines are not among what can be edited."""
    if not changes.remove and not changes.add:
        return head
    return head._replace(block=head.block.edited(changes.remove, changes.add))


def _both(inner: Callable[[Link], Link], outer: Callable[[Link], Link]) -> Callable[[Link], Link]:
    return lambda link: outer(inner(link))
