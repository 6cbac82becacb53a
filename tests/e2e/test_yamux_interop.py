"""Our yamux machine against HashiCorp's own, in both roles, over a real socket."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trio

from rustunnel_py.errors import Reset
from rustunnel_py.wire.sink import SILENT
from rustunnel_py.wire.yamux import INITIAL_WINDOW, Limits, Role, Session
from tests.support.hashicorp import hashicorp_peer
from tests.support.muxpair import Hearing, PretendLater, Writer, body, echo, hear

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rustunnel_py.errors import LinkLost
    from rustunnel_py.wire.sink import Buffer, Sink
    from rustunnel_py.wire.yamux import Stream

pytestmark = pytest.mark.peer

HIGH = 64 * 1024
SIZE = 2_000_000
STREAMS = 8


class SocketTrunk:
    """The least Pipe over a trio stream that a session can live on."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.sink: Sink = SILENT
        self.stream = stream
        self.out = bytearray()
        self.due = trio.Event()

    def send(self, data: Buffer) -> bool:
        self.out += data
        self.due.set()
        return len(self.out) < HIGH

    def send_eof(self) -> None:
        raise AssertionError("a session never ends its trunk")

    def credit(self, size: int) -> None:
        pass

    def reset(self) -> None:
        raise AssertionError("a session never resets its trunk")

    async def write(self) -> None:
        while True:
            await self.due.wait()
            self.due = trio.Event()
            while self.out:
                part = bytes(self.out)
                self.out.clear()
                try:
                    await self.stream.send_all(part)
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    return  # the reader hears of it
            self.sink.room()


@dataclass
class Conversation:
    """One session of ours with a peer process on the other end."""

    session: Session
    accepted: list[Hearing]
    endings: list[LinkLost]
    stream: trio.SocketStream
    result: dict[str, object]
    finished: trio.Event
    changed: trio.Event

    async def until_all(self, hearings: list[Hearing], event: str) -> None:
        while not all(event in hearing.events for hearing in hearings):
            await self.changed.wait()

    async def until_pongs(self, count: int) -> None:
        while self.session.pongs < count:
            await self.changed.wait()

    async def end(self) -> None:
        """Close our side of the socket and wait for what the peer says of it all."""
        await self.stream.aclose()
        await self.finished.wait()


@asynccontextmanager
async def converse(role: Role, *arguments: str, limits: Limits | None = None) -> AsyncIterator[Conversation]:
    program = await trio.to_thread.run_sync(hashicorp_peer)
    listener = trio.socket.socket()
    with trio.fail_after(120), listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        async with trio.open_nursery() as nursery:
            result: dict[str, object] = {}
            finished = trio.Event()

            async def peer() -> None:
                seat = "server" if role is Role.CLIENT else "client"
                done = await trio.run_process([str(program), seat, port, *arguments], capture_stdout=True, stdin=b"")
                result.update(json.loads(done.stdout or b"{}"))
                finished.set()

            nursery.start_soon(peer)
            accepted_socket, _ = await listener.accept()
            stream = trio.SocketStream(accepted_socket)
            trunk = SocketTrunk(stream)
            later = PretendLater()
            accepted: list[Hearing] = []
            endings: list[LinkLost] = []

            def accept(opened: Stream) -> None:
                hearing = hear(opened)
                accepted.append(hearing)
                echo(hearing)

            session = Session(
                role,
                trunk,
                later,
                accept=accept if role is Role.SERVER else None,
                ended=endings.append,
                limits=limits or Limits(),
            )
            trunk.sink = session
            conversation = Conversation(session, accepted, endings, stream, result, finished, trio.Event())

            async def read() -> None:
                while True:
                    try:
                        data = await stream.receive_some(65_536)
                    except trio.ClosedResourceError:
                        return
                    except trio.BrokenResourceError:
                        data = b""
                    if data:
                        session.data(memoryview(data))
                    else:
                        session.eof()
                    later.run()
                    conversation.changed.set()
                    conversation.changed = trio.Event()
                    if not data:
                        return

            nursery.start_soon(read)
            nursery.start_soon(trunk.write)
            async with stream:
                yield conversation
            assert session.crashes == 0
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("window", [INITIAL_WINDOW, 4 * INITIAL_WINDOW])
async def test_our_client_role_with_hashicorps_server(window: int) -> None:
    async with converse(Role.CLIENT, limits=Limits(window=window)) as conversation:
        session = conversation.session
        session.ping(7)
        blobs = [body(n, SIZE // 1000) * 1000 for n in range(STREAMS)]
        writers = [Writer(session.open(b""), blob, 100_000) for blob in blobs]
        idle = hear(session.open(b"hello"))
        for writer in writers:
            writer.go()
        await conversation.until_all([writer.hearing for writer in writers], "eof")
        for writer, blob in zip(writers, blobs, strict=True):
            assert writer.hearing.received == blob
        session.ping(8)
        await conversation.until_pongs(2)
        assert session.unacknowledged == 0
        assert session.open_streams == 1  # both halves closed frees a stream
        assert idle.received == b"hello"
        assert idle.stream is not None
        idle.stream.reset()
        session.ping(9)
        await conversation.until_pongs(3)
        assert session.open_streams == session.ignored == 0
        assert not session.over
        await conversation.end()
        assert conversation.result == {"ok": True, "streams": STREAMS + 1}


async def test_our_server_role_with_hashicorps_client() -> None:
    async with converse(Role.SERVER, str(STREAMS), str(SIZE)) as conversation:
        session = conversation.session
        await conversation.finished.wait()
        assert conversation.result == {"ok": True, "streams": STREAMS}
        while not conversation.endings:
            await conversation.changed.wait()
        assert len(conversation.accepted) == STREAMS
        assert all(hearing.events[-1] in ("eof", "room") for hearing in conversation.accepted)
        assert session.pings >= 2
        # It said go-away before it closed; with no stream left that is the end.
        assert isinstance(conversation.endings[0], Reset)
        assert session.peer_code == 0


async def test_Y29_a_peer_that_drops_the_connection_is_heard_by_every_stream() -> None:
    async with converse(Role.CLIENT, "3") as conversation:
        hearings = [hear(conversation.session.open(b"x")) for _ in range(3)]
        await conversation.until_all(hearings, "lost")
        assert all(isinstance(hearing.error, Reset) for hearing in hearings)
        assert conversation.session.open_streams == 0
        assert len(conversation.endings) == 1
