"""A local service that echoes WebSocket messages, on the sans-I/O core of `websockets`; and a client of raw frames."""

from __future__ import annotations

import base64
import codecs
import hashlib
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MESSAGE_MAX = 32 * 1024 * 1024
KEY = base64.b64encode(b"sixteen bytes ok")


class _Message:
    """Fragments put together; text is judged as it comes (RFC 6455 §8.1)."""

    def __init__(self) -> None:
        self.parts = bytearray()
        self.is_text = False
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def add(self, frame: Frame) -> bool:
        """True where it is complete. Raises UnicodeDecodeError."""
        if frame.opcode is not Opcode.CONT:
            self.__init__()  # type: ignore[misc]
            self.is_text = frame.opcode is Opcode.TEXT
        if self.is_text:
            self._decoder.decode(bytes(frame.data), frame.fin)
        self.parts += frame.data
        return frame.fin


class _Cutter:
    """Cuts the input behind each frame, so that what comes in one segment is served as if it came in many."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0

    def pieces(self, data: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(data):
            if not self._left:
                self._head.append(data[at])
                yield data[at : at + 1]
                at += 1
                self._left = self._payload()
                continue
            piece = data[at : at + self._left]
            self._left -= len(piece)
            at += len(piece)
            yield piece

    def _payload(self) -> int:
        """Once the head is whole: the length behind it, and it is forgotten."""
        head = self._head
        if len(head) < 2:
            return 0
        short = head[1] & 0x7F
        more = {126: 2, 127: 8}.get(short, 0)
        if len(head) < 2 + more + (4 if head[1] & 0x80 else 0):
            return 0
        size = int.from_bytes(head[2 : 2 + more], "big") if more else short
        head.clear()
        return size


async def websocket_echo(stream: trio.SocketStream, read: bytes = b"") -> None:
    """Serve one connection: handshake with subprotocol, permessage-deflate and a cookie, then echo until the end.

    `read` is what came of it already.
    """
    protocol = ServerProtocol(
        select_subprotocol=lambda _, offered: Subprotocol("chat") if "chat" in offered else None,
        extensions=[ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True)],
        max_size=MESSAGE_MAX,
    )
    message, cutter = _Message(), _Cutter()
    early = bytearray(read)
    while b"\r\n\r\n" not in early:
        part = await stream.receive_some(65536)
        if not part:
            return
        early += part
    head, end, rest = bytes(early).partition(b"\r\n\r\n")
    protocol.receive_data(head + end)
    (request,) = protocol.events_received()
    assert isinstance(request, Request)
    response = protocol.accept(request)
    response.headers["Set-Cookie"] = "seen=1; Path=/"
    protocol.send_response(response)
    await _send(stream, protocol)
    while True:
        for piece in cutter.pieces(rest):
            protocol.receive_data(piece)
            _answer(protocol, message)
            await _send(stream, protocol)
        rest = await stream.receive_some(65536)
        if not rest:
            protocol.receive_eof()
            await _send(stream, protocol)
            return


def _answer(protocol: ServerProtocol, message: _Message) -> None:
    for event in protocol.events_received():
        if not isinstance(event, Frame) or event.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            continue
        try:
            if message.add(event):
                send = protocol.send_text if message.is_text else protocol.send_binary
                send(bytes(message.parts))
        except UnicodeDecodeError as error:
            protocol.fail(1007, f"{error.reason} at position {error.start}")


async def _send(stream: trio.SocketStream, protocol: ServerProtocol) -> None:
    for part in protocol.data_to_send():
        if part:
            await stream.send_all(part)
        else:
            await stream.send_eof()


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes | None = b"\1\2\3\4"
) -> bytes:
    """One client frame; mask None: unmasked."""
    size = len(payload)
    first = fin << 7 | rsv << 4 | opcode
    masked = 0x80 if mask is not None else 0
    if size < 126:
        head = bytes((first, masked | size))
    elif size < 65536:
        head = struct.pack(">BBH", first, masked | 126, size)
    else:
        head = struct.pack(">BBQ", first, masked | 127, size)
    if mask is None:
        return head + payload
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return head + mask + (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def close(code: int = 1000, reason: bytes = b"") -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


@dataclass(slots=True)
class Verdict:
    """What a conversation came to: the service's frames (long payloads by hash), and how the stream ended."""

    status: bytes = b""
    headers: list[bytes] = field(default_factory=list)
    frames: list[tuple[int, int, bytes]] = field(default_factory=list)
    rest: bytes = b""
    ended: str = ""


def handshake(host: str, *lines: str, target: str = "/ws") -> bytes:
    wanted = [
        f"GET {target} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {KEY.decode()}",
        *lines,
    ]
    return "".join(f"{line}\r\n" for line in wanted).encode() + b"\r\n"


async def converse(
    stream: trio.abc.HalfCloseableStream | trio.SSLStream[trio.SocketStream],
    host: str,
    pieces: Iterable[bytes],
    *lines: str,
    seconds: float = 60.0,
) -> Verdict:
    """Shake hands, send the pieces as they are (each a segment at least), read to the end."""
    received = bytearray()
    verdict = Verdict()

    async def send() -> None:
        try:
            for piece in pieces:
                await stream.send_all(piece)
        except trio.BrokenResourceError:
            pass  # the reader says how it ended

    async def read() -> None:
        verdict.ended = "cleanly"
        try:
            while part := await stream.receive_some(1 << 20):
                received.extend(part)
        except trio.BrokenResourceError:
            verdict.ended = "broken"

    with trio.fail_after(seconds):
        await stream.send_all(handshake(host, *lines))
        while b"\r\n\r\n" not in received:
            part = await stream.receive_some(65536)
            if not part:
                break
            received += part
        head, _, rest = bytes(received).partition(b"\r\n\r\n")
        verdict.status, *verdict.headers = head.split(b"\r\n")
        received[:] = rest
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(read)
    verdict.rest = _cut(received, verdict.frames)
    return verdict


def _cut(data: bytearray, frames: list[tuple[int, int, bytes]]) -> bytes:
    """Server frames out of `data`; returns what is left of an incomplete one."""
    view, at = memoryview(data), 0
    while len(view) - at >= 2:
        first, size = view[at], view[at + 1]
        start = at + 2
        if size == 126:
            size = int.from_bytes(view[start : start + 2], "big")
            start += 2
        elif size == 127:
            size = int.from_bytes(view[start : start + 8], "big")
            start += 8
        if start + size > len(view):
            break
        payload = bytes(view[start : start + size])
        frames.append((first, size, payload if size <= 125 else hashlib.sha256(payload).digest()))
        at = start + size
    return bytes(view[at:])
