"""A local service that breaks off in the middle of its answer and leaves the connection open, as proxies do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support.our_agent import agent_config, http, our_agent
from tests.support.services import tcp_service
from tests.support.whole_server import whole_server

if TYPE_CHECKING:
    from pathlib import Path

WAIT_SECONDS = 20.0  # a hang shows as a failure
IDLE_SECONDS = 1.0
HALF = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
EVENTS = HALF.replace(b"\r\nTransfer", b"\r\nContent-Type: text/event-stream\r\nTransfer")


async def test_a_reply_that_stalls_looks_cut_and_its_neighbours_go_on(tmp_path: Path) -> None:
    let_go = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        head = bytes(await stream.receive_some(65536))
        if head.startswith(b"GET /events"):
            await stream.send_all(EVENTS)
            await let_go.wait()
            await stream.send_all(b"0\r\n\r\n")
            return
        await stream.send_all(HALF)
        try:
            assert not await stream.receive_some(1)  # nothing but an end
        except trio.BrokenResourceError:
            pass
        let_go.set()

    async def visit(target: str) -> bytes:
        async with await whole.server.connect() as stream:
            await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: {whole.server.host('app')}\r\n\r\n".encode())
            received = bytearray()
            while not received.endswith(b"\r\n0\r\n\r\n"):
                part = await stream.receive_some(65536)
                if not part:
                    received += b"(a clean end)"
                    break
                received += part
            return bytes(received)

    answers: list[bytes] = []

    async def events() -> None:
        answers.append(await visit("/events"))

    async with (
        tcp_service(serve) as port,
        whole_server(tmp_path, limits={"reply_idle_seconds": IDLE_SECONDS}) as whole,
        our_agent(agent_config(whole.server, http(port, "app"))),
    ):
        tunnel = whole.tunnel("app")
        assert tunnel is not None
        with trio.fail_after(WAIT_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(events)
                with pytest.raises(trio.BrokenResourceError):
                    await visit("/half")
                await let_go.wait()  # the local service has seen the end
        assert answers[0].endswith(b"4\r\nhalf\r\n0\r\n\r\n")
        assert whole.parts._census.refusals["stalled-reply"] == 1
        status, shown = await whole.api("GET", f"/api/tunnels/{tunnel.id}/requests")
        assert status == 200
        (listed,) = [one for one in shown if one["path"] == "/half"]
        status, cut = await whole.api("GET", f"/api/tunnels/{tunnel.id}/requests/{listed['id']}")
        assert status == 200
        found: dict[str, Any] = {name: cut[name] for name in ("status", "failed_hop", "failure")}
        assert found == {"status": 200, "failed_hop": "local service", "failure": "stalled-reply"}
