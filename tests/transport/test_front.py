"""A front: one head, one route; what it answers itself; handing over and taking over."""

from __future__ import annotations

import json
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

import pytest
import trio

from rustunnel_py.transport.front import HEAD_SECONDS, Front, Route
from rustunnel_py.transport.listen import bind
from rustunnel_py.transport.pump import open_pump
from rustunnel_py.transport.stream import ConnectionStream
from rustunnel_py.transport.tcp import LINGER_SECONDS, connect_tcp
from rustunnel_py.transport.tls import connect_tls
from tests.support.pairs import client_tls, do, server_tls, spin, tcp_pair
from tests.support.poison import Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from rustunnel_py.model.tunnel import Peer
    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.transport.tcp import SocketConnection
    from rustunnel_py.wire.http1 import RequestHead

Kind = Literal["epoll", "portable", "instrument"]
both_pumps = pytest.mark.parametrize("pump_kind", ["epoll", "portable", "instrument"])
both_kinds = pytest.mark.parametrize("kind", ["tcp", "tls"])


class Taken:
    """A handler that notes what it was given and echoes later bytes."""

    def __init__(self) -> None:
        self.heads: list[RequestHead] = []
        self.bytes_read = b""
        self.connection: Connection | None = None
        self.ear = Recorder()

    def __call__(self, connection: Connection, head: RequestHead, bytes_read: bytes) -> None:
        self.heads.append(head)
        self.bytes_read = bytes_read
        self.connection = connection
        self.ear.pipe = connection
        connection.sink = self.ear


class Setting:
    def __init__(self, pump: Pump, kind: str, routes: Sequence[Route], **options: object) -> None:
        self.pump = pump
        self.kind = kind
        self.front = Front(
            pump,
            bind("127.0.0.1", 0, key="k"),
            routes,
            context=server_tls() if kind == "tls" else None,
            name="test",
            **options,  # type: ignore[arg-type]
        )
        self.address: Peer | None = None

    def visit(self) -> tuple[SocketConnection, Recorder]:
        assert self.address is not None
        ear = Recorder()
        where = (self.address.ip, self.address.port)
        made: SocketConnection
        if self.kind == "tls":
            made = connect_tls(self.pump, socket.AF_INET, where, client_tls(), "localhost", ear)
        else:
            made = connect_tcp(self.pump, socket.AF_INET, where, ear)
        ear.pipe = made
        return made, ear


@asynccontextmanager
async def serving(pump_kind: Kind, kind: str, routes: Sequence[Route], **options: object) -> AsyncIterator[Setting]:
    async with open_pump(pump_kind) as pump, trio.open_nursery() as nursery:
        setting = Setting(pump, kind, routes, **options)
        (setting.address,) = await nursery.start(setting.front.run)
        yield setting
        assert pump.crashes == 0
        nursery.cancel_scope.cancel()


def path(wanted: bytes, handle: Taken) -> Route:
    return Route(wanted.decode(), lambda head: head.target == wanted, handle)


@both_pumps
@both_kinds
async def test_the_first_route_that_matches_gets_everything_that_was_read(pump_kind: Kind, kind: str) -> None:
    control, rest = Taken(), Taken()
    async with serving(pump_kind, kind, [path(b"/_control", control), Route("rest", lambda _: True, rest)]) as setting:
        visitor, _ear = setting.visit()
        whole = b"GET /_control HTTP/1.1\r\nHost: localhost\r\n\r\nearly"
        for index in range(len(whole)):
            visitor.push(whole[index : index + 1])
            await trio.lowlevel.checkpoint()
        await spin(lambda: bool(control.heads))
        await spin(lambda: control.bytes_read + control.ear.received == whole)
        assert control.heads[0].method == b"GET"
        assert rest.heads == []
        do(setting.pump, visitor, lambda: visitor.send(b"later"))
        await control.ear.wait(lambda: control.ear.received.endswith(b"later"))

        other, _ = setting.visit()
        other.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await spin(lambda: bool(rest.heads))


@both_pumps
@both_kinds
async def test_no_route_is_404_in_plain_json(pump_kind: Kind, kind: str) -> None:
    async with serving(pump_kind, kind, []) as setting:
        visitor, ear = setting.visit()
        visitor.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await ear.wait_heard("eof")
        head, _, body = bytes(ear.received).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert json.loads(body) == {"error": "there is nothing here"}


@both_pumps
async def test_otherwise_gets_what_no_route_matches(pump_kind: Kind) -> None:
    rest = Taken()
    async with serving(pump_kind, "tcp", [], otherwise=rest) as setting:
        visitor, _ = setting.visit()
        visitor.send(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await spin(lambda: bool(rest.heads))


@both_pumps
@both_kinds
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\nHost: localhost\n\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"x" * 20_000, 414),
        (b"\x16\x03\x01 a TLS hello where there is none\r\n\r\n", 400),  # S04
    ],
    ids=["bare LF", "no host", "long target", "S04 TLS hello"],
)
async def test_what_is_no_http_is_refused(pump_kind: Kind, kind: str, sent: bytes, status: int) -> None:
    taken = Taken()
    async with serving(pump_kind, kind, [Route("all", lambda _: True, taken)]) as setting:
        visitor, ear = setting.visit()
        visitor.send(sent)
        await ear.wait_heard("eof")
        assert ear.received.startswith(f"HTTP/1.1 {status} ".encode())
        assert taken.heads == []


@both_pumps
@both_kinds
async def test_a_head_that_does_not_come_ends_at_its_deadline(pump_kind: Kind, kind: str) -> None:
    async with serving(pump_kind, kind, []) as setting:
        silent, silent_ear = setting.visit()
        slow, slow_ear = setting.visit()
        slow.send(b"GET / HT")
        await spin(lambda: len(setting.front._reading) == 2)
        await spin(lambda: any(reading.sink._buffer for reading in setting.front._reading))  # type: ignore[attr-defined]
        await spin(lambda: kind == "tcp" or all(one._shaken for one in (silent, slow)))  # type: ignore[attr-defined]
        for _ in range(50):
            await trio.lowlevel.checkpoint()
        setting.pump.sweep(trio.current_time() + HEAD_SECONDS + 1)
        await slow_ear.wait_heard("eof")
        assert slow_ear.received.startswith(b"HTTP/1.1 408 ")
        await silent_ear.wait(lambda: bool(silent_ear.heard))
        assert silent_ear.received == b""
        assert not setting.front._reading


@both_pumps
async def test_accepted_may_drop_a_connection_before_anything_is_read(pump_kind: Kind) -> None:
    asked: list[Connection] = []

    def refuse(connection: Connection) -> bool:
        asked.append(connection)
        return False

    async with serving(pump_kind, "tcp", [], accepted=refuse) as setting:
        visitor, ear = setting.visit()
        await ear.wait_heard("lost")
        assert asked[0].peer == visitor.local or visitor.is_gone


@both_pumps
async def test_a_handler_that_crashes_costs_its_connection(pump_kind: Kind) -> None:
    def crash(connection: Connection, head: RequestHead, bytes_read: bytes) -> None:
        raise ZeroDivisionError

    async with serving(pump_kind, "tcp", [Route("bad", lambda _: True, crash)]) as setting:
        visitor, ear = setting.visit()
        visitor.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await ear.wait_heard("lost")
        assert setting.pump.crashes == 1
        setting.pump.crashes = 0


@both_pumps
async def test_a_connection_is_taken_over_with_what_was_read(pump_kind: Kind) -> None:
    taken = Taken()
    async with serving(pump_kind, "tcp", [path(b"/_control", taken)]) as setting:
        visitor, connection = tcp_pair(setting.pump)
        setting.front.take(connection, b"GET /_control HTTP/1.1\r\nHost")
        do(setting.pump, visitor, lambda: visitor.send(b": localhost\r\n\r\n"))
        await spin(lambda: bool(taken.heads))
        assert taken.connection is connection


@both_pumps
async def test_cancelling_closes_listeners_and_readers_but_not_what_was_handed_over(pump_kind: Kind) -> None:
    taken = Taken()
    async with open_pump(pump_kind) as pump:
        setting = Setting(pump, "tcp", [path(b"/_control", taken)])
        async with trio.open_nursery() as nursery:
            (setting.address,) = await nursery.start(setting.front.run)
            handed, handed_ear = setting.visit()
            handed.send(b"GET /_control HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await spin(lambda: bool(taken.heads))
            _reading, reading_ear = setting.visit()
            await spin(lambda: len(setting.front._reading) == 1)
            nursery.cancel_scope.cancel()
        await reading_ear.wait_heard("lost")
        assert handed_ear.heard == []
        _, refused_ear = setting.visit()
        await refused_ear.wait_heard("lost")


@both_pumps
async def test_a_handler_makes_a_stream_of_it(pump_kind: Kind) -> None:
    streams: list[ConnectionStream] = []

    def handle(connection: Connection, head: RequestHead, bytes_read: bytes) -> None:
        streams.append(ConnectionStream(connection, bytes_read))

    async with serving(pump_kind, "tls", [Route("all", lambda _: True, handle)]) as setting:
        visitor, ear = setting.visit()
        sent = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nbody"
        visitor.send(sent)
        await spin(lambda: bool(streams))
        got = b""
        while len(got) < len(sent):
            got += await streams[0].receive_some(7)
        assert got == sent
        await streams[0].send_all(b"answer")
        await ear.wait_received(6)
        await streams[0].aclose()
        await ear.wait_heard("eof")
        assert LINGER_SECONDS == 2.0
