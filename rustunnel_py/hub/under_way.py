"""Exchanges that have not ended: WebSockets, event streams, long polls. Looked for when somebody looks.

A recording comes into its ring at its end, so that the hot path keeps no list of those that go on. Who carries them
(an edge, a replay) can find them by going through what it has; that is asked for here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from rustunnel_py.hub.recording import OVERHEAD, Recording

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class UnderWay(NamedTuple):
    """One exchange. `tap` is what `watch` gave for it, `status` the reply's, 0 before there is one."""

    tap: object
    arrived: float  # on the pump's clock
    status: int


FindUnderWay: TypeAlias = "Callable[[str], Iterable[UnderWay]]"
"""`find(tunnel_id)`: the exchanges of a tunnel that have not ended."""


def newest(finders: Iterable[FindUnderWay], tunnel_id: str) -> list[UnderWay]:
    """Those that are recorded, newest first."""
    found = [one for find in finders for one in find(tunnel_id) if isinstance(one.tap, Recording)]
    return sorted(found, key=lambda one: one.arrived, reverse=True)


def with_id(finders: Iterable[FindUnderWay], tunnel_id: str, digits: str) -> UnderWay | None:
    """The one with this id, as 32 hex digits."""
    found = (one for find in finders for one in find(tunnel_id))
    return next((one for one in found if isinstance(one.tap, Recording) and one.tap.id == digits), None)


def so_far(one: UnderWay, now: float, *, contents: bool) -> Recording:
    """A recording of what there is of it, as if it ended now: its number is 0. The exchange itself goes on.

    Without `contents` it has no bodies and no messages, only their numbers: for a list, which would redact megabytes.
    """
    recording = one.tap
    assert isinstance(recording, Recording)
    seen = recording.copy()
    seen.seq = 0
    seen._status = one.status
    seen._milliseconds = (now - one.arrived) * 1000.0
    seen.size = recording.size + OVERHEAD
    # Of its own, since it is made ready in a thread where that takes long, and traffic goes on meanwhile.
    seen._request_body = recording.request_body if contents else b""
    seen._reply_body = bytes(recording._reply_body) if contents else b""
    if recording._rest is not None:
        messages = list(recording._rest.messages) if contents else []
        seen._rest = replace(recording._rest, messages=messages)
        seen.size += sum(len(message.content) for message in messages)
    seen.size += len(seen._request_body) + len(seen._reply_body)
    return seen
