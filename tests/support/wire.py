"""A wire between an agent and its server that a test can cut, close, or stop carrying anything."""

from __future__ import annotations

import dataclasses
import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from tests.support.services import tcp_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.running_server import RunningServer

RST = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Strand:
    """One connection through the wire; the first of an agent is its control socket, the second its data socket."""

    agent: trio.SocketStream
    server: trio.SocketStream
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    flows: trio.Event = field(default_factory=trio.Event)

    async def carry(self) -> None:
        self.flows.set()
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pass, self.agent, self.server)
                nursery.start_soon(self._pass, self.server, self.agent)

    async def _pass(self, source: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            while data := await source.receive_some(65536):
                await self.flows.wait()
                await target.send_all(data)
            await target.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.scope.cancel()

    def freeze(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self.flows = trio.Event()

    def reset(self) -> None:
        """Both ends see a RST."""
        for end in (self.agent, self.server):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        self.scope.cancel()

    def close(self) -> None:
        """Both ends see a FIN."""
        self.scope.cancel()


@dataclass
class Wire:
    port: int
    strands: list[Strand] = field(default_factory=list)


@asynccontextmanager
async def wire_to(server: RunningServer) -> AsyncIterator[tuple[RunningServer, Wire]]:
    """The server as an agent sees it that is at the other end of the wire."""
    wire = Wire(0)

    async def carry(agent: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", server.ready.control_port)
        strand = Strand(agent, far)
        wire.strands.append(strand)
        async with far:
            await strand.carry()

    async with tcp_service(carry) as port:
        wire.port = port
        yield dataclasses.replace(server, ready=dataclasses.replace(server.ready, control_port=port)), wire
