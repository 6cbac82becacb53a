"""Hostile and broken agents and visitors on a whole server: each ends at most its own session or visit, and leaves no
task, port, name or descriptor behind. The counting is `leaves_nothing` of tests/support/whole_server.py.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from rustunnel_py.agents import rustunnel
from tests.support.services import Reply, echo, http_service, tcp_service
from tests.support.stock_agent import BINARY, SYN, Y_DATA, SessionFailed
from tests.support.whole_server import WholeServer, read_to_end, whole_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Scenario = Callable[[WholeServer], Awaitable[None]]

PORTS: dict[str, object] = {"tcp_port_range": (31000, 31999)}
GET = b"GET / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n"


async def silent(stream: trio.SocketStream) -> None:
    """A local service that takes everything and never answers."""
    while await stream.receive_some(65536):
        pass


def by_reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[WholeServer]:
    async with whole_server(tmp_path, limits=PORTS) as whole:
        yield whole


# agents


async def wrong_token(whole: WholeServer) -> None:
    with pytest.raises(SessionFailed, match="auth error"):
        async with whole.agent("wrong"):
            pass


async def connects_and_leaves(whole: WholeServer) -> None:
    for leaves_by_reset in (False, True):
        stream = await trio.open_tcp_stream("127.0.0.1", whole.server.ready.control_port)
        if leaves_by_reset:
            by_reset(stream)
        await trio.aclose_forcefully(stream)


async def leaves_in_the_handshake(whole: WholeServer) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", whole.server.ready.control_port)
    await stream.send_all(b"\x16\x03\x01\x02\x00\x01\x00")
    await trio.aclose_forcefully(stream)


async def leaves_in_the_head(whole: WholeServer) -> None:
    stream = await whole.raw_tls()
    await stream.send_all(b"GET /_control HTTP/1.1\r\nHost: loc")
    await trio.aclose_forcefully(stream.transport_stream)


async def is_no_agent(whole: WholeServer) -> None:
    stream = await whole.raw_tls()
    await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await read_to_end(stream)).startswith(b"HTTP/1.1 404 ")
    await trio.aclose_forcefully(stream.transport_stream)


async def upgrades_and_leaves(whole: WholeServer) -> None:
    control = await whole.dial("/_control")
    await control.drop()


async def leaves_within_auth(whole: WholeServer) -> None:
    control = await whole.dial("/_control")
    await control.stream.send_all(b"\x82\xff\0\0\0\0\0\0\0\x40")
    await control.drop()


async def asks_and_leaves(whole: WholeServer) -> None:
    """Gone before auth_ok can be written."""
    control = await whole.dial("/_control")
    auth = {"type": "auth", "token": whole.server.admin_token, "client_version": "0.7.8"}
    await control.send(BINARY, json.dumps(auth).encode())
    await control.drop()


async def registers_and_leaves(whole: WholeServer) -> None:
    """Gone before the answers can be written, with names and ports under way."""
    async with whole.agent() as agent:
        for number in range(10):
            for protocol in ("http", "tcp"):
                wish = {"protocol": protocol, "local_addr": f"localhost:{number}"}
                await agent._say(type="register_tunnel", request_id=str(number), **wish)
        await agent.drop_control()


async def registers_more_than_it_may(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        count = 0
        with pytest.raises(SessionFailed, match="max_tunnels_per_session"):
            while True:
                await agent.register("tcp" if count % 2 else "http", 1)
                count += 1
        assert count == 50


async def registers_and_unregisters_again_and_again(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        for _ in range(25):
            for protocol in ("http", "tcp"):
                await agent.unregister(await agent.register(protocol, 1))
        await agent.ping(1)
        await agent._only_answer(("pong",))
        assert whole.balance().tcp_ports == []


async def malformed_frame(whole: WholeServer) -> None:
    async with whole.serving(1) as agent:
        agent._reconnect_data = False
        await agent._say(type="ping", timestamp="a text where a number belongs")  # ignored
        await agent._say(type="auth_ok", session_id="x", server_version="0.7.0")
        await agent.ended.wait()


async def malformed_registration(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        for fields in ({"protocol": 5}, {"protocol": "tcp", "port": "x"}, {"protocol": "http", "subdomain": []}):
            await agent._say(**{"type": "register_tunnel", "request_id": "1", "local_addr": "x", **fields})
            await agent._only_answer(("tunnel_error",))


async def yamux_violation(whole: WholeServer) -> None:
    async with tcp_service(silent) as port, whole.serving(port) as agent, trio.open_nursery() as nursery:
        replies: list[Reply] = []

        async def visit() -> None:
            replies.append(await whole.get("demo"))

        nursery.start_soon(visit)
        await agent.wait_heard("new_connection")
        agent._reconnect_data = False
        assert agent.data is not None
        await agent.data.websocket.send(BINARY, struct.pack(">BBHII", 9, 9, 9, 9, 9))
        await whole.until(lambda: replies)
        assert replies[0].status == 502
        agent.violations.clear()  # it was told go-away, as it should be


async def opens_streams_itself(whole: WholeServer) -> None:
    async with whole.serving(1) as agent:
        assert agent.data is not None
        for ident in range(2, 200, 2):
            await agent.data._frame(Y_DATA, SYN, ident, 0)
        await agent.ping(1)
        await agent.wait_heard("pong")


async def vanishes_with_everything_in_flight(whole: WholeServer) -> None:
    """HTTP and TCP visits, some waiting for their first byte, some in the middle, one uploading."""
    async with http_service() as service, tcp_service(silent) as slow, whole.agent() as agent:
        web = await agent.register("http", service.port, subdomain="demo")
        tcp = await agent.register("tcp", slow)
        await agent.serve()
        assert tcp.assigned_port is not None
        down = await whole.server.connect()
        await down.send_all(b"GET /size/50000000 HTTP/1.1\r\nHost: demo.localhost\r\n\r\n")
        await down.receive_some(1000)
        web.local = ("127.0.0.1", slow)
        waiting = await whole.server.connect()
        await waiting.send_all(GET)
        up = await whole.server.connect()
        await up.send_all(
            b"POST / HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 10000000\r\n\r\n" + bytes(100_000)
        )
        joined = await trio.open_tcp_stream("127.0.0.1", tcp.assigned_port)
        await joined.send_all(b"x")
        await whole.until(lambda: agent.local_connections == 4)
        await agent.drop_control()
        assert (await waiting.receive_some(4096)).startswith(b"HTTP/1.1 502 ")
        for visitor in (down, up, joined):
            await read_to_end(visitor)
        for visitor in (down, waiting, up, joined):
            await visitor.aclose()


async def loses_its_data_socket_again_and_again(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        await agent.register("http", 1, subdomain="demo")
        for _ in range(10):
            websocket = await agent._open(f"/_data/{agent.session_id}")
            await websocket.drop()
        first = await agent._open(f"/_data/{agent.session_id}")
        second = await agent._open(f"/_data/{agent.session_id}")
        await first.drop()
        await second.drop()


async def asks_for_a_data_socket_that_is_not_its_own(whole: WholeServer) -> None:
    from tests.support.stock_agent import Refused

    for _ in range(5):
        with pytest.raises(Refused):
            await whole.dial("/_data/00000000-0000-4000-8000-000000000000")


async def local_service_refuses(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        await agent.register("http", 1, subdomain="demo")
        tcp = await agent.register("tcp", 1)
        await agent.serve()
        assert tcp.assigned_port is not None
        for _ in range(5):
            assert (await whole.get("demo")).status == 502
            async with await trio.open_tcp_stream("127.0.0.1", tcp.assigned_port) as visitor:
                assert await read_to_end(visitor) == b""
        await agent.close()


async def names_streams_that_are_not_its_own(whole: WholeServer) -> None:
    """C16: the id of another session's connection, one that is used up, one that never was."""
    async with http_service() as service, whole.serving(service.port) as agent, whole.serving(1, "other") as other:
        assert (await whole.get("demo")).status == 200
        used = (await agent.wait_heard("new_connection"))["conn_id"]
        for conn_id in (used, "00000000-0000-4000-8000-000000000000", "no uuid"):
            await other._say(type="data_stream_open", conn_id=conn_id)
            await agent._say(type="data_stream_open", conn_id=conn_id)
        await other.ping(1)
        await other.wait_heard("pong")
        assert whole.shell(other).ignored == 3
        assert (await whole.get("demo")).status == 200


AGENTS: list[Scenario] = [
    wrong_token,
    connects_and_leaves,
    leaves_in_the_handshake,
    leaves_in_the_head,
    is_no_agent,
    upgrades_and_leaves,
    leaves_within_auth,
    asks_and_leaves,
    registers_and_leaves,
    registers_more_than_it_may,
    registers_and_unregisters_again_and_again,
    malformed_frame,
    malformed_registration,
    yamux_violation,
    opens_streams_itself,
    vanishes_with_everything_in_flight,
    loses_its_data_socket_again_and_again,
    asks_for_a_data_socket_that_is_not_its_own,
    local_service_refuses,
    names_streams_that_are_not_its_own,
]


# visitors


async def unknown_host(whole: WholeServer) -> None:
    assert (await whole.get("nobody")).status == 404


async def no_host(whole: WholeServer) -> None:
    assert (await whole.ask_raw(b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def visitors_leave_at_every_stage(whole: WholeServer) -> None:
    async with http_service() as service, whole.serving(service.port):
        upload = b"POST / HTTP/1.1\r\nHost: demo.localhost\r\nContent-Length: 1000\r\n\r\nhalf"
        for raw in (b"", b"GET", GET[:-2], GET, GET * 5, upload):
            for leaves_by_reset in (False, True):
                stream = await whole.server.connect()
                await stream.send_all(raw)
                if leaves_by_reset:
                    by_reset(stream)
                await trio.aclose_forcefully(stream)


async def visitors_leave_while_they_wait_for_an_agent(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        await agent.register("http", 1, subdomain="demo")
        tcp = await agent.register("tcp", 1)
        assert tcp.assigned_port is not None
        visitors = [await whole.server.connect() for _ in range(5)]
        for visitor in visitors:
            await visitor.send_all(GET)
        visitors += [await trio.open_tcp_stream("127.0.0.1", tcp.assigned_port) for _ in range(5)]
        await whole.until(lambda: whole.shell(agent).link.waiting == 10)
        for visitor in visitors:
            by_reset(visitor)
            await trio.aclose_forcefully(visitor)
        await whole.until(lambda: whole.shell(agent).link.waiting == 0)
        await agent.drop_control()
        await whole.until(lambda: whole.sessions.find(agent.session_id) is None)
        parked = await whole.server.connect()  # while the address is held
        await parked.send_all(GET)
        await trio.testing.wait_all_tasks_blocked(0.01)
        by_reset(parked)
        await trio.aclose_forcefully(parked)


async def tcp_visitors_come_and_go(whole: WholeServer) -> None:
    async with tcp_service(echo) as port, whole.serving(port, protocol="tcp") as agent:
        public = agent.tunnels[0].assigned_port
        assert public is not None
        for size in (0, 1, 100_000):
            for leaves_by_reset in (False, True):
                stream = await trio.open_tcp_stream("127.0.0.1", public)
                if size:
                    await stream.send_all(bytes(size))
                    await stream.receive_some(1)
                if leaves_by_reset:
                    by_reset(stream)
                await trio.aclose_forcefully(stream)
        await whole.until(lambda: agent.data is not None and not agent.data.streams)


VISITORS: list[Scenario] = [
    unknown_host,
    no_host,
    visitors_leave_at_every_stage,
    visitors_leave_while_they_wait_for_an_agent,
    tcp_visitors_come_and_go,
]


@pytest.mark.parametrize("scenario", AGENTS + VISITORS, ids=lambda scenario: scenario.__name__)
async def test_nothing_is_left_behind_and_others_are_served(whole: WholeServer, scenario: Scenario) -> None:
    async with http_service() as service, whole.serving(service.port, "bystander") as bystander:
        assert (await whole.get("bystander")).status == 200
        async with whole.leaves_nothing():
            with trio.fail_after(30):
                await scenario(whole)
        assert (await whole.get("bystander")).status == 200
        assert not bystander.ended.is_set()
        assert bystander.data_opened == 1
        assert bystander.violations == []


async def test_W16_who_never_authenticates_leaves_nothing(whole: WholeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rustunnel, "AUTH_SECONDS", 0.1)
    async with whole.leaves_nothing():
        controls = [await whole.dial("/_control") for _ in range(5)]
        for control in controls:
            with trio.fail_after(5), pytest.raises(EOFError):
                await control.receive()
            await control.drop()


async def test_W19_a_frozen_agent_leaves_nothing(whole: WholeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rustunnel, "PING_SECONDS", 0.1)
    monkeypatch.setattr(rustunnel, "PONG_SECONDS", 0.1)
    async with whole.leaves_nothing(), http_service() as service, whole.serving(service.port) as agent:
        agent.freeze()
        assert (await whole.get("demo")).status == 502
        await whole.until(lambda: len(whole.sessions) == 0)
        agent.thaw()


async def test_C07_nothing_is_done_before_auth(whole: WholeServer) -> None:
    async with whole.leaves_nothing():
        for frame in (
            {"type": "register_tunnel", "request_id": "1", "protocol": "http", "subdomain": "demo", "local_addr": "x"},
            {"type": "unregister_tunnel", "tunnel_id": "x"},
            {"type": "pong", "timestamp": 1},
        ):
            control = await whole.dial("/_control")
            await control.send(BINARY, json.dumps(frame).encode())
            assert json.loads((await control.receive())[1])["type"] == "auth_error"
            with pytest.raises(EOFError):
                await control.receive()
            await control.drop()
            assert whole.tunnel("demo") is None


async def test_C09_agents_with_a_token_get_in_during_a_flood_of_wrong_ones(whole: WholeServer) -> None:
    async with whole.leaves_nothing():
        async with trio.open_nursery() as nursery:

            async def guess(number: int) -> None:
                control = await whole.dial("/_control")
                auth = {"type": "auth", "token": f"guess-{number}", "client_version": "0.7.8"}
                await control.send(BINARY, json.dumps(auth).encode())
                try:
                    assert json.loads((await control.receive())[1])["type"] == "auth_error"
                except EOFError:
                    pass  # too many wait already
                await control.drop()

            for number in range(60):
                nursery.start_soon(guess, number)
            await whole.until(lambda: len(whole.parts._door._strangers) > 20)
            with trio.fail_after(10):
                async with whole.serving(1):
                    pass
        whole.forget_held()


async def test_C10_the_same_text_for_every_wrong_token(whole: WholeServer) -> None:
    token, token_id = await whole.new_token("one")
    texts = set()
    for wrong in ("", "x", token[:-1] + ("a" if token[-1] != "a" else "b"), token + "x", token_id, token.upper(), "\0"):
        with pytest.raises(SessionFailed) as failed:
            async with whole.agent(wrong or "\N{ZERO WIDTH SPACE}"):
                pass
        texts.add(str(failed.value))
    assert len(texts) == 1


@pytest.mark.parametrize("edge", ["control", "https"])
async def test_a_failing_handshake_sends_its_alert_and_leaves_nothing(whole: WholeServer, edge: str) -> None:
    ready = whole.server.ready
    port = ready.control_port if edge == "control" else ready.https_port
    async with whole.leaves_nothing():
        for what in ("old version", "unknown cipher", "plain HTTP", "garbage"):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream:
                if what in ("old version", "unknown cipher"):
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                    context.check_hostname = False
                    context.verify_mode = ssl.CERT_NONE
                    context.maximum_version = ssl.TLSVersion.TLSv1_2
                    context.set_ciphers("AES128-SHA:@SECLEVEL=0")
                    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
                    with pytest.raises(ssl.SSLWantReadError):
                        client.do_handshake()
                    await stream.send_all(outgoing.read())
                    answer = await read_to_end(stream)
                    assert answer[:1] == b"\x15"  # an alert record,
                    assert answer[5:6] == b"\x02"  # and a fatal one
                else:
                    await stream.send_all(GET if what == "plain HTTP" else bytes(range(256)))
                    await read_to_end(stream)


async def test_an_exception_in_one_handler_costs_its_session_and_is_counted(
    whole: WholeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with http_service() as service, whole.serving(service.port, "bystander") as bystander:
        real = whole.sessions.register

        async def broken(session: object, wish: object) -> object:
            raise RuntimeError("a bug of ours")

        async with whole.leaves_nothing():
            monkeypatch.setattr(whole.sessions, "register", broken)
            whole.expected_crashes = 1
            async with whole.agent() as agent:
                with pytest.raises(SessionFailed):
                    await agent.register("http", 1)
                assert agent.violations == []
            monkeypatch.setattr(whole.sessions, "register", real)
        assert (await whole.get("bystander")).status == 200
        assert not bystander.ended.is_set()
        async with whole.serving(service.port) as agent:
            assert (await whole.get("demo")).status == 200


async def test_the_counting_sees_what_is_left_behind(whole: WholeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support import whole_server as support

    monkeypatch.setattr(support, "WAIT_SECONDS", 0.2)
    with pytest.raises(AssertionError, match="strangers"):
        async with whole.leaves_nothing():
            left = await whole.dial("/_control")
    await left.drop()
