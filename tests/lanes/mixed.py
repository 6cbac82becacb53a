"""A local service for a mixed load, and what its visitors must hear. Everything names a tag: whose it is shows.

    python -m tests.lanes.mixed

Prints its port. It answers

    GET /tag/LINES/TAG      the tag over and over; with a body of tags 409 if one of them is another
    PUT /                   the SHA-256 of the body, which may be in chunks
    GET /size/N             N bytes of a pattern
    GET /events/N/TAG       N events that name the tag, PAUSE_SECONDS apart
    GET /echo with Upgrade  WebSocket frames, echoed
    ECHO                    as a first line: whatever follows, to its end
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

import trio

PAUSE_SECONDS = 0.1
PATTERN = bytes((i * 31 + (i >> 8)) & 255 for i in range(65536))
HEAD_MAX = 65536
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


class Cut(Exception):
    """The other side ended before it was through."""


class Reader:
    """Reads lines and lengths; raises Cut."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._held = bytearray()

    async def until(self, mark: bytes) -> bytes:
        while (at := self._held.find(mark)) < 0:
            if len(self._held) > HEAD_MAX:
                raise Cut("no end of a line")
            await self._more()
        return self._take(at + len(mark))

    async def exactly(self, size: int) -> bytes:
        while len(self._held) < size:
            await self._more()
        return self._take(size)

    async def some(self, most: int) -> bytes:
        if not self._held:
            await self._more()
        return self._take(min(most, len(self._held)))

    def put_back(self, data: bytes) -> None:
        self._held[:0] = data

    def _take(self, size: int) -> bytes:
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken

    async def _more(self) -> None:
        try:
            part = await self._stream.receive_some(65536)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Cut("reset") from error
        if not part:
            raise Cut("ended")
        self._held += part


@dataclass(frozen=True, slots=True)
class Head:
    first: bytes
    headers: dict[bytes, bytes]

    @property
    def status(self) -> int:
        return int(self.first[9:12])


async def read_head(reader: Reader) -> Head:
    first, *lines = (await reader.until(b"\r\n\r\n"))[:-4].split(b"\r\n")
    pairs = (line.partition(b":") for line in lines)
    return Head(first, {name.lower(): value.strip() for name, _, value in pairs})


async def read_body(reader: Reader, head: Head, *, digest: hashlib._Hash | None = None) -> bytes:
    """All of a body; with `digest` it goes there, and nothing is kept."""
    kept = bytearray()

    async def pass_on(size: int) -> None:
        if size < 0:  # what a TCP tunnel brings may be anything
            raise Cut("a body of less than nothing")
        while size:
            part = await reader.some(size)
            size -= len(part)
            if digest is None:
                kept.extend(part)
            else:
                digest.update(part)

    if head.headers.get(b"transfer-encoding") == b"chunked":
        while size := int(await reader.until(b"\r\n"), 16):
            await pass_on(size)
            await reader.exactly(2)
        while await reader.until(b"\r\n") != b"\r\n":
            pass  # trailers
    else:
        await pass_on(int(head.headers.get(b"content-length", b"0")))
    return bytes(kept)


def body_of(tag: bytes, lines: int) -> bytes:
    return (tag + b"\n") * lines


def pattern_digest(size: int) -> bytes:
    digest = hashlib.sha256()
    while size:
        part = PATTERN[:size]
        digest.update(part)
        size -= len(part)
    return digest.hexdigest().encode()


def accept_of(key: bytes) -> bytes:
    return base64.b64encode(hashlib.sha1(key + _GUID).digest())


def frame(payload: bytes, mask: bytes = b"", opcode: int = 2) -> bytes:
    """One WebSocket frame of up to 65 535 bytes."""
    size, bit = len(payload), 0x80 if mask else 0
    length = bytes((bit | size,)) if size < 126 else bytes((bit | 126,)) + size.to_bytes(2, "big")
    return bytes((0x80 | opcode,)) + length + mask + masked(payload, mask)


def masked(payload: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[at & 3] for at, byte in enumerate(payload)) if mask else payload


async def read_frame(reader: Reader) -> tuple[int, bytes]:
    first, second = await reader.exactly(2)
    size = second & 0x7F
    if size == 126:
        size = int.from_bytes(await reader.exactly(2), "big")
    mask = await reader.exactly(4) if second & 0x80 else b""
    return first & 15, masked(await reader.exactly(size), mask)


async def _connection(stream: trio.SocketStream) -> None:
    reader = Reader(stream)
    try:
        async with stream:
            while True:
                head = await read_head(reader) if not await _is_echo(reader, stream) else None
                if head is None or not await _answer(reader, stream, head):
                    return
    except (Cut, trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    except (ValueError, IndexError, KeyError):
        pass  # no request of ours: some come here from hostile visitors, in canonical form


async def _is_echo(reader: Reader, stream: trio.SocketStream) -> bool:
    first = await reader.exactly(5)
    if first != b"ECHO\n":
        reader.put_back(first)
        return False
    try:
        while True:
            await stream.send_all(await reader.some(65536))
    except Cut:
        await stream.send_eof()
    return True


async def _answer(reader: Reader, stream: trio.SocketStream, head: Head) -> bool:
    """Whether the connection goes on."""
    method, target, _ = head.first.split(b" ")
    _, kind, *rest = target.split(b"/")
    if b"upgrade" in head.headers:
        await _echo_frames(reader, stream, head.headers[b"sec-websocket-key"])
        return False
    if kind in (b"size", b"events"):
        await read_body(reader, head)  # whoever asks; what was left of it would be taken for the next request
    if method == b"PUT":
        digest = hashlib.sha256()
        await read_body(reader, head, digest=digest)
        await _reply(stream, 200, digest.hexdigest().encode())
    elif kind == b"tag":
        body = await read_body(reader, head)
        foreign = body != body_of(rest[1], len(body) // (len(rest[1]) + 1))
        await _reply(stream, 409 if foreign else 200, b"" if foreign else body_of(rest[1], int(rest[0])))
    elif kind == b"size":
        size = int(rest[0])
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while size:
            part = PATTERN[:size]
            await stream.send_all(part)
            size -= len(part)
    elif kind == b"events":
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for number in range(int(rest[0])):
            event = b"data: %d %b\n\n" % (number, rest[1])
            await stream.send_all(b"%x\r\n%b\r\n" % (len(event), event))
            await trio.sleep(PAUSE_SECONDS)
        await stream.send_all(b"0\r\n\r\n")
    else:
        await read_body(reader, head)
        await _reply(stream, 404, b"")
    return True


async def _reply(stream: trio.SocketStream, status: int, body: bytes) -> None:
    await stream.send_all(b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))


async def _echo_frames(reader: Reader, stream: trio.SocketStream, key: bytes) -> None:
    lines = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    await stream.send_all(lines + b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept_of(key))
    while True:
        opcode, payload = await read_frame(reader)
        await stream.send_all(frame(payload, opcode=opcode))
        if opcode == 8:
            return


async def _serve() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1024)  # noqa: TID251  (a service of a lane)
    print(listeners[0].socket.getsockname()[1], flush=True)
    await trio.serve_listeners(_connection, listeners)


if __name__ == "__main__":
    trio.run(_serve)
