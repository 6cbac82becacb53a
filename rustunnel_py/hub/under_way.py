"""Exchanges that have not ended: WebSockets, event streams, long polls. Looked for when somebody looks.

A recording comes into its ring at its end, so that the hot path keeps no list of those that go on. Who carries them
(an edge, a replay) can find them by going through what it has; that is asked for here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from rustunnel_py.hub.recording import Recording

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
    """`Recording.so_far`, of one that is recorded."""
    recording = one.tap
    assert isinstance(recording, Recording)
    return recording.so_far(one.status, now, contents=contents)
