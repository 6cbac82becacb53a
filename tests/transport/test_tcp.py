"""Plain TCP connections and listeners: rows T01-T07, T13, T14, P07 of the reliability page."""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, Any, Literal

import pytest
import trio
import trio.testing

from rustunnel_py.errors import Expired, PortInUse, Refused, Reset
from rustunnel_py.model.tunnel import Peer
from rustunnel_py.transport.listen import ACCEPTS_A_PASS, Listener, bind
from rustunnel_py.transport.pump import EpollPump, open_pump
from rustunnel_py.transport.relay import RelayEnd, join
from rustunnel_py.transport.tcp import (
    CLOSE_SECONDS,
    READ_AHEAD,
    STALL_SECONDS,
    TCP_QUICKACK,
    SocketConnection,
    TcpConnection,
    connect_tcp,
    peer_of,
)
from rustunnel_py.transport.tls import TlsConnection
from tests.support.pairs import do, pair, send_urgent, socket_pair, spin, tcp_pair
from tests.support.poison import Poisoned, Recorder

if TYPE_CHECKING:
    from rustunnel_py.transport.pump import Pump

Kind = Literal["epoll", "portable", "instrument"]
both_pumps = pytest.mark.parametrize("pump_kind", ["epoll", "portable", "instrument"])
both_kinds = pytest.mark.parametrize("kind", ["tcp", "tls"])
PATTERN = bytes(range(256)) * 4096  # 1 MiB


def listening(connection: SocketConnection, *, credits: bool = True) -> Recorder:
    recorder = Recorder(credits=credits)
    recorder.pipe = connection
    connection.sink = recorder
    return recorder


class Chain:
    """client - (left joined to right) - server, over real sockets; views poisoned."""

    def __init__(self, pump: Pump, kind: str = "tcp") -> None:
        self.pump = pump
        self.client, self.left = pair(kind, pump)
        self.right, self.server = pair(kind, pump)
        self.client_ear = listening(self.client)
        self.server_ear = listening(self.server)
        self.ends: list[RelayEnd] = []
        self.relay = join(pump, self.left, self.right, on_end=self.ends.append)
        self.left.sink = Poisoned(self.left.sink)
        self.right.sink = Poisoned(self.right.sink)


@both_pumps
@both_kinds
async def test_T01_the_visitors_fin_first_and_10_MB_back(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump:
        chain = Chain(pump, kind)
        do(pump, chain.client, lambda: chain.client.send(b"request"), chain.client.send_eof)
        await chain.server_ear.wait_heard("eof")
        answer = PATTERN * 10
        do(pump, chain.server, lambda: chain.server.send(answer), chain.server.send_eof)
        await chain.client_ear.wait_heard("eof")
        assert chain.client_ear.received == answer
        assert chain.ends == [RelayEnd(7, len(answer), None, chain.ends[0].by_a)]
        await spin(lambda: chain.left.is_gone and chain.right.is_gone and chain.client.is_gone and chain.server.is_gone)
        assert pump.crashes == 0


@both_pumps
@both_kinds
async def test_T02_the_services_fin_first_and_the_visitor_goes_on(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump:
        chain = Chain(pump, kind)
        do(pump, chain.server, chain.server.send_eof)
        await chain.client_ear.wait_heard("eof")
        do(pump, chain.client, lambda: chain.client.send(PATTERN), chain.client.send_eof)
        await chain.server_ear.wait_heard("eof")
        assert chain.server_ear.received == PATTERN


@both_pumps
@both_kinds
@pytest.mark.parametrize("side", ["client", "server"])
async def test_T03_a_reset_arrives_as_a_reset(pump_kind: Kind, kind: str, side: str) -> None:
    async with open_pump(pump_kind) as pump:
        chain = Chain(pump, kind)
        cutter, ear = (chain.client, chain.server_ear) if side == "client" else (chain.server, chain.client_ear)
        do(pump, chain.client, lambda: chain.client.send(b"x"))
        do(pump, chain.server, lambda: chain.server.send(b"y"))
        await chain.server_ear.wait_received(1)
        await chain.client_ear.wait_received(1)
        do(pump, cutter, cutter.reset)
        await ear.wait_heard("lost")
        assert isinstance(ear.errors[0], Reset)
        assert "eof" not in ear.heard
        (end,) = chain.ends
        assert isinstance(end.error, Reset)
        assert end.by_a is (side == "client")


@both_pumps
@both_kinds
async def test_T04_a_slow_reader_blocks_the_writer_and_fills_no_memory(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump:
        chain = Chain(pump, kind)
        chain.server_ear.credits = False
        sent = 0

        def send_on() -> None:
            nonlocal sent
            while sent < 64 * len(PATTERN):
                sent += len(PATTERN)
                if not chain.client.send(PATTERN):
                    return

        chain.client_ear.room = send_on  # type: ignore[method-assign]
        do(pump, chain.client, send_on)
        await chain.server_ear.wait(lambda: len(chain.server_ear.received) >= READ_AHEAD)
        await trio.testing.wait_all_tasks_blocked(0.05)
        held = len(chain.left._out) + len(chain.right._out) + chain.left._uncredited
        assert held < 1024 * 1024
        assert sent < 64 * len(PATTERN)  # blocked
        paid = 0
        while len(chain.server_ear.received) < 20 * len(PATTERN):
            owed, paid = len(chain.server_ear.received) - paid, len(chain.server_ear.received)
            before = paid
            do(pump, chain.server, lambda owed=owed: chain.server.credit(owed))  # type: ignore[misc]
            await chain.server_ear.wait(lambda before=before: len(chain.server_ear.received) > before)  # type: ignore[misc]
        start = len(PATTERN)
        assert chain.server_ear.received[start : 2 * start] == PATTERN


@both_pumps
@both_kinds
async def test_T05_a_reader_that_stops_for_ever_is_freed(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump:
        one, other = pair(kind, pump)
        ear = listening(one)
        stopped = listening(other, credits=False)
        do(pump, one, lambda: one.send(PATTERN * 16))
        await stopped.wait(lambda: other._paused)
        await spin(lambda: one._blocked)
        pump.sweep(pump.now + STALL_SECONDS - 10)
        assert ear.heard == []
        pump.sweep(trio.current_time() + STALL_SECONDS + 10)
        assert isinstance(ear.errors[0], Expired)

        # One that is closing has less time.
        one, other = pair(kind, pump)
        stopped = listening(other, credits=False)
        do(pump, one, lambda: one.send(PATTERN * 16), one.close)
        await stopped.wait(lambda: other._paused)
        pump.sweep(trio.current_time() + CLOSE_SECONDS + 1)
        assert one.is_gone


@both_pumps
@both_kinds
async def test_T06_the_service_may_speak_first(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump:
        chain = Chain(pump, kind)
        do(pump, chain.server, lambda: chain.server.send(b"220 ready\r\n"))
        assert await chain.client_ear.wait_received(11) == b"220 ready\r\n"
        assert chain.server_ear.received == b""


@both_pumps
@both_kinds
async def test_T07_one_byte_writes_and_64_MiB_at_once(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump:
        chain = Chain(pump, kind)
        for index in range(1000):
            do(pump, chain.client, lambda index=index: chain.client.push(PATTERN[index : index + 1]))  # type: ignore[misc]
        assert await chain.server_ear.wait_received(1000) == PATTERN[:1000]
        chain.server_ear.received.clear()
        do(pump, chain.client, lambda: chain.client.send(PATTERN * 64), chain.client.send_eof)
        await chain.server_ear.wait_heard("eof")
        assert chain.server_ear.received == PATTERN * 64


@both_pumps
async def test_T13_urgent_data_is_data_and_empty_sends_do_no_harm(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        left, right = socket_pair()
        connection = TcpConnection(pump, right)
        ear = listening(connection)
        left.send(b"!", socket.MSG_OOB)
        left.send(b"after")
        with trio.fail_after(5):
            assert await ear.wait_received(6) == b"!after"
            # What FTP sends to break off a transfer.
            send_urgent(left, b"\xff\xf4", b"\xff", b"\xf2ABOR\r\n")
            assert await ear.wait_received(16) == b"!after\xff\xf4\xff\xf2ABOR\r\n"
        do(pump, connection, lambda: connection.send(b""), lambda: connection.push(b""), lambda: connection.send(b"x"))
        left.settimeout(5)
        assert await trio.to_thread.run_sync(left.recv, 10) == b"x"
        left.close()
        await ear.wait_heard("eof")


@both_pumps
@both_kinds
async def test_T13_what_follows_an_urgent_mark_is_read_at_once(pump_kind: Kind, kind: str) -> None:
    """A read stops short of the mark, and no event comes for what is behind it."""
    async with open_pump(pump_kind) as pump:
        client, server = pair(kind, pump)
        ear = listening(server)
        do(pump, client, lambda: client.send(b"hello"))
        await ear.wait_received(5)
        for round in range(20):
            sent = b"AB" + bytes([round]) + b"DE"
            if isinstance(client, TlsConnection):
                client.ssl_object.write(sent)
                wire = client._outgoing.read()
            else:
                wire = sent
            send_urgent(client.sock, wire[:2], wire[2:3], wire[3:])
            with trio.fail_after(5):
                await ear.wait(lambda sent=sent: ear.received.endswith(sent))  # type: ignore[misc]


@both_pumps
async def test_T13_urgent_data_that_comes_while_reading_is_paused_is_read_with_the_rest(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        left, right = socket_pair()
        connection = TcpConnection(pump, right)
        ear = listening(connection, credits=False)
        left.send(bytes(READ_AHEAD))
        await ear.wait(lambda: connection._paused)
        send_urgent(left, b"AB", b"C", b"DE")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(ear.received) == READ_AHEAD
        do(pump, connection, lambda: connection.credit(READ_AHEAD))
        with trio.fail_after(5):
            await ear.wait_received(READ_AHEAD + 5)
        left.close()
        await ear.wait_heard("eof")


@both_pumps
async def test_T13_a_lingering_connection_drains_past_an_urgent_mark_and_sees_the_end(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        left, right = socket_pair()
        connection = TcpConnection(pump, right)
        do(pump, connection, connection.close_lingering)
        assert await trio.to_thread.run_sync(left.recv, 10) == b""
        send_urgent(left, b"AB", b"C", b"DE")
        left.close()
        with trio.fail_after(1):  # well before the end of its patience
            await spin(lambda: connection.is_gone)


@both_pumps
async def test_T14_P07_accept_pauses_when_descriptors_run_out_and_resumes(
    pump_kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_pump(pump_kind) as pump:
        (sock,) = bind("127.0.0.1", 0, key="server.http_port")
        accepted: list[tuple[socket.socket, Peer]] = []
        tries: list[int] = []
        full = True

        class Full(socket.socket):
            def accept(self) -> tuple[socket.socket, object]:
                tries.append(1)
                if full:
                    raise OSError(errno.EMFILE, "Too many open files")
                return super().accept()

        short = Full(fileno=sock.detach())
        listener = Listener(pump, short, lambda new, peer: accepted.append((new, peer)))
        with socket.create_connection(short.getsockname()) as client:
            await spin(lambda: listener.intake.pauses == 1)
            for _ in range(200):
                await trio.lowlevel.checkpoint()
            assert len(tries) == 1  # no spin
            full = False
            pump.sweep(pump.now + 1.5)
            await spin(lambda: bool(accepted))
            assert accepted[0][1] == peer_of(client.getsockname())
        accepted[0][0].close()
        listener.close()
        assert pump.crashes == 0


@both_pumps
async def test_accept_survives_visitors_that_left_again(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        (sock,) = bind("127.0.0.1", 0, key="k")
        refused = 3

        class Flaky(socket.socket):
            def accept(self) -> tuple[socket.socket, object]:
                nonlocal refused
                if refused:
                    refused -= 1
                    raise ConnectionAbortedError(errno.ECONNABORTED, "gone")
                return super().accept()

        accepted: list[socket.socket] = []
        flaky = Flaky(fileno=sock.detach())
        listener = Listener(pump, flaky, lambda new, _: accepted.append(new))
        clients = [socket.create_connection(flaky.getsockname()) for _ in range(ACCEPTS_A_PASS + 5)]
        await spin(lambda: len(accepted) == len(clients))
        listener.close()
        for end in (*clients, *accepted):
            end.close()


def test_bind_dual_stack_takes_both_families() -> None:
    (sock,) = bind("::", 0, key="server.http_port")
    with sock:
        port = sock.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port)):
                pass


def test_bind_falls_back_where_there_is_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_ipv6", False)
    (sock,) = bind("::", 0, key="server.http_port")
    with sock:
        assert sock.family == socket.AF_INET
        assert sock.getsockname()[0] == "0.0.0.0"


def test_bind_says_which_setting_to_change() -> None:
    (sock,) = bind("127.0.0.1", 0, key="server.http_port")
    with sock:
        port = sock.getsockname()[1]
        with pytest.raises(PortInUse, match=f"server.http_port: port {port} is already in use") as caught:
            bind("127.0.0.1", port, key="server.http_port")
        assert caught.value.key == "server.http_port"
        with pytest.raises(PortInUse, match=str(port)):
            bind("::", port, key="server.http_port")
    with pytest.raises(PortInUse, match=r"192\.0\.2\.1"):
        bind("192.0.2.1", 0, key="server.host")
    with pytest.raises(PortInUse, match="no address of this machine"):
        bind("no-such-name.invalid", 0, key="server.host")


def test_bind_a_name_gives_one_port_for_all_its_addresses() -> None:
    sockets = bind("localhost", 0, key="server.host")
    assert len({sock.getsockname()[1] for sock in sockets}) == 1
    for sock in sockets:
        sock.close()


@both_pumps
async def test_connect_takes_sends_meanwhile(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        (sock,) = bind("127.0.0.1", 0, key="k")
        ear = Recorder()
        connected: list[TcpConnection] = []
        connection = connect_tcp(pump, socket.AF_INET, sock.getsockname(), ear, connected=connected.append)
        ear.pipe = connection
        assert connected == []
        connection.send(b"early")
        connection.send_eof()
        await spin(lambda: connected == [connection])
        server, address = sock.accept()
        assert connection.peer == peer_of(sock.getsockname())
        assert connection.local == peer_of(address)
        server.settimeout(5)
        assert await trio.to_thread.run_sync(server.recv, 100) == b"early"
        server.send(b"answer")
        server.close()
        await ear.wait_heard("eof")
        assert ear.received == b"answer"
        await spin(lambda: connection.is_gone)
        sock.close()


@both_pumps
async def test_connect_refused_is_lost_by_the_pump(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        (sock,) = bind("127.0.0.1", 0, key="k")
        address = sock.getsockname()
        sock.close()
        ear = Recorder()
        gone: list[object] = []
        connection = connect_tcp(pump, socket.AF_INET, address, ear, gone=gone.append)
        assert ear.heard == []
        await ear.wait_heard("lost")
        assert isinstance(ear.errors[0], Refused)
        assert isinstance(ear.errors[0].__cause__, OSError)
        await spin(lambda: gone == [connection])
        assert ear.heard == ["lost"]


@both_pumps
async def test_connect_that_is_closed_at_once_still_delivers(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        (sock,) = bind("127.0.0.1", 0, key="k")
        connection = connect_tcp(pump, socket.AF_INET, sock.getsockname(), Recorder())
        connection.send(b"last words")
        connection.close()
        await spin(lambda: connection.is_gone)
        server, _ = sock.accept()
        server.settimeout(5)
        assert await trio.to_thread.run_sync(server.recv, 100) == b"last words"
        server.close()
        sock.close()


@both_pumps
async def test_what_came_before_a_reset_is_still_delivered(pump_kind: Kind) -> None:
    """The local service answers, then resets our upload: the answer is not lost to the failing send (H51)."""
    async with open_pump(pump_kind) as pump:
        left, right = socket_pair()
        connection = TcpConnection(pump, right)
        ear = listening(connection)
        left.send(b"413 too large")
        left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        left.close()
        do(pump, connection, lambda: connection.push(PATTERN))
        await ear.wait_heard("lost")
        assert ear.received == b"413 too large"
        assert ear.heard == ["data", "lost"]


async def test_quick_acknowledgements_where_the_system_has_them() -> None:
    async with open_pump() as pump:
        one, two = socket_pair()
        asked: list[int] = []

        class Asking(socket.socket):
            def setsockopt(self, level: int, option: int, *value: Any) -> None:
                if option == TCP_QUICKACK:
                    asked.append(option)

        other = TcpConnection(pump, Asking(fileno=two.detach()))
        ear = listening(other)
        one.send(b"x")
        await ear.wait_received(1)
        assert asked == []
        other.quickack = True
        one.send(b"y")
        await ear.wait_received(2)
        assert asked == ([] if TCP_QUICKACK is None else [TCP_QUICKACK])
        one.close()


def test_T12_mapped_addresses_are_ipv4() -> None:
    assert peer_of(("::ffff:192.0.2.7", 80, 0, 0)) == Peer("192.0.2.7", 80)
    assert peer_of(("fe80::1%eth0", 80, 0, 2)) == Peer("fe80::1", 80)
    assert peer_of("/run/socket") == Peer("0.0.0.0", 0)


async def test_a_closed_namesake_gets_no_old_events() -> None:
    """A descriptor that is reused within a pass is not told what the kernel said of its predecessor."""
    async with open_pump("epoll") as pump:
        told: list[int] = []
        made: list[socket.socket] = []

        class Watching(socket.socket):
            """Asked for bytes as soon as its connection is told anything."""

            def recv_into(self, *arguments: Any) -> int:
                told.append(1)
                return super().recv_into(*arguments)

        pairs = [tcp_pair(pump) for _ in range(2)]
        others = [other for _, other in pairs]

        def replace(data: memoryview) -> None:
            """Whoever is called first ends the other one, whose event the kernel has given already."""
            if not made:
                victim = others[1] if others[0]._uncredited else others[0]
                number = victim.sock.fileno()
                victim.abort()
                made.extend(socket_pair())
                assert number in (made[0].fileno(), made[1].fileno())
                if made[0].fileno() != number:
                    made.reverse()
                TcpConnection(pump, Watching(fileno=made[0].detach()))
                replaced.append(number)

        replaced: list[int] = []
        for other in others:
            listening(other, credits=False).on_data = replace
        await trio.testing.wait_all_tasks_blocked()
        for one, _ in pairs:
            one.sock.send(b"x")
        assert isinstance(pump, EpollPump)
        pump.run_pass()
        assert replaced
        assert told == []
        made[1].close()
