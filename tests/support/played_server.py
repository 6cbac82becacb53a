"""The server's side of the rustunnel wire, played by a test: TLS, WebSocket and yamux by hand.

It shares no code with the package, so that the agent is held to the wire spec and not to our own machines.
A test takes each connection as it comes (`next_control`, `next_data`) and says itself what the server says.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import json
import ssl
import struct
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8

Ended = (trio.BrokenResourceError, trio.ClosedResourceError, EOFError)


@dataclass(frozen=True)
class Identity:
    """A self-signed certificate for localhost, and the pin of its key."""

    certificate: bytes
    key: bytes
    pin: str

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            chain = Path(folder) / "chain.pem"
            chain.write_bytes(self.key + self.certificate)
            context.load_cert_chain(chain)
        return context


def make_identity(name: str = "localhost") -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return Identity(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        "sha256:" + hashlib.sha256(spki).hexdigest(),
    )


class Bytes:
    """What comes on a stream, read by count."""

    def __init__(self, stream: trio.abc.Stream, kept: bytes = b"") -> None:
        self.stream = stream
        self._kept = bytearray(kept)
        self._sending = trio.Lock()
        self.count = 0  # bytes that came

    async def send(self, data: bytes) -> None:
        async with self._sending:
            await self.stream.send_all(data)

    async def exactly(self, size: int) -> bytes:
        while len(self._kept) < size:
            await self._more()
        taken = bytes(self._kept[:size])
        del self._kept[:size]
        return taken

    async def head(self) -> bytes:
        while b"\r\n\r\n" not in self._kept:
            await self._more()
        return await self.exactly(self._kept.index(b"\r\n\r\n") + 4)

    async def _more(self) -> None:
        more = await self.stream.receive_some(65536)
        if not more:
            raise EOFError
        self.count += len(more)
        self._kept += more


@dataclass
class Upgrade:
    """A WebSocket upgrade request as it came."""

    path: str
    headers: dict[str, str]
    source: Bytes

    async def accept(self, more: bytes = b"") -> None:
        """Answer 101; `more` follows in the same segment."""
        key = self.headers["sec-websocket-key"]
        answer = base64.b64encode(hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        await self.source.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + answer + b"\r\n\r\n" + more
        )

    async def refuse(self, status: int, more: bytes = b"") -> None:
        await self.source.send(b"HTTP/1.1 %d No\r\n%sContent-Length: 0\r\n\r\n" % (status, more))

    async def cut(self) -> None:
        """Drop the TCP connection, without TLS's or WebSocket's goodbye."""
        stream = self.source.stream
        assert isinstance(stream, trio.SSLStream)
        await trio.aclose_forcefully(stream)


def websocket_frame(opcode: int, payload: bytes, *, final: bool = True, mask: bytes | None = None) -> bytes:
    first = (0x80 if final else 0) | opcode
    masked = 0x80 if mask is not None else 0
    if len(payload) < 126:
        head = struct.pack("!BB", first, masked | len(payload))
    elif len(payload) < 65536:
        head = struct.pack("!BBH", first, masked | 126, len(payload))
    else:
        head = struct.pack("!BBQ", first, masked | 127, len(payload))
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


async def read_websocket(source: Bytes) -> tuple[int, bytes]:
    """One frame of a client: its opcode and unmasked payload. The mask has to be there."""
    first, second = await source.exactly(2)
    assert second & 0x80, "a client masks its frames"
    size = second & 0x7F
    if size == 126:
        (size,) = struct.unpack("!H", await source.exactly(2))
    elif size == 127:
        (size,) = struct.unpack("!Q", await source.exactly(8))
    mask = await source.exactly(4)
    payload = await source.exactly(size)
    key = (mask * (size // 4 + 1))[:size]
    return first & 0x0F, (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(size)


@dataclass
class PlayedControl:
    """One control socket, after the 101. Frames are dicts, as they stand in the JSON."""

    upgrade: Upgrade
    auth: dict[str, Any] = field(default_factory=dict)
    answer_pings: bool = True
    session_id: str = ""

    async def receive(self) -> dict[str, Any]:
        """The next frame; pings are answered on the way, a close frame or the end raises EOFError."""
        while True:
            opcode, payload = await read_websocket(self.upgrade.source)
            if opcode == 8:
                raise EOFError("close frame")
            if opcode in (9, 10):
                continue
            assert opcode == 2, "control frames are binary messages"
            frame: dict[str, Any] = json.loads(payload)
            if frame["type"] == "ping":
                if self.answer_pings:
                    await self.send({"type": "pong", "timestamp": frame["timestamp"]})
                continue
            return frame

    async def expect(self, kind: str) -> dict[str, Any]:
        frame = await self.receive()
        assert frame["type"] == kind, frame
        return frame

    async def send(self, frame: dict[str, Any]) -> None:
        await self.send_raw(websocket_frame(2, json.dumps(frame).encode()))

    async def send_raw(self, data: bytes) -> None:
        await self.upgrade.source.send(data)

    async def welcome(self, session_id: str = "5d9f2e3c-0000-4000-8000-000000000001", **more: Any) -> None:
        """Take `auth` and accept it; `more` are the fields that stock servers do not send."""
        self.auth = await self.expect("auth")
        self.session_id = session_id
        await self.send({"type": "auth_ok", "session_id": session_id, "server_version": "0.7.0", **more})

    async def register(self, tunnel_id: str, public_url: str, port: int | None = None) -> dict[str, Any]:
        """Take one `register_tunnel` and grant it."""
        wish = await self.expect("register_tunnel")
        await self.send(
            {
                "type": "tunnel_registered",
                "request_id": wish["request_id"],
                "tunnel_id": tunnel_id,
                "public_url": public_url,
                "assigned_port": port,
            }
        )
        return wish

    async def announce(self, conn_id: str, protocol: str, **more: Any) -> None:
        await self.send(
            {
                "type": "new_connection",
                "conn_id": conn_id,
                "client_addr": "203.0.113.9:4711",
                "protocol": protocol,
                **more,
            }
        )


@dataclass(frozen=True)
class Frame:
    type: int
    flags: int
    stream: int
    length: int
    payload: bytes = b""


class PlayedData:
    """One data socket: yamux by hand, as the client of the session. `run` reads; the rest looks at what came."""

    def __init__(self, upgrade: Upgrade, *, raw: bool, answer_pings: bool = True) -> None:
        self.upgrade = upgrade
        self.raw = raw
        self.answer_pings = answer_pings
        self.frames: list[Frame] = []
        self.received: dict[int, bytearray] = {}
        self.flags: dict[int, int] = {}
        self.ended = False
        self._changed = trio.Condition()
        self._source = upgrade.source
        self._payloads = bytearray()

    async def run(self) -> None:
        try:
            while True:
                await self._take(await self._read_frame())
        except Ended:
            pass
        finally:
            with trio.CancelScope(shield=True):
                async with self._changed:
                    self.ended = True
                    self._changed.notify_all()

    async def _exactly(self, size: int) -> bytes:
        if self.raw:
            return await self._source.exactly(size)
        while len(self._payloads) < size:
            opcode, payload = await read_websocket(self._source)
            if opcode == 8:
                raise EOFError
            if opcode == 2:
                self._payloads += payload
        taken = bytes(self._payloads[:size])
        del self._payloads[:size]
        return taken

    async def _read_frame(self) -> Frame:
        version, kind, flags, stream, length = struct.unpack("!BBHII", await self._exactly(12))
        assert version == 0
        payload = await self._exactly(length) if kind == DATA else b""
        return Frame(kind, flags, stream, length, payload)

    async def _take(self, frame: Frame) -> None:
        if frame.type == PING and frame.flags & SYN:
            if self.answer_pings:
                await self.send(PING, ACK, 0, frame.length)
            return
        async with self._changed:
            self.frames.append(frame)
            if frame.stream:
                self.received.setdefault(frame.stream, bytearray()).extend(frame.payload)
                self.flags[frame.stream] = self.flags.get(frame.stream, 0) | frame.flags
            self._changed.notify_all()
        if frame.type == DATA and frame.payload:
            await self.send(WINDOW_UPDATE, 0, frame.stream, len(frame.payload))

    async def send(self, kind: int, flags: int, stream: int, length: int, payload: bytes = b"") -> None:
        await self.send_raw(struct.pack("!BBHII", 0, kind, flags, stream, length) + payload)

    async def send_raw(self, data: bytes) -> None:
        with contextlib.suppress(*Ended):
            await self._source.send(data if self.raw else websocket_frame(2, data))

    async def open(self, stream: int, conn_id: str, payload: bytes = b"") -> None:
        first = bytes.fromhex(conn_id.replace("-", ""))
        await self.send(DATA, SYN, stream, 16, first)
        if payload:
            await self.write(stream, payload)

    async def write(self, stream: int, payload: bytes, flags: int = 0) -> None:
        await self.send(DATA, flags, stream, len(payload), payload)

    async def write_all(self, stream: int, payload: bytes) -> None:
        """All of `payload`, as the agent's window allows."""
        window, seen = 262_144 - 16, 0
        for at in range(0, len(payload), 16384):
            piece = payload[at : at + 16384]
            while window < len(piece):
                await self.until(lambda seen=seen: len(self.frames) > seen)  # type: ignore[misc]
                window += sum(f.length for f in self.frames[seen:] if f.type == WINDOW_UPDATE and f.stream == stream)
                seen = len(self.frames)
            window -= len(piece)
            await self.write(stream, piece)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            while not condition():
                await self._changed.wait()

    async def read(self, stream: int, size: int) -> bytes:
        """The next `size` bytes of a stream."""
        await self.until(lambda: len(self.received.get(stream, b"")) >= size or self.ended)
        kept = self.received.get(stream, bytearray())
        assert len(kept) >= size, f"the data socket ended; stream {stream} brought {bytes(kept)!r}"
        taken = bytes(kept[:size])
        del kept[:size]
        return taken

    async def flagged(self, stream: int, flag: int) -> None:
        """Wait until the agent sent this flag on the stream."""
        await self.until(lambda: bool(self.flags.get(stream, 0) & flag) or self.ended)
        assert self.flags.get(stream, 0) & flag


class PlayedServer:
    """A control port. Connections are handed to the test in the order in which their upgrades came."""

    def __init__(self, nursery: trio.Nursery, identity: Identity, port: int) -> None:
        self.identity = identity
        self.port = port
        self.handshakes = 0
        self.connections = 0
        self.sockets: list[trio.SocketStream] = []
        self.early: list[bytes] = []  # the request lines that came
        self.application_bytes = 0  # of heads, also of those that did not become complete
        self.context = identity.context()
        self._nursery = nursery
        self._send_control, self._controls = trio.open_memory_channel[Upgrade](100)
        self._send_data, self._datas = trio.open_memory_channel[Upgrade](100)

    def channels_close(self) -> None:
        for channel in (self._send_control, self._controls, self._send_data, self._datas):
            channel.close()

    async def next_upgrade(self) -> Upgrade:
        """The next `/_control` upgrade, not yet answered."""
        return await self._controls.receive()

    async def next_control(self) -> PlayedControl:
        upgrade = await self.next_upgrade()
        await upgrade.accept()
        return PlayedControl(upgrade)

    async def next_data_upgrade(self) -> Upgrade:
        return await self._datas.receive()

    async def next_data(self, *, raw: bool, answer_pings: bool = True) -> PlayedData:
        upgrade = await self.next_data_upgrade()
        await upgrade.accept()
        return self.follow(upgrade, raw=raw, answer_pings=answer_pings)

    def follow(self, upgrade: Upgrade, *, raw: bool, answer_pings: bool = True) -> PlayedData:
        """Read a data socket whose upgrade was accepted."""
        data = PlayedData(upgrade, raw=raw, answer_pings=answer_pings)
        self._nursery.start_soon(data.run)
        return data

    def replace(self, identity: Identity) -> None:
        """Be somebody else from now on, and drop everybody."""
        self.context = identity.context()
        self.drop_all()

    def drop_all(self) -> None:
        for stream in self.sockets:
            stream.socket.close()
        self.sockets.clear()

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self.sockets.append(stream)
        tls = trio.SSLStream(stream, self.context, server_side=True, https_compatible=True)
        try:
            await tls.do_handshake()
            self.handshakes += 1
            source = Bytes(tls)
            try:
                lines = (await source.head()).decode("latin-1").split("\r\n")
            finally:
                self.application_bytes += source.count
        except Ended:
            await trio.aclose_forcefully(stream)
            return
        self.early.append(lines[0].encode())
        method, path, version = lines[0].split(" ")
        assert (method, version) == ("GET", "HTTP/1.1")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        upgrade = Upgrade(path, headers, source)
        if path == "/_control":
            await self._send_control.send(upgrade)
        elif path.startswith("/_data/"):
            await self._send_data.send(upgrade)
        else:
            await upgrade.refuse(404)


@asynccontextmanager
async def played_server(identity: Identity | None = None, port: int = 0) -> AsyncIterator[PlayedServer]:
    """A played server on loopback; what it opened is closed at the end."""
    known = identity or make_identity()
    async with trio.open_nursery() as nursery:
        with trio.socket.socket() as listener:
            listener.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
            await listener.bind(("127.0.0.1", port))
            listener.listen(64)
            server = PlayedServer(nursery, known, listener.getsockname()[1])

            async def accept() -> None:
                while True:
                    accepted, _ = await listener.accept()
                    nursery.start_soon(server.serve, trio.SocketStream(accepted))

            nursery.start_soon(accept)
            try:
                yield server
            finally:
                server.drop_all()
                server.channels_close()
            nursery.cancel_scope.cancel()
