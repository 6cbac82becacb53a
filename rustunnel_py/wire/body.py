"""Bodies: one cut out of the bytes behind its head, and chunks written (RFC 9112 §6, §7).

    chunked = *( size [ ext ] CRLF data CRLF ) 1*"0" [ ext ] CRLF *trailer CRLF

Read strictly: sizes are bare hexadecimal digits, every line ends with CR LF. Seen from behind the data, what follows a
chunk is always `CRLF size [ext] CRLF`, so one expression eats the end of one chunk and the head of the next. Where that
does not match at once (a split, an extension, an error) the line is gathered, bounded, and judged when complete; a
gathered line that can no longer become a legal one is refused at once.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from rustunnel_py.errors import HttpError
from rustunnel_py.wire.fields import CHUNKED, TCHAR, UNTIL_CLOSE, VALUE, find_illegal, read_fields
from rustunnel_py.wire.forwarding import sendable_trailers

if TYPE_CHECKING:
    from rustunnel_py.wire.fields import Headers, HeadLimits
    from rustunnel_py.wire.sink import Buffer

# A chunk of 4 GiB is nobody's buffer, and 32 bits is where careless readers overflow (H11).
CHUNK_MAX = 0xFFFF_FFFF
# Of all chunk extensions of one body together: real ones are a signature or a checksum (H14).
EXTENSION_BUDGET = 16 * 1024
_SIZE_LINE_ROOM = EXTENSION_BUDGET + 2 + 16 + 2

# No possessive group here: before CPython 3.11.5 the failed last round of one leaves its bytes eaten.
_QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[' + VALUE + rb'])*"'
_EXTENSION = rb";[" + TCHAR + rb"]++(?:=(?:[" + TCHAR + rb"]++|" + _QUOTED + rb"))?"
_FIRST = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n(\r\n)?")
_NEXT = re.compile(rb"\r\n([0-9A-Fa-f]{1,16})\r\n(\r\n)?")
_LINE = re.compile(rb"\r\n([0-9A-Fa-f]{1,16})((?:" + _EXTENSION + rb")*)\r\n")
_LINE_BEGUN = re.compile(rb"\r?|\r\n[0-9A-Fa-f]{0,16}|\r\n[0-9A-Fa-f]{1,16}(?:;[" + VALUE + rb"]*+)?\r?")


class BodySink(Protocol):
    """What hears a body. The caller of `feed` sees to what follows from an HttpError."""

    def data(self, data: memoryview) -> None:
        """Payload, never empty, valid during the call only."""

    def end(self, trailers: Headers) -> None:
        """The body is complete; the trailers are those that may be sent on (H18)."""


class BodyReader:
    """Cuts one body out of the bytes that follow its head: a length, chunks with trailers, or all until the end.

    `feed(view)` hands payload to the sink as it comes and returns how many bytes of `view` it used (the rest
    belongs to the next message); `done` tells when the body is complete. Raises HttpError for what is malformed
    (H10–H19); its status is what a visitor is answered, a link takes it for a cut reply.

    A body of length 0 is `done` from the start, and its sink hears nothing.
    """

    __slots__ = ("_fresh", "_left", "_limits", "_line", "_mode", "_sink", "_spent", "_stopped", "_trailers", "done")

    def __init__(self, body: int, sink: BodySink, limits: HeadLimits) -> None:
        self.done = body == 0
        self._mode = body if body < 0 else 0
        self._left = body if body > 0 else 0  # of the body, or of the chunk
        self._sink = sink
        self._limits = limits
        self._stopped = False
        self._fresh = body == CHUNKED  # no chunk yet
        self._line = b""  # the gathered part of a size line (with the CRLF before it) or of the trailers
        self._trailers = False
        self._spent = 0

    def __repr__(self) -> str:
        kind = {CHUNKED: "chunked", UNTIL_CLOSE: "until close"}.get(self._mode, "length")
        return f"<BodyReader {kind} left={self._left} done={self.done}>"

    @property
    def sink(self) -> BodySink:
        return self._sink

    def feed(self, data: memoryview) -> int:
        if self.done or self._stopped or not data:
            return 0
        if self._mode == CHUNKED:
            return self._feed_chunks(data)
        size = len(data)
        if self._mode == UNTIL_CLOSE:
            self._sink.data(data)
            return size
        left = self._left
        if size < left:
            self._left = left - size
            self._sink.data(data)
            return size
        self._left = 0
        self._sink.data(data if size == left else data[:left])
        self._end(())
        return left

    def end_of_input(self) -> bool:
        """The stream ended: is the body whole? A body that runs until the end is, and its sink hears `end` now."""
        if self._mode == UNTIL_CLOSE and not self.done:
            self._end(())
        return self.done

    def stop(self) -> None:
        """Called by a sink that is gone: nothing more is delivered, `feed` uses nothing more."""
        self._stopped = True

    def _end(self, trailers: Headers) -> None:
        if not self._stopped:
            self.done = True
            self._sink.end(trailers)

    def _feed_chunks(self, data: memoryview) -> int:
        at = 0
        size = len(data)
        while at < size and not self.done and not self._stopped:
            if self._left:
                at = self._feed_payload(data, at)
            elif self._trailers:
                at = self._gather_trailers(data, at)
            else:
                match = None if self._line else (_FIRST if self._fresh else _NEXT).match(data, at)
                if match is None:
                    at = self._gather_size(data, at)
                elif self._begin_chunk(match[1]):
                    at = match.end(1) + 2
                elif match[2]:
                    at = match.end()
                    self._end(())
                else:
                    at = match.end()
                    self._trailers = True
        return at

    def _feed_payload(self, data: memoryview, at: int) -> int:
        end = min(len(data), at + self._left)
        self._left -= end - at
        self._sink.data(data[at:end])
        return end

    def _begin_chunk(self, digits: bytes) -> int:
        self._fresh = False
        self._left = size = int(digits, 16)
        if size > CHUNK_MAX:
            raise HttpError(400, "chunk-too-large", "A chunk is larger than 4 GiB.")
        return size

    def _gather_size(self, data: memoryview, at: int) -> int:
        """The slow way over one size line; returns where to go on."""
        if self._fresh and not self._line:
            self._line = b"\r\n"
        known = len(self._line)
        line = self._line + bytes(data[at : at + _SIZE_LINE_ROOM])
        end = line.find(b"\n", 2) + 1
        if not end:
            if _LINE_BEGUN.fullmatch(line) is None:
                raise _bad_size_line()
            if len(line) > _SIZE_LINE_ROOM - self._spent:
                raise _over_extended()
            self._line = line
            return at + len(line) - known
        match = _LINE.fullmatch(line, 0, end)
        if match is None:
            raise _bad_size_line()
        self._spent += len(match[2])
        if self._spent > EXTENSION_BUDGET:
            raise _over_extended()
        self._line = b""
        self._trailers = not self._begin_chunk(match[1])
        return at + end - known

    def _gather_trailers(self, data: memoryview, at: int) -> int:
        limits = self._limits
        known = len(self._line)
        block = self._line + bytes(data[at : at + limits.total + 1 - known])
        end = 2 if block.startswith(b"\r\n") else block.find(b"\r\n\r\n", max(0, known - 3)) + 4
        if end == 3:
            illegal = find_illegal(block, known)
            if illegal is not None:
                raise illegal
            if len(block) > limits.total:
                raise HttpError(431, "trailers-too-large", f"The trailers are larger than {limits.total} bytes.")
            self._line = block
            return at + len(block) - known
        trailers = tuple(read_fields(block[:end], limits))
        self._line = b""
        self._end(sendable_trailers(trailers))
        return at + end - known


def _bad_size_line() -> HttpError:
    return HttpError(400, "bad-chunk", "A chunk's size line or the line end behind its data is malformed.")


def _over_extended() -> HttpError:
    return HttpError(400, "chunk-extensions", f"Chunk extensions of more than {EXTENSION_BUDGET} bytes.")


def chunk(data: Buffer) -> tuple[bytes, bytes]:
    """What to write before and after `data` to make it one chunk; `data` must not be empty."""
    return b"%x\r\n" % len(data), b"\r\n"


def last_chunk(trailers: Headers = ()) -> bytes:
    """The end of a chunked body, with the trailers that may be sent on (H18)."""
    if not trailers:
        return b"0\r\n\r\n"
    lines = [b"%b: %b\r\n" % pair for pair in sendable_trailers(trailers)]
    return b"0\r\n" + b"".join(lines) + b"\r\n"
