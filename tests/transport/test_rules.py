"""The rules of machines and sinks (design.md), on both pumps and, where it matters, over TLS as well."""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING, Literal

import pytest
import trio
import trio.testing

from rustunnel_py.errors import Closed, Crash, Expired, LinkLost, Reset
from rustunnel_py.transport.listen import Listener
from rustunnel_py.transport.pump import EPOLLIN, EVENTS_A_PASS, FLUSH_ROUNDS, SCRATCH_SIZE, EpollPump, open_pump
from rustunnel_py.transport.relay import join
from rustunnel_py.transport.stream import ConnectionStream
from rustunnel_py.transport.tcp import (
    HIGH_WATER,
    LINGER_SECONDS,
    LOW_WATER,
    READ_AHEAD,
    SocketConnection,
    TcpConnection,
)
from rustunnel_py.wire.sink import SILENT, Buffer
from tests.support.pairs import do, pair, socket_pair, spin, tcp_pair
from tests.support.poison import Poisoned, Recorder

if TYPE_CHECKING:
    from rustunnel_py.model.tunnel import Peer
    from rustunnel_py.transport.pump import Pump

Kind = Literal["epoll", "portable", "instrument"]
both_pumps = pytest.mark.parametrize("pump_kind", ["epoll", "portable", "instrument"])
FLOOD = bytes(64 * 1024)
both_kinds = pytest.mark.parametrize("kind", ["tcp", "tls"])


def listening(recorder: Recorder, connection: SocketConnection) -> Recorder:
    recorder.pipe = connection
    connection.sink = recorder
    return recorder


@both_pumps
@both_kinds
async def test_rule_01_no_call_calls_its_own_sink(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump:
        one, other = pair(kind, pump)
        ear = listening(Recorder(), one)
        other_ear = listening(Recorder(), other)
        inside: list[str] = []

        def everything() -> None:
            for call in (
                lambda: one.send(b"x"),
                lambda: one.send(bytes(HIGH_WATER * 20)),
                lambda: one.push(b"y"),
                lambda: one.credit(0),
                one.send_eof,
            ):
                before = list(ear.heard)
                call()
                inside.extend(ear.heard[len(before) :])

        pump.call(one, everything)
        assert inside == []
        await other_ear.wait_heard("eof")
        assert len(other_ear.received) == HIGH_WATER * 20 + 2
        pump.call(one, one.reset)
        assert "lost" not in ear.heard
        assert pump.crashes == 0


@both_pumps
async def test_rule_01_an_error_met_in_send_is_reported_by_the_pump(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        one, other = socket_pair()
        connection = TcpConnection(pump, one)
        ear = listening(Recorder(), connection)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

        def send_into_a_reset() -> None:
            other.close()
            for _ in range(10):
                connection.push(b"x" * SCRATCH_SIZE)
            assert ear.heard == []

        pump.call(connection, send_into_a_reset)
        await ear.wait_heard("lost")
        assert isinstance(ear.errors[0], Reset)


@both_pumps
@both_kinds
async def test_rule_02_views_die_with_the_call_and_credit_only_queues(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump:
        one, other = pair(kind, pump)
        depth = 0
        deepest = 0

        class Nested(Recorder):
            def data(self, data: memoryview) -> None:
                nonlocal depth, deepest
                depth += 1
                deepest = max(deepest, depth)
                super().data(data)
                depth -= 1

        ear = Nested()
        ear.pipe = other
        other.sink = Poisoned(ear)
        sent = bytes(range(256)) * 4096
        pump.call(one, lambda: one.send(sent))
        assert await ear.wait_received(len(sent)) == sent
        assert deepest == 1


async def _end_in_data(pump: Pump, kind: str, end: str) -> None:
    one, other = pair(kind, pump)
    ear = listening(Recorder(), other)
    ear.on_data = lambda _: getattr(other, end)()
    gone: list[object] = []
    other.gone = gone.append
    do(pump, one, lambda: one.send(bytes(1024 * 1024)), one.close)

    def swept() -> bool:
        pump.sweep(pump.now + 3)
        return bool(gone)

    await spin(swept)
    assert ear.heard == ["data"]


@both_pumps
@both_kinds
async def test_rule_03_a_sink_may_close_reset_or_replace_itself_in_data(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump:
        for end in ("close", "reset", "abort", "cut", "close_lingering"):
            await _end_in_data(pump, kind, end)

        one, other = pair(kind, pump)
        first, second = Recorder(), Recorder()
        first.pipe = second.pipe = other
        first.on_data = lambda _: setattr(other, "sink", second)
        other.sink = first
        sent = bytes(1024 * 1024)
        do(pump, one, lambda: one.send(sent), one.send_eof)
        await second.wait_heard("eof")
        assert len(first.received) + len(second.received) == len(sent)
        assert pump.crashes == 0


@both_pumps
@both_kinds
async def test_rule_04_send_takes_everything_and_room_follows_a_false(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump:
        one, other = pair(kind, pump)
        ear = listening(Recorder(), one)
        reader = listening(Recorder(credits=False), other)
        answers: list[bool] = []
        piece = bytes(100_000)

        def send_until_false() -> None:
            while not answers or answers[-1]:
                answers.append(one.send(piece))

        async def fill() -> None:
            """Until nothing moves any more: the reader pays nothing."""
            for _ in range(1000):
                if "room" in ear.heard:
                    ear.heard.clear()
                    answers.append(True)
                if answers == [] or answers[-1]:
                    pump.call(one, send_until_false)
                await trio.lowlevel.checkpoint()

        await fill()
        assert answers[-1] is False
        assert len(reader.received) < READ_AHEAD + SCRATCH_SIZE  # it stops without credit
        total = sum(1 for _ in answers) * len(piece)  # an upper bound of what was sent
        assert total > READ_AHEAD
        ear.heard.clear()
        reader.credits = True
        pump.call(other, lambda: other.credit(len(reader.received)))
        await ear.wait_heard("room")
        assert len(one._out) <= LOW_WATER


@both_pumps
async def test_rule_05_what_was_delivered_is_paid_in_the_end(pump_kind: Kind) -> None:
    """A relay pays each side for what the other took, also when it stalled between."""
    async with open_pump(pump_kind) as pump:
        client, left = tcp_pair(pump)
        right, server = tcp_pair(pump)
        join(pump, left, right)
        slow = listening(Recorder(credits=False), server)
        sent = bytes(range(256)) * 64 * 1024  # 16 MiB: more than the kernel holds

        def send() -> None:
            client.send(sent)
            client.send_eof()

        pump.call(client, send)
        await slow.wait(lambda: len(slow.received) >= READ_AHEAD)
        for _ in range(200):
            await trio.lowlevel.checkpoint()
        assert left._paused
        slow.credits = True
        pump.call(server, lambda: server.credit(len(slow.received)))
        await slow.wait_heard("eof")
        assert slow.received == sent
        assert left._uncredited == 0


@both_pumps
async def test_rule_06_input_behind_a_join_goes_to_the_pipe(pump_kind: Kind) -> None:
    """Who replaces the sink in `data` gets what comes next; nothing is lost or doubled."""
    async with open_pump(pump_kind) as pump:
        visitor, edge = tcp_pair(pump)
        pipe, service = tcp_pair(pump)
        ear = listening(Recorder(), service)

        class Upgrading(Recorder):
            def data(self, data: memoryview) -> None:
                join(pump, edge, pipe)
                edge.sink.data(data[4:])
                edge.credit(4)

        edge.sink = Upgrading()
        pump.call(visitor, lambda: visitor.send(b"headearly"))
        await ear.wait_received(5)
        do(pump, visitor, lambda: visitor.send(b" and late"), visitor.send_eof)
        await ear.wait_heard("eof")
        assert ear.received == b"early and late"
        assert edge._uncredited == 0


@both_pumps
@both_kinds
@pytest.mark.parametrize("where", ["data", "eof", "lost", "expired", "room"])
async def test_rule_07_a_crash_costs_one_connection(pump_kind: Kind, kind: str, where: str) -> None:
    async with open_pump(pump_kind) as pump:
        seen: list[Exception] = []
        pump.on_crash = seen.append
        one, other = pair(kind, pump)
        bystander_one, bystander_other = pair(kind, pump)
        bystander = listening(Recorder(), bystander_other)

        class Crashing(Recorder):
            def _crash(self, *_: object) -> None:
                raise ZeroDivisionError(where)

        ear = Crashing(credits=False)
        listening(ear, other)
        setattr(ear, where, ear._crash)
        gone: list[object] = []
        other.gone = gone.append
        if where == "data":
            pump.call(one, lambda: one.send(b"x"))
        elif where == "eof":
            pump.call(one, one.send_eof)
        elif where == "lost":
            await spin(lambda: kind == "tcp" or (one._shaken and other._shaken))  # type: ignore[attr-defined]
            pump.call(one, one.abort)
        elif where == "expired":
            other.due = pump.now
            pump.sweep(pump.now)
        else:
            one.sink = listening(Recorder(), one)
            other.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)  # so that the kernel cannot take all
            pump.call(other, lambda: other.send(bytes(HIGH_WATER * 16)))
        await spin(lambda: bool(gone))
        assert pump.crashes == 1
        assert isinstance(seen[0], ZeroDivisionError)
        if where != "lost":
            assert isinstance(ear.errors[0], Crash)
            assert ear.errors[0].__cause__ is seen[0]
        pump.call(bystander_one, lambda: bystander_one.send(b"still here"))
        await bystander.wait_received(10)


@both_pumps
async def test_rule_07_crashes_of_deferred_calls_sweeps_and_listeners_are_caught(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        one, _other = tcp_pair(pump)
        ear = listening(Recorder(), one)

        def crash(*_: object) -> None:
            raise ZeroDivisionError

        off = pump.on_sweep(crash)
        swept: list[float] = []
        pump.on_sweep(swept.append)
        pump.sweep(pump.now)
        assert swept
        assert pump.crashes == 1
        off()
        pump.sweep(pump.now)
        assert pump.crashes == 1
        pump.call(one, lambda: pump.later(one, crash))
        await ear.wait_heard("lost")
        assert pump.crashes == 2

        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        accepted: list[socket.socket] = []

        def accept(new: socket.socket, peer: Peer) -> None:
            if not accepted:
                accepted.append(new)
                crash()
            accepted.append(new)

        listener = Listener(pump, sock, accept)
        with socket.create_connection(sock.getsockname()), socket.create_connection(sock.getsockname()):
            await spin(lambda: len(accepted) == 2)
        assert pump.crashes == 3
        assert accepted[0].fileno() == -1
        accepted[1].close()
        listener.close()


@both_pumps
async def test_rule_08_a_call_outside_a_pass_rings_the_bell(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        one, other = tcp_pair(pump)
        ear = listening(Recorder(), other)
        await trio.testing.wait_all_tasks_blocked()
        pump.call(one, lambda: one.send(b"x"))
        assert ear.received == b""
        await ear.wait_received(1)

        await trio.testing.wait_all_tasks_blocked()
        ran: list[int] = []
        pump.later(one, lambda: ran.append(1))
        await spin(lambda: ran == [1])

        def crash() -> None:
            raise ZeroDivisionError

        lost = listening(Recorder(), one)
        pump.call(one, crash)
        assert isinstance(lost.errors[0], Crash)


@both_pumps
@both_kinds
async def test_rule_09_everything_is_read_though_events_come_once(pump_kind: Kind, kind: str) -> None:
    """Full reads, a FIN behind data, and data behind a pause: none is forgotten."""
    async with open_pump(pump_kind) as pump:
        one, other = pair(kind, pump)
        ear = listening(Recorder(), other)
        size = 5 * SCRATCH_SIZE  # a multiple: the last read is a full one
        do(pump, one, lambda: one.send(bytes(size)), one.send_eof)
        await ear.wait_heard("eof")
        assert len(ear.received) == size

        one, other = pair(kind, pump)
        paused = listening(Recorder(credits=False), other)
        size = READ_AHEAD + SCRATCH_SIZE + 1000  # more than is read before it pauses
        do(pump, one, lambda: one.send(bytes(size)), one.send_eof)
        await paused.wait(lambda: other._paused)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert "eof" not in paused.heard
        paused.credits = True
        pump.call(other, lambda: other.credit(len(paused.received)))
        await paused.wait_heard("eof")
        assert len(paused.received) == size


async def test_rule_09_an_error_while_reading_is_paused_ends_the_connection() -> None:
    async with open_pump("epoll") as pump:
        one, other = tcp_pair(pump)
        ear = listening(Recorder(credits=False), other)
        pump.call(one, lambda: one.send(bytes(READ_AHEAD * 2)))
        await ear.wait(lambda: other._paused)
        pump.call(one, one.reset)
        await ear.wait_heard("lost")
        assert isinstance(ear.errors[0], Reset)


@both_pumps
async def test_rule_09_hup_without_error_leaves_the_rest_to_be_read(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        one, other = tcp_pair(pump)
        ear = listening(Recorder(credits=False), other)
        pump.call(other, other.send_eof)
        do(pump, one, lambda: one.send(bytes(READ_AHEAD + 5000)), one.send_eof)
        await ear.wait(lambda: other._paused)
        for _ in range(200):
            await trio.lowlevel.checkpoint()
        assert "lost" not in ear.heard
        ear.credits = True
        pump.call(other, lambda: other.credit(len(ear.received)))
        await ear.wait_heard("eof")
        assert len(ear.received) == READ_AHEAD + 5000


@both_pumps
async def test_rule_09_tls_closed_before_the_handshake_still_delivers(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        client, server = pair("tls", pump)
        ear = listening(Recorder(), server)
        do(pump, client, lambda: client.send(b"written at once"), client.close)
        await ear.wait_heard("eof")
        assert ear.received == b"written at once"


async def test_rule_10_a_pass_is_bounded() -> None:
    """At most 64 descriptors, 64 KiB of each, three flush rounds, one send for many small ones."""
    async with open_pump("epoll") as pump:
        assert isinstance(pump, EpollPump)
        pairs = [tcp_pair(pump) for _ in range(EVENTS_A_PASS + 10)]
        ears = [listening(Recorder(), other) for _, other in pairs]
        await trio.testing.wait_all_tasks_blocked()
        for one, _ in pairs:
            one.sock.send(bytes(1000))
        pump.run_pass()
        assert sum(1 for ear in ears if ear.received) <= EVENTS_A_PASS
        pump.run_pass()
        assert all(len(ear.received) == 1000 for ear in ears)

        one, _other = pairs[0]
        ear = ears[0]
        ear.received.clear()
        one.sock.send(bytes(SCRATCH_SIZE * 2))
        pump.run_pass()
        assert len(ear.received) <= SCRATCH_SIZE

        rounds = 0

        class Restless:
            def flush(self) -> None:
                nonlocal rounds
                rounds += 1
                pump.flush_soon(self)

        pump._flushes.clear()
        pump.call(one, lambda: pump.flush_soon(Restless()))
        pump.run_pass()
        assert rounds == FLUSH_ROUNDS
        pump._flushes.clear()

        sends: list[int] = []
        send = one._send

        def counting(data: Buffer) -> int:
            sends.append(len(data))
            return send(data)

        one._send = counting  # type: ignore[assignment]

        def send_small() -> None:
            for _ in range(50):
                one.send(b"small")

        pump.call(one, send_small)
        pump.run_pass()
        assert sends == [250]


@both_pumps
@both_kinds
async def test_rule_10_a_saturated_connection_starves_nobody(pump_kind: Kind, kind: str) -> None:
    """While one connection always has more to read, a timer and a second visitor are served within a few passes."""
    async with open_pump(pump_kind) as pump:
        one, other = pair(kind, pump)

        class Flood(Recorder):
            def room(self) -> None:
                self.heard.append("room")
                while one.send(FLOOD):
                    pass

        one.sink = flood = Flood()
        eater = listening(Recorder(), other)
        eater.on_data = lambda _: eater.received.clear()
        pump.call(one, flood.room)
        await spin(lambda: len(flood.heard) > 3)

        visitor, server = pair(kind, pump)
        answered = listening(Recorder(), visitor)
        echo = listening(Recorder(), server)

        def send_back(data: memoryview) -> None:
            server.send(data)

        echo.on_data = send_back
        started = pump.passes
        pump.call(visitor, lambda: visitor.send(b"ping"))
        await answered.wait_received(4)
        assert pump.passes - started < 60

        started = pump.passes
        with trio.move_on_after(0):
            await trio.sleep_forever()
        assert pump.passes - started < 5
        rooms = len(flood.heard)
        await spin(lambda: len(flood.heard) > rooms)  # it was saturated all the time
        one.sink = SILENT


@both_pumps
@both_kinds
async def test_rule_11_an_early_answer_survives_input_that_still_comes(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump:
        client, server = pair(kind, pump)
        ear = listening(Recorder(), client)
        gone: list[object] = []
        server.gone = gone.append
        upload = bytes(2 * 1024 * 1024)
        server.sink = early = Recorder()

        def answer(data: memoryview) -> None:
            server.send(b"413 too large")
            server.close_lingering()

        early.on_data = answer
        pump.call(client, lambda: client.send(upload))
        await ear.wait_heard("eof")
        assert ear.received == b"413 too large"
        assert not gone
        # It ends when the client does, or by its deadline.
        pump.sweep(pump.now + LINGER_SECONDS + 0.1)
        await spin(lambda: bool(gone))


@both_pumps
@both_kinds
async def test_rule_12_a_cut_delivers_what_was_sent_and_looks_cut(pump_kind: Kind, kind: str) -> None:
    """Also what the kernel still held when the connection was cut, because the visitor is slow."""
    async with open_pump(pump_kind) as pump:
        client, server = pair(kind, pump)
        ear = listening(Recorder(credits=False), client)
        body = bytes(range(256)) * 256 * 48  # 3 MiB
        do(pump, server, lambda: server.send(body), server.cut)
        await ear.wait(lambda: client._paused)
        for _ in range(200):
            await trio.lowlevel.checkpoint()
        ear.credits = True
        do(pump, client, lambda: client.credit(len(ear.received)))

        def swept() -> bool:
            pump.sweep(trio.current_time())
            return "lost" in ear.heard

        await spin(swept)  # a cut waits until the kernel has sent everything
        assert ear.received == body
        assert "eof" not in ear.heard
        assert isinstance(ear.errors[0], Reset)


@both_pumps
@both_kinds
async def test_rule_13_due_is_the_sinks_and_the_sweep_asks(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump:
        one, other = pair(kind, pump)
        await spin(lambda: kind == "tcp" or (one._shaken and other._shaken))  # type: ignore[attr-defined]
        ear = listening(Recorder(), one)
        assert one.due == math.inf
        one.due = pump.now + 5
        pump.sweep(pump.now + 4.9)
        assert ear.heard == []
        pump.sweep(pump.now + 0.2)
        assert ear.heard == ["expired"]
        assert one.due == math.inf
        pump.sweep(pump.now + 100)
        assert ear.heard == ["expired"]


async def test_rule_13_the_pump_sweeps_by_itself(mock_clock: trio.testing.MockClock) -> None:
    async with open_pump() as pump:
        one, _other = tcp_pair(pump)
        ear = listening(Recorder(), one)
        one.due = pump.now + 1.5
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(1)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert ear.heard == []
        mock_clock.jump(1)
        await ear.wait_heard("expired")


@both_pumps
@both_kinds
async def test_rule_14_the_end_of_the_pump_ends_every_connection(pump_kind: Kind, kind: str) -> None:
    gone: list[object] = []
    async with open_pump(pump_kind) as pump:
        one, other = pair(kind, pump)
        one.gone = other.gone = gone.append
        stream = ConnectionStream(one)
    assert gone == [one, other] or gone == [other, one]
    assert one.sock.fileno() == other.sock.fileno() == -1
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    left, right = socket_pair()
    with pytest.raises(RuntimeError, match="ended"):
        TcpConnection(pump, left)
    left.close()
    right.close()


@both_pumps
async def test_rule_14_an_exception_of_the_body_leaves_as_it_is(pump_kind: Kind) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_pump(pump_kind) as pump:
            tcp_pair(pump)
            raise KeyError("mine")


async def test_rule_14_keyboard_interrupt_is_held_off_in_callbacks() -> None:
    async with open_pump() as pump:
        one, other = tcp_pair(pump)
        ear = listening(Recorder(), other)
        protected: list[bool] = []
        ear.on_data = lambda _: protected.append(trio.lowlevel.currently_ki_protected())
        pump.call(one, lambda: one.send(b"x"))
        await ear.wait_received(1)
        assert protected == [True]


@both_pumps
async def test_rule_15_both_pumps_drive_any_handler(pump_kind: Kind) -> None:
    """A handler that is no connection: it is told what it wants to hear, and nothing after `drop`."""
    async with open_pump(pump_kind) as pump:
        left, right = socket_pair()
        left.setblocking(False)

        class Bare:
            sock = left
            due = math.inf
            flags = 0
            dropped = False

            def ready(self, flags: int) -> None:
                assert not self.dropped
                if flags & EPOLLIN:
                    self.flags |= flags
                    try:
                        left.recv(10)
                    except BlockingIOError:
                        pass

            def wants(self) -> int:
                return EPOLLIN

            def flush(self) -> None: ...

            def expired(self) -> None: ...

            def abort(self) -> None: ...

            def crashed(self, error: Exception) -> None: ...

        bare = Bare()
        pump.add(bare)
        right.send(b"x")
        await spin(lambda: bool(bare.flags & EPOLLIN))
        bare.flags = 0
        pump.again(bare, EPOLLIN)
        await spin(lambda: bool(bare.flags & EPOLLIN))
        pump.drop(bare)
        pump.drop(bare)
        bare.dropped = True
        right.send(b"y")
        for _ in range(50):
            await trio.lowlevel.checkpoint()
        left.close()
        right.close()
        assert pump.crashes == 0


@both_pumps
async def test_rule_16_put_back_bytes_come_first_and_are_credited_by_reading(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        one, other = tcp_pair(pump)
        streams: list[ConnectionStream] = []

        class Route(Recorder):
            def data(self, data: memoryview) -> None:
                streams.append(ConnectionStream(other, bytes(data)))

        other.sink = Route()
        pump.call(one, lambda: one.send(b"GET / HTTP/1.1"))
        await spin(lambda: bool(streams))
        pump.call(one, lambda: one.send(b" and more"))
        await spin(lambda: len(streams[0]._inbox) == 23)
        assert other._uncredited == 23
        assert await streams[0].receive_some(3) == b"GET"
        assert other._uncredited == 20
        assert await streams[0].receive_some() == b" / HTTP/1.1 and more"
        assert other._uncredited == 0


@both_pumps
async def test_rule_16_closing_wakes_waiters_and_waits_for_gone(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        one, other = tcp_pair(pump)
        stream = ConnectionStream(one)
        outcome: list[type[BaseException]] = []

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError) as caught:
                await stream.receive_some()
            outcome.append(caught.type)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            await stream.aclose()
            assert one.is_gone
        assert outcome == [trio.ClosedResourceError]

        # Cancelled while the peer takes nothing: it aborts.
        one, other = tcp_pair(pump)
        ear = listening(Recorder(credits=False), other)
        stream = ConnectionStream(one)
        stream._send(memoryview(bytes(16 * 1024 * 1024)))
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.aclose()
        assert one.is_gone
        pump.call(other, lambda: other.credit(READ_AHEAD))
        ear.credits = True
        await ear.wait_heard("lost")


@both_pumps
async def test_rule_16_a_deadline_breaks_the_stream(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        one, _other = tcp_pair(pump)
        stream = ConnectionStream(one)
        one.due = pump.now + 1
        pump.sweep(pump.now + 2)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some()
        assert isinstance(caught.value.__cause__, Expired)
        assert not isinstance(caught.value.__cause__, Closed)
        assert isinstance(caught.value.__cause__, LinkLost)
