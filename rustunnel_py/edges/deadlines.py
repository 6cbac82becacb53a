"""When a visitor's connection is looked at, and what it is too late for by then. The visitor acts on it.

A request pays for one store: the `due` that each phase begins with. Everything else is worked out at a look. How fast
something is, or whether it moves at all, is told from what passed between two looks, so whoever stalls right after
one is found out at the second.

    waits for                    at most                   then
    a head, or the next one      header, idle seconds      408; closed where nothing was said
    a request's body             a rate                    408
    the local service to take    as long as for a head,    504
      that body                    or for more of a reply
    a reply's head               answer seconds            504
    more of a reply              reply idle seconds        cut; an event stream may be silent
    a reply to be read           a rate                    aborted
    whether it is still there    half closed seconds       aborted; it ended its side, and nothing moves
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, TypeAlias

from rustunnel_py.edges.phase import Phase
from rustunnel_py.errors import Hop, HopError, HttpError

if TYPE_CHECKING:
    from rustunnel_py.edges.limits import EdgeLimits
    from rustunnel_py.edges.turn import Turn
    from rustunnel_py.edges.visitor import Visitor


class Ending(enum.Enum):
    """What ends without a word to the visitor. The values are codes, as captures have them."""

    IDLE = "idle"
    SLOW_READER = "slow-reader"
    LEFT = "visitor-left"


Overdue: TypeAlias = HttpError | HopError | Ending


def overdue(visitor: Visitor, now: float) -> Overdue | None:
    """What a deadline has really passed for; None where it only seemed so, and `next_due` says when to look again."""
    limits = visitor.limits
    phase, turn = visitor.phase, visitor.turn
    if now - visitor.full_since >= limits.send_window_seconds:
        return Ending.SLOW_READER if _reads_too_slowly(visitor, limits, now) else None
    if phase is Phase.HEAD:
        if visitor.holds_input:
            return HttpError(408, "slow-head", "The request's head took too long.")
        return Ending.IDLE
    if turn is None:
        return None
    if phase is Phase.BODY or phase is Phase.COLLECT:
        return _body_overdue(visitor, turn, limits, now)
    if phase is Phase.REPLY:
        return _reply_overdue(visitor, turn, limits, now)
    return None


def next_due(visitor: Visitor, now: float) -> float:
    limits = visitor.limits
    phase, turn = visitor.phase, visitor.turn
    due = visitor.full_since + limits.send_window_seconds
    if turn is None:
        return due
    if phase is Phase.BODY or phase is Phase.COLLECT:
        return min(due, now + limits.body_window_seconds)
    if phase is Phase.REPLY:
        if not turn.head_sent:
            due = min(due, visitor.since + limits.answer_seconds)
        elif _is_timed(visitor, turn):
            due = min(due, visitor.quiet_since + limits.reply_idle_seconds)
        if visitor.ended:
            due = min(due, visitor.quiet_since + limits.half_closed_seconds)
    return due


def quiet_seconds(visitor: Visitor, turn: Turn, now: float) -> float:
    """So long nothing of the turn has moved either way, as far as looks tell; the first one begins to count."""
    passed = turn.forwarded + turn.output + visitor.connection.delivered
    if passed != turn.passed:
        turn.passed = passed
        visitor.quiet_since = now
    return now - visitor.quiet_since


def _reply_overdue(visitor: Visitor, turn: Turn, limits: EdgeLimits, now: float) -> Overdue | None:
    if not turn.head_sent and now - visitor.since >= limits.answer_seconds:
        return _too_slow(limits)
    quiet = quiet_seconds(visitor, turn, now)
    if visitor.ended and quiet >= limits.half_closed_seconds:
        return Ending.LEFT
    if turn.head_sent and quiet >= limits.reply_idle_seconds and _is_timed(visitor, turn):
        return _stalled(limits)
    return None


def _body_overdue(visitor: Visitor, turn: Turn, limits: EdgeLimits, now: float) -> Overdue | None:
    if turn.waits_for_continue:
        return _too_slow(limits) if now - visitor.since >= limits.answer_seconds else None
    seen, turn.input_seen = turn.input_seen, 0
    if turn.blocked:
        return _taker_overdue(visitor, turn, limits, now)
    if seen >= limits.bytes_per_second * limits.body_window_seconds:
        return None
    return HttpError(408, "slow-body", "The request's body came too slowly.")


def _taker_overdue(visitor: Visitor, turn: Turn, limits: EdgeLimits, now: float) -> HopError | None:
    """It is the local service that does not take the body: so it has as long as for a reply."""
    quiet = quiet_seconds(visitor, turn, now)
    if not turn.head_sent:
        return _too_slow(limits) if quiet >= limits.answer_seconds else None
    return _stalled(limits) if quiet >= limits.reply_idle_seconds and _is_timed(visitor, turn) else None


def _is_timed(visitor: Visitor, turn: Turn) -> bool:
    """Whether the local service owes more of its reply: not while the visitor reads nothing, nor of events."""
    return visitor.full_since == math.inf and not turn.is_event_stream


def _too_slow(limits: EdgeLimits) -> HopError:
    message = f"The local service did not answer within {limits.answer_seconds:g} s."
    return HopError(Hop.LOCAL_SERVICE, 504, "too-slow", message)


def _stalled(limits: EdgeLimits) -> HopError:
    message = f"The local service sent nothing more of its reply for {limits.reply_idle_seconds:g} s."
    return HopError(Hop.LOCAL_SERVICE, 504, "stalled-reply", message)


def _reads_too_slowly(visitor: Visitor, limits: EdgeLimits, now: float) -> bool:
    """By what the peer acknowledged, since the last look: our buffer moves in large steps."""
    before, visitor.delivered = visitor.delivered, visitor.connection.delivered
    visitor.full_since = now
    return visitor.delivered - before < limits.bytes_per_second * limits.send_window_seconds
