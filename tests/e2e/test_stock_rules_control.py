"""Sections 1, 2 and 3 of the agent protocol: each rule that binds the server, on a whole one over TLS."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from rustunnel_py.agents import rustunnel, rustunnel_link
from tests.support import stock_agent as played
from tests.support.golden import golden
from tests.support.services import Reply, echo, http_service, pattern, tcp_service
from tests.support.stock_agent import (
    BINARY,
    TEXT,
    ControlEnded,
    Refused,
    SessionFailed,
    StockAgent,
    WebSocket,
    stock_agent,
)
from tests.support.whole_server import WholeServer, read_to_end, whole_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PORTS: dict[str, object] = {"tcp_port_range": (31000, 31999)}
NOBODY = "00000000-0000-4000-8000-000000000000"


async def silent(stream: trio.SocketStream) -> None:
    """A local service that takes everything and never answers."""
    while await stream.receive_some(65536):
        pass


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[WholeServer]:
    async with whole_server(tmp_path, limits=PORTS) as whole:
        yield whole


async def dropped(agent: StockAgent) -> ControlEnded:
    """Its control socket was dropped: no close frame, and it may come back."""
    with trio.fail_after(10):
        await agent.ended.wait()
    assert isinstance(agent.failure, ControlEnded)
    assert not agent.failure.final
    assert agent.violations == []
    return agent.failure


# 1. Connections


async def test_1_the_recorded_upgrade_requests_are_taken_as_they_are(whole: WholeServer) -> None:
    requests = [line.text for line in golden("00-upgrade") if line.event == "upgrade" and line.sender == "agent"]
    assert len(requests) == 2
    async with whole.serving(1) as agent:
        for recorded in requests:
            path = recorded.split(" ")[1]
            session = path.removeprefix("/_data/")
            stream = await whole.raw_tls()
            await stream.send_all(
                recorded.replace(session, agent.session_id).encode() if session != path else recorded.encode()
            )
            answer = bytes(await stream.receive_some(4096)).partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
            assert answer[0].startswith(b"http/1.1 101 ")
            # Nothing but what the handshake needs: no subprotocol, no extension, no header of ours.
            assert {line.partition(b":")[0] for line in answer[1:]} == {
                b"connection",
                b"upgrade",
                b"sec-websocket-accept",
            }
            await trio.aclose_forcefully(stream.transport_stream)
        agent._reconnect_data = False


@pytest.mark.parametrize("path", ["/", "/control", "/_control/", "/_data", "/_CONTROL", "/ws", "/_control%2f"])
async def test_1_any_other_path_is_refused_before_the_upgrade(whole: WholeServer, path: str) -> None:
    with pytest.raises(Refused) as refused:
        await whole.dial(path)
    assert refused.value.status == 404


@pytest.mark.parametrize("path", ["/_control?token=x", f"/_data/{NOBODY}", "/_data/", "/elsewhere"])
async def test_1_no_upgrade_is_ever_answered_401(whole: WholeServer, path: str) -> None:
    """401 makes a stock agent give up for good; 403, 404 and 503 make it come back."""
    with pytest.raises(Refused) as refused:
        await whole.dial(path)
    assert refused.value.status in (400, 403, 404)


async def test_1_a_wrong_token_is_said_in_a_frame_and_not_on_the_upgrade(whole: WholeServer) -> None:
    control = await whole.dial("/_control")
    await control.send(BINARY, b'{"type":"auth","token":"wrong","client_version":"0.7.8"}')
    op, payload = await control.receive()
    assert (op, json.loads(payload)["type"]) == (BINARY, "auth_error")
    with pytest.raises(EOFError):  # dropped, no close frame
        await control.receive()
    await control.drop()


async def test_1_every_control_frame_is_one_binary_message_with_one_object(whole: WholeServer) -> None:
    control = await whole.dial("/_control")
    heard: list[tuple[int, bytes]] = []

    async def say(**frame: object) -> None:
        await control.send(BINARY, json.dumps(frame).encode())
        heard.append(await control.receive())

    await say(type="auth", token=whole.server.admin_token, client_version="0.7.8")
    await say(type="register_tunnel", request_id="1", protocol="http", subdomain="demo", local_addr="localhost:1")
    await say(type="register_tunnel", request_id="2", protocol="http", subdomain="x", local_addr="localhost:1")
    await say(type="p2p_connect", request_id="3", target_tunnel_name="n", secret_hash="h")
    await say(type="ping", timestamp=7)
    assert [op for op, _ in heard] == [BINARY] * 5
    kinds = [json.loads(payload)["type"] for _, payload in heard]
    assert kinds == ["auth_ok", "tunnel_registered", "tunnel_error", "p2p_error", "pong"]
    await control.drop()


async def _revoke(whole: WholeServer, agent: StockAgent) -> None:
    _, tokens = await whole.api("GET", "/api/tokens")
    await whole.api("DELETE", f"/api/tokens/{tokens[0]['id']}")


async def _delete(whole: WholeServer, agent: StockAgent) -> None:
    await whole.api("DELETE", f"/api/tunnels/{agent.tunnels[0].id}")


async def _malformed(whole: WholeServer, agent: StockAgent) -> None:
    await agent._say(type="auth_ok", session_id="x", server_version="0.7.0")


async def _second_auth(whole: WholeServer, agent: StockAgent) -> None:
    await agent._say(type="auth", token="x", client_version="0.7.8")


async def _unmasked(whole: WholeServer, agent: StockAgent) -> None:
    assert agent.control is not None
    await agent.control.stream.send_all(b"\x82\x02{}")


async def _too_long(whole: WholeServer, agent: StockAgent) -> None:
    assert agent.control is not None
    try:
        await agent.control.send(BINARY, bytes(300_000))
    except trio.BrokenResourceError:
        pass


async def _bad_utf8(whole: WholeServer, agent: StockAgent) -> None:
    assert agent.control is not None
    await agent.control.send(TEXT, b"\xff\xfe")


async def _take_over(whole: WholeServer, agent: StockAgent) -> None:
    async with whole.agent() as other:
        wish = {"protocol": "http", "subdomain": "demo", "local_addr": "localhost:1", "take_over": True}
        await other._say(type="register_tunnel", request_id="1", **wish)
        await other._only_answer(("tunnel_registered",))


@pytest.mark.parametrize(
    "end",
    [_revoke, _delete, _malformed, _second_auth, _unmasked, _too_long, _bad_utf8, _take_over],
    ids=lambda end: end.__name__.strip("_"),
)
async def test_1_no_close_frame_on_control_however_the_session_ends(whole: WholeServer, end: object) -> None:
    token, _ = await whole.new_token("one")
    async with whole.serving(1, token=token) as agent:
        agent._reconnect_data = False
        await end(whole, agent)  # type: ignore[operator]
        await dropped(agent)
        assert "close frame" not in agent.data_ends


async def test_1_no_close_frame_after_silence(whole: WholeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rustunnel, "PING_SECONDS", 0.05)
    monkeypatch.setattr(rustunnel, "PONG_SECONDS", 0.05)
    async with whole.serving(1) as agent:
        agent._reconnect_data = False
        agent.freeze()
        await whole.until(lambda: len(whole.sessions) == 0)
        agent.thaw()
        await dropped(agent)


async def test_1_when_control_drops_data_is_closed_too(whole: WholeServer) -> None:
    async with whole.serving(1) as agent:
        data = await agent.wait_data(1)
        await agent.drop_control()
        with trio.fail_after(5):
            await data.ended.wait()
        await whole.until(lambda: len(whole.sessions) == 0)


async def test_1_the_first_data_upgrade_is_taken_before_any_tunnel_and_at_any_time(whole: WholeServer) -> None:
    async with http_service() as service, whole.agent() as agent:
        await agent.serve()  # no tunnel yet
        assert (await agent.wait_data(1)).ended.is_set() is False
        # A server that stops still takes it while visits drain.
        async with whole.agent() as late:
            await late.register("http", service.port, subdomain="late")
            replies: list[Reply] = []

            async def visit() -> None:
                replies.append(await whole.get("late"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(visit)
                await whole.until(lambda: whole.shell(late).link.waiting == 1)
                whole.server.stopping.set()
                await trio.testing.wait_all_tasks_blocked(0.01)
                await late.serve()
            assert [reply.status for reply in replies] == [200]


async def test_1_quick_acknowledgements_on_every_data_socket(whole: WholeServer) -> None:
    async with whole.serving(1) as agent:
        for count in (1, 2):
            await agent.wait_data(count)
            await whole.until(lambda: whole.shell(agent)._trunk is not None)
            trunk = whole.shell(agent)._trunk
            assert trunk is not None
            assert trunk.connection.quickack  # type: ignore[attr-defined]
            if count == 1:
                await agent.drop_data()
                await agent.wait_data(2)


async def test_1_an_agent_may_come_by_the_https_edge(whole: WholeServer) -> None:
    context = whole.server.client_context()
    async with (
        http_service() as service,
        stock_agent(whole.server.ready.https_port, whole.server.admin_token, tls=context) as agent,
    ):
        await agent.register("http", service.port, subdomain="demo")
        await agent.serve()
        assert (await whole.get("demo")).status == 200
        trunk = whole.shell(agent)._trunk
        assert trunk is not None
        assert trunk.connection.quickack  # type: ignore[attr-defined]
        assert agent.violations == []


@pytest.mark.parametrize("port", ["https_port", "http_port", "control_port"])
async def test_1_a_quiet_agent_lives_on_whichever_way_it_came(
    mock_clock: trio.testing.MockClock, tmp_path: Path, port: str
) -> None:
    """No time of a visitor's runs for it: to send a head, to send another."""
    times: dict[str, object] = {"header_seconds": 2.0, "idle_seconds": 4.0}
    async with whole_server(tmp_path, server={"control_plain": True}, limits=times) as whole, http_service() as service:
        context = whole.server.client_context() if port == "https_port" else None
        number = getattr(whole.server.ready, port)
        async with stock_agent(number, whole.server.admin_token, tls=context) as agent:
            await agent.register("http", service.port, subdomain="demo")
            await agent.serve()
            idle = await whole.server.connect()
            for _ in range(6):
                mock_clock.jump(1)
                await trio.testing.wait_all_tasks_blocked(0.01)
            async with idle:
                assert await idle.receive_some(1) == b""  # sweeps did run
            assert not agent.ended.is_set()
            assert (await whole.get("demo")).status == 200
            assert agent.violations == []


async def test_1_text_and_what_is_no_json_is_ignored_and_counted(whole: WholeServer) -> None:
    async with whole.serving(1) as agent:
        assert agent.control is not None
        await agent.control.send(TEXT, b'{"type":"ping","timestamp":1}')
        for raw in (b"", b"no json", b"\xff\xfe", b"{}}", b"\xef\xbb\xbf{}"):
            await agent.control.send(BINARY, raw)
        await agent._say(type="tomorrow", fields=[1, {"a": None}])
        await agent._say(type="ping", timestamp="soon")
        await agent._say(type="ping", timestamp=2, tomorrow={"nested": [True]})
        assert (await agent.wait_heard("pong"))["timestamp"] == 2
        assert whole.shell(agent).ignored == 8
        assert not agent.ended.is_set()


async def test_1_no_message_of_ours_is_longer_than_a_stock_agent_bears(
    whole: WholeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = 0
    receive = WebSocket.receive

    async def measured(self: WebSocket) -> tuple[int, bytes]:
        nonlocal longest
        op, payload = await receive(self)
        longest = max(longest, len(payload))
        return op, payload

    monkeypatch.setattr(WebSocket, "receive", measured)
    async with http_service() as service, whole.serving(service.port) as agent:
        reply = await whole.get("demo", "/up", method="POST", body=pattern(2_000_000))
        assert b" 2000000 " in reply.body
        assert agent.violations == []
    assert 0 < longest <= 256 * 1024  # so that a ping behind it is never late; the agent's own bound is 16 MiB


# 2. Control frames


async def test_2_the_servers_version_is_the_protocol_level(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        numbers = agent.server_version.split(".")
        assert len(numbers) == 3
        assert tuple(map(int, numbers)) >= (0, 7, 0)


async def test_2_absent_and_null_mean_the_same(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        optional = ("subdomain", "group", "group_key_hash", "p2p_name", "p2p_secret_hash", "health_check")
        for fields in ({}, dict.fromkeys(optional)):
            await agent._say(type="register_tunnel", request_id="1", protocol="http", local_addr="x:1", **fields)
            answer = await agent._only_answer(("tunnel_registered",))
            assert answer["assigned_port"] is None
            assert set(answer) == {"type", "request_id", "tunnel_id", "public_url", "assigned_port"}


async def test_2_nothing_is_said_before_auth_ok_and_auth_ok_is_first(whole: WholeServer) -> None:
    control = await whole.dial("/_control")
    with trio.move_on_after(0.3) as waited:
        await control.receive()
    assert waited.cancelled_caught
    await control.send(
        BINARY, json.dumps({"type": "auth", "token": whole.server.admin_token, "client_version": "0.7.8"}).encode()
    )
    op, payload = await control.receive()
    assert (op, json.loads(payload)["type"]) == (BINARY, "auth_ok")
    await control.drop()


async def test_2_no_text_that_should_lead_to_a_retry_has_the_letters_auth(tmp_path: Path) -> None:
    table: dict[str, object] = {"reserved": ["author", "admin"]}
    async with whole_server(tmp_path, names=table, limits={"tcp_port_range": (0, 0)}) as whole:
        token, _ = await whole.new_token("one")
        async with whole.agent() as admin, whole.agent(token) as agent:
            await admin.register("http", 1, subdomain="my-auth")
            for protocol, name in (
                ("http", "my-auth"),
                ("http", "author"),
                ("http", "-auth"),
                ("http", "admin"),
                ("auth", "x-auth"),
                ("tcp", None),
                ("udp", None),
                ("p2p", "auth-name"),
            ):
                wish = {"protocol": protocol, "subdomain": name, "local_addr": "auth:1"}
                await agent._say(type="register_tunnel", request_id="auth", **wish)
                message: str = (await agent._only_answer(("tunnel_error",)))["message"]
                assert "auth" not in message.lower(), message
                assert not message.startswith("tunnel error")
                assert message
            await agent.register("http", 1)  # the session goes on


async def test_2_new_connection_says_http_for_https(whole: WholeServer) -> None:
    """Recording 04b."""
    async with http_service() as service, whole.agent() as agent:
        tunnel = await agent.register("https", service.port, subdomain="demo")
        assert tunnel.public_url == f"https://demo.localhost:{whole.server.ready.https_port}"
        await agent.serve()
        stream = await whole.server.connect_tls("demo.localhost")
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: demo.localhost\r\nConnection: close\r\n\r\n")
        assert (await read_to_end(stream)).startswith(b"HTTP/1.1 200 ")
        await trio.aclose_forcefully(stream.transport_stream)
        announced = await agent.wait_heard("new_connection")
        assert announced["protocol"] == "http"
        assert announced["client_addr"].startswith("127.0.0.1:")


# 3. Session


@pytest.mark.parametrize(
    ("op", "raw", "answer"),
    [
        (BINARY, b'{"type":"ping","timestamp":1}', "auth_error"),
        (BINARY, b'{"type":"register_tunnel","request_id":"1","protocol":"http","local_addr":"x"}', "auth_error"),
        (BINARY, b'{"type":"unregister_tunnel","tunnel_id":"x"}', "auth_error"),
        (BINARY, b'{"type":"tomorrow"}', None),
        (BINARY, b"no json", None),
        (BINARY, b'{"type":"auth","token":"x"}', None),
        (TEXT, b'{"type":"auth","token":"x","client_version":"0.7.8"}', None),
    ],
)
async def test_3_1_what_another_first_frame_leads_to(
    whole: WholeServer, op: int, raw: bytes, answer: str | None
) -> None:
    """Recording 19. C07: nothing is done before `auth`."""
    control = await whole.dial("/_control")
    await control.send(op, raw)
    if answer is not None:
        assert json.loads((await control.receive())[1])["type"] == answer
    with pytest.raises(EOFError):
        await control.receive()
    await control.drop()
    assert len(whole.sessions) == 0


async def test_3_1_who_says_nothing_is_dropped(whole: WholeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rustunnel, "AUTH_SECONDS", 0.1)
    control = await whole.dial("/_control")
    with trio.fail_after(5), pytest.raises(EOFError):
        await control.receive()
    await control.drop()


async def test_3_1_live_api_tokens_are_accepted_and_deleted_ones_are_not(whole: WholeServer) -> None:
    token, token_id = await whole.new_token("one")
    async with whole.serving(1, token=token) as agent:
        assert whole.session(agent).caller.token_id == token_id
        agent._reconnect_data = False
        status, _ = await whole.api("DELETE", f"/api/tokens/{token_id}")
        assert status in (200, 204)
        await dropped(agent)
        assert whole.tunnel("demo") is None
    with pytest.raises(SessionFailed, match="auth error") as refused:
        async with whole.agent(token):
            pass
    assert refused.value.final


async def test_3_1_without_require_auth_every_token_is_accepted_and_strangers_take_nothing(tmp_path: Path) -> None:
    async with whole_server(tmp_path, auth={"require_auth": False}) as whole:
        token, token_id = await whole.new_token("one")
        async with whole.agent("stranger") as one, whole.agent("other") as two, whole.agent(token) as known:
            assert whole.session(known).caller.token_id == token_id
            await one.register("http", 1, subdomain="demo")
            for agent in (two, known):
                with pytest.raises(SessionFailed, match="in use"):
                    await agent.register("http", 1, subdomain="demo")
            owners = {whole.session(agent).caller.owner for agent in (one, two, known)}
            assert len(owners) == 3
            assert not whole.session(one).caller.is_admin
            status, _ = await whole.api("GET", "/api/tokens", "stranger")
            assert status in (401, 403)


async def test_3_2_nothing_comes_between_a_registration_and_its_answer(
    whole: WholeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pings are due all the time, and visitors of the first tunnel wait."""
    monkeypatch.setattr(rustunnel, "PING_SECONDS", 0.001)
    async with http_service() as service, whole.agent() as agent, trio.open_nursery() as nursery:
        await agent.register("http", service.port, subdomain="demo")
        for _ in range(5):
            nursery.start_soon(whole.get, "demo")
        for _ in range(20):
            await agent.register("http", service.port)
            await trio.sleep(0.002)
        assert agent.violations == []
        await agent.serve()
        await agent.wait_heard("new_connection", 5)
        await agent.wait_heard("ping", 2)
        assert not agent.ended.is_set()


async def test_3_2_nothing_comes_while_further_registrations_may_follow_however_long_they_take(
    mock_clock: trio.testing.MockClock, whole: WholeServer
) -> None:
    """A ping that left right behind one answer would fail the registration that is on its way."""
    async with whole.agent() as agent:
        shell = whole.shell(agent)
        for _ in range(6):
            await agent.register("http", 1)
            mock_clock.jump(8)
            await trio.testing.wait_all_tasks_blocked(0.01)
        await agent.register("http", 1)
        assert agent.violations == []
        mock_clock.jump(rustunnel.SETTLE_SECONDS + 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not shell._is_delicate
        assert (await agent._only_answer(("ping",)))["type"] == "ping"


async def test_3_3_a_visitor_before_the_data_socket_waits_for_it(whole: WholeServer) -> None:
    async with http_service() as service, whole.agent() as agent, trio.open_nursery() as nursery:
        await agent.register("http", service.port, subdomain="demo")
        replies: list[Reply] = []

        async def visit() -> None:
            replies.append(await whole.get("demo"))

        nursery.start_soon(visit)
        await whole.until(lambda: whole.shell(agent).link.waiting == 1)
        assert replies == []
        await agent.serve()
        await whole.until(lambda: replies)
        assert replies[0].status == 200


async def test_3_3_the_wait_for_a_data_socket_is_bounded(whole: WholeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rustunnel_link, "QUEUE_SECONDS", 0.1)
    async with whole.agent() as agent:
        await agent.register("http", 1, subdomain="demo")
        reply = await whole.get("demo")
        assert reply.status == 503
        assert reply.header("retry-after") is not None


@pytest.mark.parametrize("session_id", [NOBODY, "x", ""])
async def test_3_3_an_unknown_session_id_is_refused(whole: WholeServer, session_id: str) -> None:
    async with whole.agent():
        with pytest.raises(Refused) as refused:
            await whole.dial(f"/_data/{session_id}")
        assert refused.value.status == 403


async def test_3_4_Y30_a_second_data_socket_replaces_the_first(whole: WholeServer) -> None:
    async with tcp_service(silent) as slow, http_service() as service, whole.serving(slow) as agent:
        first = await agent.wait_data(1)
        agent._reconnect_data = False
        replies: list[Reply] = []

        async def visit() -> None:
            replies.append(await whole.get("demo"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit)
            await agent.wait_heard("new_connection")
            agent.tunnels[0].local = ("127.0.0.1", service.port)
            agent._reconnect_data = True
            assert agent.nursery is not None
            await agent.nursery.start(agent._run_data)
        assert [reply.status for reply in replies] == [502]
        with trio.fail_after(5):
            await first.ended.wait()
        await agent.wait_data(2)
        assert (await whole.get("demo")).status == 200


async def test_3_4_Y30_another_agents_session_id_needs_no_more_than_the_id_and_our_own_agents_needs_its_secret(
    whole: WholeServer,
) -> None:
    control = await whole.dial("/_control")
    auth = {"type": "auth", "token": whole.server.admin_token, "client_version": "1", "features": ["raw_data"]}
    await control.send(BINARY, json.dumps(auth).encode())
    welcome = json.loads((await control.receive())[1])
    for secret in ("", "X-Rustunnel-Data-Secret: wrong\r\n", f"X-Rustunnel-Data-Secret: {welcome['session_id']}\r\n"):
        stream = await whole.raw_tls()
        request = f"GET /_data/{welcome['session_id']} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
        request += "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        await stream.send_all((request + secret + "\r\n").encode())
        assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 403 ")
        await trio.aclose_forcefully(stream.transport_stream)
    await control.drop()


async def test_3_5_an_unclean_end_holds_the_address_for_its_owner_alone(whole: WholeServer) -> None:
    token, _ = await whole.new_token("one")
    async with whole.serving(1, token=token) as agent:
        await agent.drop_control()
        await whole.until(lambda: len(whole.sessions) == 0)
    _, listed = await whole.api("GET", "/api/tunnels")
    assert listed == []  # unregistered at once
    other, _ = await whole.new_token("two")
    async with whole.agent(other) as stranger:
        with pytest.raises(SessionFailed, match="in use"):
            await stranger.register("http", 1, subdomain="demo")
        whole.forget_held()
        await whole.until(lambda: whole.tunnel("demo") is None)
        await stranger.register("http", 1, subdomain="demo")


async def test_3_5_a_held_tcp_port_keeps_its_listener_and_is_released_after_the_hold(whole: WholeServer) -> None:
    async with tcp_service(echo) as port:
        async with whole.serving(port, protocol="tcp") as agent:
            public = agent.tunnels[0].assigned_port
            assert public is not None
            await agent.drop_control()
            await whole.until(lambda: len(whole.sessions) == 0)
        async with await trio.open_tcp_stream("127.0.0.1", public) as waiting:
            await waiting.send_all(b"early")
            async with whole.serving(port, protocol="tcp") as agent:
                assert agent.tunnels[0].assigned_port == public
                with trio.fail_after(10):
                    assert await waiting.receive_some(5) == b"early"
        await whole.until(lambda: len(whole.sessions) == 0)
        whole.forget_held()
        await whole.until(lambda: not whole.parts._tcp._ports)
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", public)


async def test_3_6_a_tunnel_closed_by_the_api_ends_an_emptied_session_and_only_that(whole: WholeServer) -> None:
    async with http_service() as service, whole.agent() as agent:
        first = await agent.register("http", service.port, subdomain="demo")
        second = await agent.register("http", service.port, subdomain="other")
        await agent.serve()
        assert (await whole.api("DELETE", f"/api/tunnels/{first.id}"))[0] in (200, 204)
        assert (await whole.get("demo")).status == 404
        assert (await whole.get("other")).status == 200
        await agent.ping(1)
        await agent.wait_heard("pong")
        assert [frame["type"] for frame in agent.heard].count("tunnel_error") == 0
        agent._reconnect_data = False
        await whole.api("DELETE", f"/api/tunnels/{second.id}")
        await dropped(agent)
        assert len(whole.sessions) == 0
        assert whole.tunnel("other") is None  # free at once: it was closed on purpose


async def test_3_7_C15_unregister_counts_for_the_sessions_own_tunnels_only(whole: WholeServer) -> None:
    async with http_service() as service, whole.serving(service.port) as agent, whole.serving(1, "other") as other:
        tunnel = agent.tunnels[0]
        for foreign in (tunnel.id, tunnel.id.upper(), NOBODY, "", "no uuid", "{" + tunnel.id + "}"):
            await other._say(type="unregister_tunnel", tunnel_id=foreign)
        await other.ping(1)
        await other.wait_heard("pong")
        assert (await whole.get("demo")).status == 200
        assert whole.shell(other).ignored == 6
        assert not other.ended.is_set()


@pytest.mark.parametrize("timestamp", [0, 1, 2**53 + 1, 2**63 - 1, 2**64 - 1])
async def test_3_C19_a_pong_echoes_the_timestamp_at_once(whole: WholeServer, timestamp: int) -> None:
    async with whole.serving(1) as agent:
        await agent.ping(timestamp)
        with trio.fail_after(2):
            assert await agent.wait_heard("pong") == {"type": "pong", "timestamp": timestamp}


async def test_3_the_server_pings_in_its_own_rhythm_and_only_by_json(
    whole: WholeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rustunnel, "PING_SECONDS", 0.02)
    async with whole.serving(1) as agent:
        with trio.fail_after(5):
            pings = [await agent.wait_heard("ping", count) for count in (1, 2, 3)]
        stamps = [ping["timestamp"] for ping in pings]
        assert stamps == sorted(stamps)
        assert stamps[0] > 1_600_000_000_000  # milliseconds since 1970
        assert agent.violations == []  # a WebSocket ping would be one


async def test_3_the_data_socket_is_pinged_and_given_up_after_silence(whole: WholeServer) -> None:
    async with http_service() as service, whole.serving(service.port) as agent:
        trunk = whole.shell(agent)._trunk
        assert trunk is not None
        first = await agent.wait_data(1)
        agent.freeze()
        now = whole.pump.now
        whole.call(lambda: trunk.sweep(now + 20))
        assert trunk._asked_at is not None
        whole.call(lambda: trunk.sweep(now + 29))
        assert whole.shell(agent).link.connected
        whole.call(lambda: trunk.sweep(now + 31))
        await whole.until(lambda: not whole.shell(agent).link.connected)
        assert not agent.ended.is_set()  # control has a time of its own
        agent.thaw()
        with trio.fail_after(5):
            await first.ended.wait()
        assert (await whole.get("demo")).status == 200
        assert agent.data_opened == 2


async def test_3_the_stop_of_the_server_sends_nothing_and_drops_both_sockets(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:

        async def stay(whole: WholeServer, *, task_status: trio.TaskStatus[StockAgent]) -> None:
            async with whole.serving(1) as agent:
                agent._reconnect_data = False
                task_status.started(agent)
                await trio.sleep_forever()

        async with whole_server(tmp_path) as whole:
            agent: StockAgent = await nursery.start(stay, whole)
            before = len(agent.heard)
        await dropped(agent)
        assert len(agent.heard) == before
        assert agent.data is not None
        with trio.fail_after(5):
            await agent.data.ended.wait()
        assert agent.data.go_away is None
        assert "close frame" not in agent.data_ends
        nursery.cancel_scope.cancel()


def test_the_agents_own_ping_is_every_30_s() -> None:
    assert (rustunnel.PING_SECONDS, rustunnel.PONG_SECONDS, played.PING_SECONDS) == (30, 10, 30)
    assert rustunnel.AUTH_SECONDS == 5
