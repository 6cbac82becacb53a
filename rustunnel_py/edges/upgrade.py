"""A WebSocket end to end: the local service's own 101 goes back, then the connection and the pipe are joined.

The request travels with its upgrade lines (`wire.http1.render_request`). Until the 101 is there, what the visitor
sends is held unpaid; anything but a 101 is an ordinary reply. After the join nothing of HTTP is left: no deadline
but the relay's own for what is half closed, half-close both ways, back-pressure from one side to the other.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rustunnel_py.errors import Hop, HopError, HttpError
from rustunnel_py.transport.relay import join
from rustunnel_py.wire.http1 import check_upgraded, render_reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.transport.relay import Clock, RelayEnd, Tap
    from rustunnel_py.wire.http1 import ReplyHead, RequestHead
    from rustunnel_py.wire.sink import Pipe


def refused_switch(request: RequestHead, reply: ReplyHead) -> HopError | None:
    """Why this 101 may not be passed on (H55): what the visitor is told instead."""
    try:
        check_upgraded(request, reply)
    except HttpError as error:
        return HopError(Hop.LOCAL_SERVICE, 502, error.code, error.detail)
    return None


def switch(
    clock: Clock,
    connection: Connection,
    pipe: Pipe,
    reply: ReplyHead,
    early: bytes,
    *,
    ended: bool,
    on_end: Callable[[RelayEnd], None],
    tap: Tap | None = None,
) -> None:
    """Send the 101 and join. `early`: what came before it, not yet credited; `ended`: the visitor's end came, too."""
    connection.send(render_reply(reply, body=0, minor=1, close=False))
    connection.due = math.inf
    join(clock, connection, pipe, on_end=on_end, tap=tap)
    if early:
        connection.sink.data(memoryview(early))
    if ended:
        connection.sink.eof()
