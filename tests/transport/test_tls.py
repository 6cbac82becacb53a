"""TLS connections: rows S01-S14 as far as they live in the transport, on both pumps."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Literal

import pytest
import trio

from rustunnel_py.errors import Expired, LinkLost, Refused, Reset
from rustunnel_py.transport.listen import bind
from rustunnel_py.transport.pump import open_pump
from rustunnel_py.transport.tls import HANDSHAKE_SECONDS, TlsConnection, choose_certificate, connect_tls, server_context
from tests.support.pairs import certificate, client_tls, do, server_tls, socket_pair, spin, tls_pair
from tests.support.poison import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.transport.pump import Pump

Kind = Literal["epoll", "portable", "instrument"]
both_pumps = pytest.mark.parametrize("pump_kind", ["epoll", "portable", "instrument"])


class Served:
    """A server connection on the pump and the raw socket of whoever attacks it."""

    def __init__(self, pump: Pump, context: ssl.SSLContext | None = None) -> None:
        self.pump = pump
        self.raw, sock = socket_pair()
        self.raw.settimeout(5)
        self.ear = Recorder()
        self.gone: list[object] = []
        self.connection = TlsConnection(
            pump, sock, context or server_tls(), self.ear, server_side=True, gone=self.gone.append
        )
        self.ear.pipe = self.connection

    async def in_thread(self, talk: Callable[[socket.socket], bytes]) -> bytes:
        """`talk(raw socket)`, as a client that blocks."""
        return await trio.to_thread.run_sync(talk, self.raw)


def read_all(sock: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            received += piece
    return received


def alert_of(answer: bytes) -> int:
    """The description of the alert record that `answer` ends with (RFC 8446 §6)."""
    assert answer[-7] == 21, answer
    return answer[-1]


def old_hello(version: int) -> bytes:
    """A client hello that offers nothing newer than `version` (0x0302 is TLS 1.1)."""
    body = version.to_bytes(2, "big") + bytes(32) + b"\0" + b"\0\4\xc0\x13\0\x2f" + b"\1\0"
    handshake = b"\1" + len(body).to_bytes(3, "big") + body
    return b"\x16\3\1" + len(handshake).to_bytes(2, "big") + handshake


@both_pumps
@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0302])
async def test_S02_old_versions_get_their_alert(pump_kind: Kind, version: int) -> None:
    async with open_pump(pump_kind) as pump:
        served = Served(pump)

        def talk(raw: socket.socket) -> bytes:
            raw.sendall(old_hello(version))
            return read_all(raw)

        answer = await served.in_thread(talk)
        assert alert_of(answer) in (70, 40)  # protocol_version; for SSLv3 OpenSSL says handshake_failure
        assert isinstance(served.ear.errors[0], Refused)
        served.raw.close()
        await spin(lambda: bool(served.gone))
        assert pump.crashes == 0


@both_pumps
async def test_S03_plain_http_is_closed_at_once(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        served = Served(pump)

        def talk(raw: socket.socket) -> bytes:
            raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return read_all(raw)

        answer = await served.in_thread(talk)
        assert answer == b"" or alert_of(answer)
        assert isinstance(served.ear.errors[0], Refused)
        assert "handshake failed" in str(served.ear.errors[0])
        served.raw.close()
        await spin(lambda: bool(served.gone))
        assert pump.crashes == 0


@both_pumps
@pytest.mark.parametrize("sent", [b"", b"\x16\3\1\2\0\1\0\1", b"\x16"], ids=["nothing", "half a hello", "one byte"])
async def test_S05_a_stalled_handshake_ends_at_its_deadline(pump_kind: Kind, sent: bytes) -> None:
    async with open_pump(pump_kind) as pump:
        served = Served(pump)
        served.raw.send(sent)
        for _ in range(50):
            await trio.lowlevel.checkpoint()
        pump.sweep(trio.current_time() + HANDSHAKE_SECONDS - 1)
        assert served.ear.heard == []
        pump.sweep(trio.current_time() + HANDSHAKE_SECONDS + 1)
        assert isinstance(served.ear.errors[0], Expired)
        await spin(lambda: bool(served.gone))
        served.raw.close()


@both_pumps
async def test_S05_the_owners_deadline_is_its_own(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        client, server = tls_pair(pump)
        server.due = pump.now + 100
        await spin(lambda: client._shaken and server._shaken)
        assert server.due == pytest.approx(pump.now + 100, abs=10)


@both_pumps
async def test_S06_garbage_after_the_handshake_ends_that_connection(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        client, server = tls_pair(pump)
        ear = Recorder()
        server.sink = ear
        await spin(lambda: client._shaken and server._shaken)
        client.sock.send(b"\x17\3\3\0\x20" + bytes(32))
        await ear.wait_heard("lost")
        assert isinstance(ear.errors[0], Reset)
        assert pump.crashes == 0


@both_pumps
async def test_S10_a_fin_without_close_notify_is_no_clean_end(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        client, server = tls_pair(pump)
        ear = Recorder()
        server.sink = ear
        ear.pipe = server
        do(pump, client, lambda: client.send(b"half an ans"))
        await ear.wait_received(11)
        client.sock.shutdown(socket.SHUT_WR)
        await ear.wait_heard("lost")
        assert ear.heard == ["data", "lost"]
        assert isinstance(ear.errors[0], Reset)
        assert "close_notify" in str(ear.errors[0])


@both_pumps
async def test_S10_a_close_notify_is_a_clean_end_and_the_other_half_stays_open(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        ears = Recorder(), Recorder()
        client, server = tls_pair(pump, *ears)
        ears[0].pipe, ears[1].pipe = client, server
        do(pump, client, lambda: client.send(b"question"), client.send_eof)
        await ears[1].wait_heard("eof")
        answer = bytes(range(256)) * 8192
        do(pump, server, lambda: server.send(answer), server.send_eof)
        await ears[0].wait_heard("eof")
        assert ears[0].received == answer
        await spin(lambda: client.is_gone and server.is_gone)


@both_pumps
async def test_a_half_close_swallows_no_record_that_waits(pump_kind: Kind) -> None:
    """OpenSSL's shutdown reads; what the BIO still holds must come through."""
    async with open_pump(pump_kind) as pump:
        ears = Recorder(), Recorder(credits=False)
        client, server = tls_pair(pump, *ears)
        ears[0].pipe, ears[1].pipe = client, server
        sent = bytes(range(256)) * 4096
        do(pump, client, lambda: client.send(sent))
        await ears[1].wait(lambda: server._paused)
        if not server._incoming.pending:  # how much a read brings is the kernel's mood: as if it had been more
            server._incoming.write(server.sock.recv(100_000))
            server._left = True
        do(pump, server, server.send_eof)
        await ears[0].wait_heard("eof")
        ears[1].credits = True
        do(pump, server, lambda: server.credit(len(ears[1].received)))
        assert await ears[1].wait_received(len(sent)) == sent


@both_pumps
@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["h2"], None), (["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "http/1.1"), (["x" * 200], None), ([], None)],
)
async def test_S11_alpn(pump_kind: Kind, offered: list[str], chosen: str | None) -> None:
    async with open_pump(pump_kind) as pump:
        served = Served(pump)
        context = client_tls()
        if offered:
            context.set_alpn_protocols(offered)
        raw, sock = socket_pair()
        sock.close()
        raw.close()
        client = TlsConnection(pump, served.raw, context, server_side=False, server_hostname="localhost")
        await spin(lambda: client._shaken and served.connection._shaken)
        assert client.ssl_object.selected_alpn_protocol() == chosen


@both_pumps
async def test_S01_the_client_chooses_a_certificate_by_name_while_contexts_are_swapped(pump_kind: Kind) -> None:
    asked: list[str | None] = []
    current = {"a.example": server_tls("a.example")}

    def choose(name: str | None) -> ssl.SSLContext | None:
        asked.append(name)
        return current.get(name or "")

    listener = server_tls("localhost")
    choose_certificate(listener, choose)
    async with open_pump(pump_kind) as pump:

        async def shown(name: str | None, trusted: str) -> bytes:
            left, right = socket_pair()
            context = client_tls(trusted)
            context.check_hostname = name is not None
            client = TlsConnection(pump, left, context, server_side=False, server_hostname=name)
            server = TlsConnection(pump, right, listener, server_side=True)
            await spin(lambda: client._shaken and server._shaken)
            assert server.sni == name
            return client.peer_certificate() or b""

        first = await shown("a.example", "a.example")
        await shown("localhost", "localhost")
        await shown(None, "localhost")
        assert asked == ["a.example", "localhost", None]
        certificate.cache_clear()
        current["a.example"] = server_tls("a.example")
        assert await shown("a.example", "a.example") != first
    certificate.cache_clear()


@both_pumps
async def test_S01_a_chooser_that_raises_ends_one_handshake(pump_kind: Kind) -> None:
    context = server_tls()

    def choose(name: str | None) -> ssl.SSLContext | None:
        raise ZeroDivisionError

    choose_certificate(context, choose)
    async with open_pump(pump_kind) as pump:
        served = Served(pump, context)
        client_ear = Recorder()
        TlsConnection(pump, served.raw, client_tls(), client_ear, server_side=False, server_hostname="localhost")
        await client_ear.wait_heard("lost")
        assert "internal error" in str(client_ear.errors[0])
        await served.ear.wait_heard("lost")


def test_S08_S12_the_server_context_is_strict() -> None:
    context = server_context(*certificate("localhost"))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    for cipher in context.get_ciphers():
        assert cipher["aead"]
        assert cipher["protocol"] == "TLSv1.3" or "ECDHE" in cipher["name"]


def test_S13_a_pair_that_does_not_match_is_refused() -> None:
    with pytest.raises(ssl.SSLError):
        server_context(certificate("localhost")[0], certificate("other.example")[1])


@both_pumps
async def test_connect_tls_shakes_hands_and_takes_sends_meanwhile(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        (sock,) = bind("127.0.0.1", 0, key="k")
        ear = Recorder()
        connected: list[TlsConnection] = []
        client = connect_tls(
            pump, socket.AF_INET, sock.getsockname(), client_tls(), "localhost", ear, connected=connected.append
        )
        client.send(b"early")
        await spin(lambda: _acceptable(sock))
        server_ear = Recorder()
        server = TlsConnection(pump, sock.accept()[0], server_tls(), server_ear, server_side=True)
        assert await server_ear.wait_received(5) == b"early"
        assert connected == [client]
        do(pump, server, server.close)
        await ear.wait_heard("eof")
        sock.close()


@both_pumps
async def test_connect_tls_refuses_a_stranger_and_says_why(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        (sock,) = bind("127.0.0.1", 0, key="k")
        ear = Recorder()
        connect_tls(pump, socket.AF_INET, sock.getsockname(), client_tls("other.example"), "localhost", ear)
        await spin(lambda: _acceptable(sock))
        server_ear = Recorder()
        TlsConnection(pump, sock.accept()[0], server_tls(), server_ear, server_side=True)
        await ear.wait_heard("lost")
        assert isinstance(ear.errors[0], Refused)
        assert isinstance(ear.errors[0].__cause__, ssl.SSLCertVerificationError)
        await server_ear.wait_heard("lost")  # the client's alert arrived
        assert isinstance(server_ear.errors[0], LinkLost)
        assert "unknown ca" in str(server_ear.errors[0])
        sock.close()


def _acceptable(sock: socket.socket) -> bool:
    import select

    return bool(select.select([sock], [], [], 0)[0])


@both_pumps
async def test_many_small_sends_are_one_record_and_one_segment(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        client, server = tls_pair(pump)
        await spin(lambda: client._shaken and server._shaken)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        sizes: list[int] = []
        send = client._send

        def counting(data: bytes) -> int:
            sizes.append(len(data))
            return send(data)

        client._send = counting  # type: ignore[assignment]

        def send_small() -> None:
            for _ in range(100):
                client.send(b"0123456789")

        ear = Recorder()
        server.sink = ear
        do(pump, client, send_small)
        await ear.wait_received(1000)
        assert sizes == [1022]  # 5 header, 1000 payload, 1 type, 16 tag
