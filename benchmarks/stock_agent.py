"""A stock agent as a process: `python -m benchmarks.stock_agent CONTROL_PORT CA_FILE LOCAL_PORT LABEL`.

It takes its token from RUSTUNNEL_TOKEN and serves one HTTP tunnel until it is ended. Its control socket is that of the
tests' played agent. Its data socket says the same on the wire, header and payload of a yamux frame in a message each,
Nagle's algorithm left on, the acknowledgement with the first byte; but it runs on the project's own pump, since the
real one copies a request's bytes in 35 µs, and the tests' agent takes five times as long.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from typing import TYPE_CHECKING

import trio

from rustunnel_py.client.data import UpgradeRequest
from rustunnel_py.transport import relay
from rustunnel_py.transport.pump import Pump, open_pump
from rustunnel_py.transport.tcp import connect_tcp
from rustunnel_py.transport.tls import TlsConnection, connect_tls
from rustunnel_py.transport.websocket_trunk import WebSocketTrunk
from rustunnel_py.wire.sink import SilentSink
from rustunnel_py.wire.yamux import DATA, HEADER, HEADER_SIZE, Limits, Role, Session, Stream
from tests.support.stock_agent import StockAgent, stock_agent

if TYPE_CHECKING:
    from rustunnel_py.wire.sink import Buffer

ID_SIZE = 16  # what each stream begins with


class StockTrunk(WebSocketTrunk):
    """Two messages a frame."""

    __slots__ = ("_payload",)

    def __init__(self, pump: Pump, connection: TlsConnection, bytes_read: bytes) -> None:
        self._payload = 0  # of the present frame, still to come
        super().__init__(pump, connection, bytes_read, server_side=False)

    def send(self, data: Buffer) -> bool:
        with memoryview(data) as view:
            at = 0
            while at < len(view):
                if not self._payload:
                    _, kind, _, _, length = HEADER.unpack_from(view, at)
                    self._payload = length if kind == DATA else 0
                    end = at + HEADER_SIZE
                else:
                    end = min(len(view), at + self._payload)
                    self._payload -= end - at
                self._protocol.send_binary(view[at:end])
                at = end
        self.sent += len(data)
        room = True
        for piece in self._protocol.data_to_send():
            room = self.connection.send(piece)
        self._note_room(room)
        if self._full:
            self._want_room = True
        return not self._full


class _Unnamed(SilentSink):
    """A stream until its id is complete."""

    def __init__(self, socket: DataSocket, stream: Stream) -> None:
        self._socket = socket
        self._stream = stream
        self.early = bytearray()

    def data(self, data: memoryview) -> None:
        had = len(self.early)
        self.early += data
        if had < ID_SIZE <= len(self.early):
            self._socket.named(self, self._stream)


class DataSocket(SilentSink):
    """The data socket: first the sink of its connection, until the 101."""

    def __init__(self, pump: Pump, agent: StockAgent, nursery: trio.Nursery, local_port: int) -> None:
        self.opened = trio.Event()
        self._pump = pump
        self._agent = agent
        self._nursery = nursery
        self._local = ("127.0.0.1", local_port)
        self._connection: TlsConnection | None = None
        self._request = UpgradeRequest("localhost", f"/_data/{agent.session_id}", None)

    def connect(self, port: int, context: ssl.SSLContext) -> None:
        address = ("127.0.0.1", port)
        self._connection = connection = connect_tls(self._pump, socket.AF_INET, address, context, "localhost", self)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        connection.send(self._request.bytes)

    def data(self, data: memoryview) -> None:
        rest = self._request.take(bytes(data))
        connection = self._connection
        if connection is None:
            return
        connection.credit(len(data) - len(rest or b""))
        if rest is None:
            return
        trunk = StockTrunk(self._pump, connection, rest)
        trunk.sink = session = Session(
            Role.SERVER, trunk, self._pump.later, accept=self._accept, limits=Limits(max_accepted=512)
        )
        trunk.keep_alive(session.ping)
        self.opened.set()

    def _accept(self, stream: Stream) -> None:
        stream.sink = _Unnamed(self, stream)

    def named(self, unnamed: _Unnamed, stream: Stream) -> None:
        self._nursery.start_soon(self._reach, unnamed, stream)

    async def _reach(self, unnamed: _Unnamed, stream: Stream) -> None:
        await self._agent.announced(_dashed(bytes(unnamed.early[:ID_SIZE])))

        def join() -> None:
            stream.credit(len(unnamed.early))
            local = connect_tcp(self._pump, socket.AF_INET, self._local, SilentSink())
            relay.join(self._pump, local, stream)
            local.send(unnamed.early[ID_SIZE:])

        self._pump.call(self, join)

    def crashed(self, error: Exception) -> None: ...


def _dashed(raw: bytes) -> str:
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


async def run(control_port: int, ca_file: str, local_port: int, label: str) -> None:
    context = ssl.create_default_context(cafile=ca_file)
    async with (
        open_pump() as pump,
        stock_agent(control_port, os.environ["RUSTUNNEL_TOKEN"], tls=context) as agent,
        trio.open_nursery() as nursery,
    ):
        await agent.register("http", local_port, subdomain=label)

        async def run_data(*, task_status: trio.TaskStatus[None]) -> None:
            data = DataSocket(pump, agent, nursery, local_port)
            data.connect(control_port, context)
            await data.opened.wait()
            task_status.started()

        await agent.serve(run_data)
        await agent.ended.wait()


if __name__ == "__main__":
    trio.run(run, int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])
