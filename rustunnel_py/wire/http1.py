"""HTTP/1.1 as a strict front door reads and writes it (RFC 9112, RFC 9110): the one page to import from.

A head is cut out of the input (`find_head_end`), judged (`judge_request`, `judge_reply`) and written anew
(`render_request`, `render_reply`); its bytes are never passed through. What is ambiguous is refused, so that
whatever is sent on is read in the same way by every parser behind it: CR LF only, no obs-fold, one Host, one framing,
bare digits.

    fields.py      header lines, Host, framing: grammar and bounds
    forwarding.py  what is not sent on, and what is said in its place
    request.py     reply.py        heads
    body.py        bodies by length, in chunks, until the end
"""

from __future__ import annotations

from rustunnel_py.wire.body import BodyReader, BodySink, chunk, last_chunk
from rustunnel_py.wire.fields import CHUNKED, REPLY_LIMITS, REQUEST_LIMITS, UNTIL_CLOSE, Headers, HeadLimits
from rustunnel_py.wire.forwarding import forwarded_lines, sendable_trailers
from rustunnel_py.wire.reply import (
    ReplyHead,
    check_upgraded,
    find_reply_head_end,
    judge_reply,
    render_reply,
    reply_framing,
    websocket_accept,
)
from rustunnel_py.wire.request import (
    BlockMemory,
    RequestBlock,
    RequestHead,
    find_head_end,
    judge_request,
    render_request,
    skip_leading_empty_lines,
)

__all__ = [
    "CHUNKED",
    "REPLY_LIMITS",
    "REQUEST_LIMITS",
    "UNTIL_CLOSE",
    "BlockMemory",
    "BodyReader",
    "BodySink",
    "HeadLimits",
    "Headers",
    "ReplyHead",
    "RequestBlock",
    "RequestHead",
    "check_upgraded",
    "chunk",
    "find_head_end",
    "find_reply_head_end",
    "forwarded_lines",
    "judge_reply",
    "judge_request",
    "last_chunk",
    "render_reply",
    "render_request",
    "reply_framing",
    "sendable_trailers",
    "skip_leading_empty_lines",
    "websocket_accept",
]
