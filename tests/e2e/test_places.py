"""The places of an agent's session: nobody keeps one for nothing, and no tunnel takes them all (T09, Y25)."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from rustunnel_py.agents.rustunnel import RustunnelAgent
from rustunnel_py.model.tunnel import TcpPort
from rustunnel_py.transport import relay
from tests.support.our_agent import agent_config, our_agent, tcp
from tests.support.services import http_service, tcp_service
from tests.support.whole_server import WholeServer, whole_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from rustunnel_py.agents.rustunnel_link import RustunnelLink
    from rustunnel_py.hub.sessions import Session

PORTS: dict[str, object] = {"tcp_port_range": (31000, 31999)}


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[WholeServer]:
    async with whole_server(tmp_path, limits=PORTS) as whole:
        yield whole


@asynccontextmanager
async def tcp_agent(whole: WholeServer, kind: str, port: int) -> AsyncIterator[None]:
    if kind == "stock":
        async with whole.serving(port, protocol="tcp"):
            yield
    else:
        async with our_agent(agent_config(whole.server, tcp(port))):
            yield


async def visit(session: Session) -> trio.SocketStream:
    """A visitor of the only TCP tunnel of the session."""
    (port,) = [tunnel.address.port for tunnel in session.tunnels.values() if isinstance(tunnel.address, TcpPort)]
    return await trio.open_tcp_stream("127.0.0.1", port)


def link_of(session: Session) -> RustunnelLink:
    assert isinstance(session.agent, RustunnelAgent)
    return session.agent.link


@pytest.mark.parametrize("kind", ["stock", "own"])
async def test_T09_Y25_visitors_that_stay_when_the_local_service_hung_up_lose_their_places(
    whole: WholeServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "HALF_CLOSED_SECONDS", 1.0)
    monkeypatch.setattr(relay, "LOOK_SECONDS", 0.2)
    uploaded = bytearray()

    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.send_all(b"bye")
        await stream.send_eof()
        try:
            async for part in stream:
                uploaded.extend(part)
        except trio.BrokenResourceError:
            pass

    async with tcp_service(hang_up) as port, tcp_agent(whole, kind, port), AsyncExitStack() as stack:
        (session,) = whole.sessions
        visitors = [await stack.enter_async_context(await visit(session)) for _ in range(8)]
        for visitor in visitors:
            if kind == "stock":
                await visitor.send_all(b"x")
            received = b""
            while part := await visitor.receive_some():
                received += part
            assert received == b"bye"
        uploader, *silent = visitors
        link = link_of(session)
        assert link.session is not None
        with trio.fail_after(30):
            while link.session.open_streams > 1:
                await uploader.send_all(b"slowly")
                await trio.sleep(0.05)
            for visitor in silent:
                with pytest.raises(trio.BrokenResourceError):
                    while True:
                        await visitor.send_all(b"x")
                        await trio.sleep(0.01)
            await uploader.send_all(b"done")
            await uploader.send_eof()
            await whole.until(lambda: uploaded.endswith(b"done"))
            await whole.until(lambda: link.session is not None and not link.session.open_streams)


async def test_T09_visitors_who_say_nothing_do_not_shut_out_the_other_tunnels_of_a_stock_agent(
    whole: WholeServer,
) -> None:
    """It acknowledges a stream with its first byte only, and stands 256 that it has not acknowledged."""

    async def listen(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass

    async with (
        tcp_service(listen) as port,
        http_service() as service,
        whole.agent() as agent,
        AsyncExitStack() as stack,
    ):
        await agent.register("tcp", port)
        await agent.register("http", service.port, subdomain="demo")
        await agent.serve()
        session = whole.session(agent)
        for _ in range(260):
            await stack.enter_async_context(await visit(session))
        link = link_of(session)
        await whole.until(lambda: link.waiting == 260 - 192)
        for _ in range(3):
            assert (await whole.get("demo")).status == 200
        assert agent.most_unacknowledged == 193
        assert agent.violations == []
