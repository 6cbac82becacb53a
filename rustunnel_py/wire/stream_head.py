"""What a stream between our own server and agent begins with: which tunnel it is for, and who came.

In place of the connection id of the stock protocol, whose announcement goes another way (wire spec section 4) and so
costs a WebSocket message, a task's turn at both ends, and a wait for whichever of the two comes later. Two bytes, the
length in network order, then so many bytes: a JSON array of the tunnel's id and the visitor's address.
"""

from __future__ import annotations

import msgspec

from rustunnel_py.errors import WireError

LENGTH_SIZE = 2
HEAD_MAX = 512
"""Bytes behind the length; an id has 36, an address with its port 54."""


class BadStreamHead(WireError):
    """No head of a stream. The message quotes nothing of the input."""


class StreamHead(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`visitor` is for display only."""

    tunnel_id: str
    visitor: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(StreamHead).decode


def encode(head: StreamHead) -> bytes:
    """The first bytes of a stream."""
    text = _encode(head)
    return len(text).to_bytes(LENGTH_SIZE, "big") + text


def cut(data: bytes | bytearray) -> tuple[StreamHead, int] | None:
    """The head at the start of `data` and its size, or None while it is incomplete. Raises BadStreamHead."""
    if len(data) < LENGTH_SIZE:
        return None
    size = int.from_bytes(data[:LENGTH_SIZE], "big")
    if size > HEAD_MAX:
        raise BadStreamHead(f"a stream's head of {size} bytes, of at most {HEAD_MAX}")
    end = LENGTH_SIZE + size
    if len(data) < end:
        return None
    try:
        return _decode(data[LENGTH_SIZE:end]), end
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadStreamHead("a stream's head that is none") from None
