"""An exchange as kept: request and reply, clipped bodies, timings, and how two of them differ.

A `Capture` is what everybody but the ring sees: already redacted, the same whether it comes from memory or from the
store. Treat it as immutable; it is no frozen dataclass because thousands a second are made.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003  (dataclass field types are public)
from typing import TypeAlias

from rustunnel_py.model.tunnel import Peer  # noqa: TC001  (dataclass field types are public)

Headers: TypeAlias = "tuple[tuple[bytes, bytes], ...]"
"""Names in the case they came in, values, in order."""


class Kind(enum.IntEnum):
    """What an exchange was. The numbers are in the store."""

    HTTP = 0
    WEBSOCKET = 1
    EVENTS = 2  # text/event-stream


@dataclass(slots=True)
class Message:
    """One WebSocket message or event. `content` is what fitted under the cap of its capture."""

    forth: bool  # from the visitor to the local service
    kind: str  # text, binary, ping, pong, close, event
    size: int  # bytes, the true number
    at_ms: float  # since the request's head arrived
    content: bytes
    compressed: bool = False  # permessage-deflate: the content is as it was on the wire


@dataclass(slots=True, kw_only=True)
class Capture:
    """One exchange. Byte counts are those of the bodies as they passed, whatever was kept of them.

    `origin` is the id of the capture that this one replays; `imported` says that it never passed here. Times are in
    milliseconds since the request's head was complete, None for what never happened; `agent_ms` is the time between
    the hand-over to the agent and the reply's head. `hop` and `code` name what failed and how (`errors.HopError`);
    a code without a hop is the visitor's own doing.
    `request_withheld` and `response_withheld`: the body was left out because it could not be redacted.
    """

    seq: int = 0  # order of capture on this server, over all tunnels; a cursor
    id: str  # UUID; the visit's id on pages and in logs without its dashes
    tunnel_id: str
    connection_id: str
    captured_at: datetime
    visitor: Peer
    scheme: str = "http"
    method: str
    path: str  # with the query; latin-1 of the bytes on the wire
    minor: int = 1
    request_headers: Headers
    request_trailers: Headers = ()
    request_body: bytes = b""
    request_bytes: int = 0
    request_withheld: bool = False
    status: int
    reason: str = ""
    response_headers: Headers = ()
    response_trailers: Headers = ()
    response_body: bytes = b""
    response_bytes: int = 0
    response_withheld: bool = False
    request_clipped: bool = False
    response_clipped: bool = False
    queue_ms: float | None = None
    agent_ms: float | None = None
    first_byte_ms: float | None = None
    duration_ms: float = 0.0
    hop: str | None = None
    code: str | None = None
    kind: Kind = Kind.HTTP
    messages: tuple[Message, ...] = ()
    messages_forth: int = 0  # how many there were, also past the cap
    messages_back: int = 0
    messages_unwatched: bool = False  # too many too fast: the counts are "at least"
    origin: str | None = None
    imported: bool = False
    pinned: bool = False

    @property
    def is_open(self) -> bool:
        """It has not ended: this is what there is of it so far, without a number, and `status` 0 before a reply."""
        return not self.seq

    @property
    def host(self) -> str:
        """The Host of the request, as it came."""
        return next((value.decode("latin-1") for name, value in self.request_headers if name.lower() == b"host"), "")


@dataclass(frozen=True, slots=True)
class HeaderChange:
    """All values of one header on either side; an empty tuple: it is not there."""

    name: str  # lower case
    old: tuple[bytes, ...]
    new: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class BodyChange:
    """How two bodies differ. `at` is the first byte that does, None where they are equal; both may be clipped."""

    old_bytes: int
    new_bytes: int
    at: int | None
    comparable: bool  # False: one of them is clipped or withheld, and what is there does not differ


@dataclass(frozen=True, slots=True)
class Difference:
    """What `new` has otherwise than `old`; None for what is the same."""

    method: tuple[str, str] | None
    path: tuple[str, str] | None
    status: tuple[int, int] | None
    request_headers: tuple[HeaderChange, ...]
    response_headers: tuple[HeaderChange, ...]
    request_body: BodyChange | None
    response_body: BodyChange | None
    duration_ms: tuple[float, float]


def difference(old: Capture, new: Capture) -> Difference:
    """Compare two captures as they are shown: what is redacted in both counts as equal."""
    return Difference(
        method=None if old.method == new.method else (old.method, new.method),
        path=None if old.path == new.path else (old.path, new.path),
        status=None if old.status == new.status else (old.status, new.status),
        request_headers=_header_changes(old.request_headers, new.request_headers),
        response_headers=_header_changes(old.response_headers, new.response_headers),
        request_body=_body_change(
            old.request_body,
            new.request_body,
            old.request_bytes,
            new.request_bytes,
            old.request_clipped or new.request_clipped or old.request_withheld or new.request_withheld,
        ),
        response_body=_body_change(
            old.response_body,
            new.response_body,
            old.response_bytes,
            new.response_bytes,
            old.response_clipped or new.response_clipped or old.response_withheld or new.response_withheld,
        ),
        duration_ms=(old.duration_ms, new.duration_ms),
    )


def _header_changes(old: Headers, new: Headers) -> tuple[HeaderChange, ...]:
    before, after = _by_name(old), _by_name(new)
    names = [*before, *(name for name in after if name not in before)]
    return tuple(
        HeaderChange(name, tuple(before.get(name, ())), tuple(after.get(name, ())))
        for name in names
        if before.get(name) != after.get(name)
    )


def _by_name(headers: Headers) -> dict[str, list[bytes]]:
    values: dict[str, list[bytes]] = {}
    for name, value in headers:
        values.setdefault(name.decode("latin-1").lower(), []).append(value)
    return values


def _body_change(old: bytes, new: bytes, old_bytes: int, new_bytes: int, partial: bool) -> BodyChange | None:
    if old == new and old_bytes == new_bytes:
        return BodyChange(old_bytes, new_bytes, None, comparable=False) if partial else None
    return BodyChange(old_bytes, new_bytes, _first_difference(old, new), comparable=True)


def _first_difference(old: bytes, new: bytes) -> int:
    """By halves: comparing slices runs in C, looking at bytes one by one does not."""
    low, high = 0, min(len(old), len(new))
    while low < high:
        middle = (low + high + 1) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
