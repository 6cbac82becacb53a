"""F16: all of the corpus against a whole server on real sockets: no crash, no 5xx that is ours, nothing left behind."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import trio

from tests.hostile.corpus import CASES, REPLY_CASES, Case, ReplyCase
from tests.support.our_agent import agent_config, http, our_agent
from tests.support.services import http_service, tcp_service
from tests.support.whole_server import WholeServer, read_to_end, whole_server

if TYPE_CHECKING:
    from pathlib import Path

AT_ONCE = 120
QUICK: dict[str, object] = {
    "header_seconds": 2.0,
    "idle_seconds": 2.0,
    "half_closed_seconds": 2.0,
}
STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_F16_no_input_of_a_visitor_leaves_a_trace(tmp_path: Path, scheme: str) -> None:
    bad: dict[str, object] = {}

    async def play(case: Case) -> None:
        host = whole.server.host("app")
        async with limit:
            stream = await (whole.server.connect() if scheme == "http" else whole.server.connect_tls(host))
            try:
                await stream.send_all(case.bytes_for(host))
            except trio.BrokenResourceError:
                pass
            answer = await read_to_end(stream, 25)
            await trio.aclose_forcefully(stream)
        statuses = [int(status) for status in STATUS.findall(answer)]
        if any(status >= 500 and status not in (501, 505) for status in statuses):
            bad[f"{case.row}-{case.id}"] = answer[:300]
        expect = case.expect
        if expect.statuses and not expect.dropped and not set(statuses) & expect.statuses and scheme == "http":
            bad[f"{case.row}-{case.id}"] = statuses, expect.statuses

    limit = trio.CapacityLimiter(AT_ONCE)
    async with (
        http_service() as service,
        whole_server(tmp_path, limits=QUICK) as whole,
        our_agent(agent_config(whole.server, http(service.port, "app"))),
    ):
        await whole.get("app")
        async with trio.open_nursery() as nursery:
            for case in CASES:
                nursery.start_soon(play, case)
        assert bad == {}
        await whole.until(lambda: whole.parts._census.now == 0)
        assert (await whole.get("app")).status == 200
        assert_healthy(whole)


@pytest.mark.slow
async def test_F16_no_answer_of_a_local_service_leaves_a_trace(tmp_path: Path) -> None:
    bad: dict[str, object] = {}

    async def answer(stream: trio.SocketStream) -> None:
        head = bytearray()
        while b"\r\n\r\n" not in head:
            part = await stream.receive_some(65536)
            if not part:
                return
            head += part
        case = REPLY_CASES[int(head.split(b" ")[1].removeprefix(b"/"))]
        await stream.send_all(case.raw)
        if case.closes:
            return
        while await stream.receive_some(65536):
            pass

    async def ask(number: int, case: ReplyCase) -> None:
        raw = b"%b /%d HTTP/1.1\r\nHost: app.localhost\r\nConnection: close\r\n\r\n" % (case.method, number)
        async with limit:
            got = await whole.ask_raw(raw)
        statuses = STATUS.findall(got)
        if not statuses or int(statuses[-1]) not in (case.expect.status, 504):
            bad[f"{case.row}-{case.id}"] = got[:200]

    limit = trio.CapacityLimiter(AT_ONCE)
    async with (
        tcp_service(answer) as port,
        whole_server(tmp_path, limits={**QUICK, "answer_seconds": 3.0}) as whole,
        our_agent(agent_config(whole.server, http(port, "app"))),
    ):
        async with trio.open_nursery() as nursery:
            for number, case in enumerate(REPLY_CASES):
                nursery.start_soon(ask, number, case)
        assert bad == {}
        assert_healthy(whole)


def assert_healthy(whole: WholeServer) -> None:
    assert whole.pump.crashes == 0
    assert "crash" not in whole.parts._census.refusals
    assert "policy-failed" not in whole.parts._census.refusals
