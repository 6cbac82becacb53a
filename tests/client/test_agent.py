"""The agent against a server played from the wire spec, on real sockets."""

from __future__ import annotations

import os
import signal
import struct

import pytest
import trio

from rustunnel_py.client import session
from rustunnel_py.client.agent import run_agent
from rustunnel_py.client.config import (
    AgentConfig,
    HttpTunnel,
    LocalAddress,
    Login,
    Pin,
    Scheme,
    ServerAddress,
    TcpTunnel,
)
from rustunnel_py.client.news import (
    Connected,
    DataLost,
    Disconnected,
    Ended,
    GoingAway,
    Latency,
    LocalTrouble,
    Ready,
    TunnelRefused,
    TunnelUp,
    Visited,
)
from rustunnel_py.model.access import Secret
from tests.support.agent_under_test import Heard, closed_port, local_echo, running_agent, up
from tests.support.played_server import (
    ACK,
    DATA,
    FIN,
    PING,
    RST,
    SYN,
    Frame,
    PlayedServer,
    make_identity,
    played_server,
    read_websocket,
    websocket_frame,
)

ID = "0a0b0c0d-1111-4222-8333-00000000000{}"
URL = "http://abc.tunnel.test:8080"


async def test_http_tunnel_from_auth_to_the_echo_of_two_requests_on_one_stream() -> None:
    async with local_echo() as echo, played_server() as server:
        tunnel = HttpTunnel(echo.local, "abc", host_header="rewrite", proxy_protocol=1)
        async with running_agent(server, tunnel) as agent:
            control = await server.next_control()
            await control.welcome(features=["raw_data"], data_secret="s3cret", region="eu")
            assert control.auth["token"] == "sesame"
            assert "raw_data" in control.auth["features"]
            assert control.auth["machine"] == "ab" * 16
            assert len(control.auth["instance"]) == 32
            wish = await control.register("t1", URL)
            assert (wish["protocol"], wish["subdomain"], wish["local_addr"]) == ("http", "abc", echo.local.address)
            assert wish["host_header"] == echo.local.address
            assert wish["proxy_protocol"] == 1
            assert "take_over" not in wish
            data = await server.next_data(raw=True)
            assert data.upgrade.path == f"/_data/{control.session_id}"
            assert data.upgrade.headers["x-rustunnel-data-secret"] == "s3cret"
            await agent.screen.until(Ready)
            assert agent.screen.of(Connected) == [Connected(f"127.0.0.1:{server.port}", "eu", True)]
            assert agent.screen.of(TunnelUp) == [TunnelUp("t1", "http", URL, str(echo.local))]

            await control.announce(ID.format(1), "http", tunnel_id="t1")
            await data.open(1, ID.format(1), b"first")
            assert await data.read(1, 5) == b"first"
            await data.write(1, b"second")
            assert await data.read(1, 6) == b"second"
            assert echo.connections == 1


async def test_stream_before_its_announcement_loses_nothing() -> None:
    async with local_echo() as echo, played_server() as server, running_agent(server, TcpTunnel(echo.local)):
        control, data = await up(server, "tcp://tunnel.test:20005")
        await data.open(1, ID.format(1), b"early")
        await data.write(1, b" birds", FIN)
        await trio.testing.wait_all_tasks_blocked()
        assert echo.connections == 0
        await control.announce(ID.format(1), "tcp", tunnel_id="t1")
        assert await data.read(1, 15) == b"early birds|end"
        await data.flagged(1, FIN)
        assert not data.flags[1] & RST


@pytest.mark.parametrize(
    ("websocket", "granted", "raw"), [(False, True, True), (False, False, False), (True, True, False)]
)
async def test_data_socket_is_raw_only_where_both_sides_have_the_feature(
    websocket: bool, granted: bool, raw: bool
) -> None:
    async with (
        local_echo() as echo,
        played_server() as server,
        running_agent(server, TcpTunnel(echo.local), websocket=websocket) as agent,
    ):
        control = await server.next_control()
        await control.welcome(features=["raw_data"] if granted else [])
        assert ("raw_data" in control.auth["features"]) is not websocket
        await control.register("t1", "tcp://tunnel.test:20005", 20005)
        data = await server.next_data(raw=raw)
        await control.announce(ID.format(1), "tcp")
        big = bytes(range(256)) * 800
        await data.open(1, ID.format(1), big)
        assert await data.read(1, len(big)) == big
        connected = await agent.screen.until(Connected)
        assert connected.raw_data is raw


async def test_bytes_behind_the_101_in_the_same_segment_are_yamux() -> None:
    async with local_echo() as echo, played_server() as server, running_agent(server, TcpTunnel(echo.local)):
        control = await server.next_control()
        await control.welcome(features=["raw_data"])
        await control.register("t1", "tcp://tunnel.test:20005", 20005)
        await control.announce(ID.format(1), "tcp")
        upgrade = await server.next_data_upgrade()
        first = bytes.fromhex(ID.format(1).replace("-", ""))
        frames = struct.pack("!BBHII", 0, DATA, SYN, 1, 16) + first + struct.pack("!BBHII", 0, DATA, FIN, 1, 2) + b"hi"
        await upgrade.accept(frames)
        data = server.follow(upgrade, raw=True)
        assert await data.read(1, 6) == b"hi|end"


async def test_refused_local_service_resets_the_stream_and_says_so() -> None:
    port = await closed_port()
    async with (
        played_server() as server,
        running_agent(server, HttpTunnel(LocalAddress("localhost", port))) as agent,
    ):
        control, data = await up(server, URL)
        await control.announce(ID.format(1), "http")
        await data.open(1, ID.format(1), b"GET / HTTP/1.1\r\n\r\n")
        await data.flagged(1, RST)
        trouble = await agent.screen.until(LocalTrouble)
        assert trouble.local == f"localhost:{port}"
        assert "refused" in trouble.message


async def test_localhost_is_both_loopbacks() -> None:
    async with local_echo("::1") as echo, played_server() as server:
        local = LocalAddress("localhost", echo.local.port)
        async with running_agent(server, TcpTunnel(local)):
            control, data = await up(server, "tcp://tunnel.test:20005")
            for stream in (1, 3):
                await control.announce(ID.format(stream), "tcp")
                await data.open(stream, ID.format(stream), b"six")
                assert await data.read(stream, 3) == b"six"
            assert echo.connections == 2


async def test_each_tunnel_reaches_its_own_local_service() -> None:
    async with local_echo() as one, local_echo() as two, local_echo() as three, played_server() as server:
        tunnels = HttpTunnel(one.local), HttpTunnel(two.local), TcpTunnel(three.local)
        async with running_agent(server, *tunnels):
            control, data = await up(server, URL, "http://def.tunnel.test", "tcp://tunnel.test:20005")
            wanted = [
                ("http", "t2", two),
                ("http", "t1", one),
                ("tcp", "t3", three),
                ("https", None, one),
                ("tcp", None, three),
            ]
            for index, (protocol, tunnel_id, echo) in enumerate(wanted, 1):
                before = echo.connections
                await control.announce(ID.format(index), protocol, tunnel_id=tunnel_id)
                await data.open(2 * index - 1, ID.format(index), b"x")
                assert await data.read(2 * index - 1, 1) == b"x"
                assert echo.connections == before + 1


@pytest.mark.parametrize(("protocol", "tunnel_id"), [("tcp", "t9"), ("udp", None), ("http", None)])
async def test_stream_for_no_tunnel_of_ours_is_reset(protocol: str, tunnel_id: str | None) -> None:
    async with local_echo() as echo, played_server() as server, running_agent(server, TcpTunnel(echo.local)):
        control, data = await up(server, "tcp://tunnel.test:20005")
        await control.announce(ID.format(1), protocol, tunnel_id=tunnel_id)
        await data.open(1, ID.format(1))
        await data.flagged(1, RST)
        assert echo.connections == 0


async def test_reset_from_the_server_closes_the_local_connection() -> None:
    async with local_echo() as echo, played_server() as server, running_agent(server, TcpTunnel(echo.local)):
        control, data = await up(server, "tcp://tunnel.test:20005")
        await control.announce(ID.format(1), "tcp")
        await data.open(1, ID.format(1), b"x")
        await data.read(1, 1)
        await data.send(DATA, RST, 1, 0)
        await echo.all_closed()


async def test_data_socket_that_is_cut_is_opened_again_and_the_tunnels_stay() -> None:
    async with (
        local_echo() as echo,
        played_server() as server,
        running_agent(server, HttpTunnel(echo.local)) as agent,
    ):
        control, data = await up(server, URL)
        await control.announce(ID.format(1), "http")
        await data.open(1, ID.format(1), b"x")
        await data.read(1, 1)
        await data.upgrade.cut()
        await echo.all_closed()  # what was in flight is cut, not kept
        again = await server.next_data(raw=True)
        assert again.upgrade.path == data.upgrade.path
        assert again.upgrade.headers["x-rustunnel-data-secret"] == "data-secret"
        await control.announce(ID.format(2), "http")
        await again.open(1, ID.format(2), b"y")
        assert await again.read(1, 1) == b"y"
        assert len(agent.screen.of(DataLost)) == 1
        assert not agent.screen.of(Disconnected)


async def test_data_socket_that_cannot_be_had_begins_the_session_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "REOPEN_SECONDS", 0.01)
    async with (
        local_echo() as echo,
        played_server() as server,
        running_agent(server, HttpTunnel(echo.local)) as agent,
    ):
        control = await server.next_control()
        await control.welcome()
        await control.register("t1", URL)
        for _ in range(6):
            await (await server.next_data_upgrade()).refuse(503)
        lost = await agent.screen.until(Disconnected)
        assert "503" in lost.why
        await up(server, URL)


async def test_F08_control_socket_that_is_cut_brings_the_agent_back_under_its_name() -> None:
    async with local_echo() as echo, local_echo() as other, played_server() as server:
        tunnels = HttpTunnel(echo.local, take_over=True), TcpTunnel(other.local)
        async with running_agent(server, *tunnels) as agent:
            control = await server.next_control()
            await control.welcome(features=["raw_data"])
            first = await control.register("t1", "https://made-up-7.tunnel.test")
            assert (first["subdomain"], first["take_over"]) == (None, True)
            second = await control.register("t2", "tcp://tunnel.test:20017", 20017)
            assert "port" not in second
            old = await server.next_data(raw=True)
            await agent.screen.until(Ready)
            await control.upgrade.cut()
            await old.until(lambda: old.ended)  # its data socket goes with it
            control = await server.next_control()
            await control.welcome(features=["raw_data"])
            first = await control.register("t1", "https://made-up-7.tunnel.test")
            assert first["subdomain"] == "made-up-7"
            assert "take_over" not in first  # only once, or two agents would snatch it from each other
            second = await control.register("t2", "tcp://tunnel.test:20017", 20017)
            assert second["port"] == 20017
            assert "connection" in agent.screen.of(Disconnected)[0].why


async def test_name_refused_at_the_first_registration_is_final_and_says_what_to_do() -> None:
    async with (
        local_echo() as echo,
        played_server() as server,
        running_agent(server, HttpTunnel(echo.local, "abc")) as agent,
    ):
        control = await server.next_control()
        await control.welcome()
        wish = await control.expect("register_tunnel")
        message = "abc is in use by 192.0.2.1\x1b[2J"
        await control.send({"type": "tunnel_error", "request_id": wish["request_id"], "message": message})
        assert await agent.wait() == 4
        ended = agent.screen.of(Ended)[0]
        assert "in use by 192.0.2.1\\x1b[2J" in ended.why
        assert "--take-over" in ended.why


async def test_name_refused_after_a_reconnect_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "REASK_SECONDS", 0.05)
    async with (
        local_echo() as echo,
        local_echo() as other,
        played_server() as server,
        running_agent(server, HttpTunnel(echo.local, "abc"), TcpTunnel(other.local)) as agent,
    ):
        control, _ = await up(server, URL, "tcp://tunnel.test:20005")
        await agent.screen.until(Ready)
        await control.upgrade.cut()
        control = await server.next_control()
        await control.welcome(features=["raw_data"])
        wish = await control.expect("register_tunnel")
        await control.send({"type": "tunnel_error", "request_id": wish["request_id"], "message": "in use"})
        await control.register("t2", "tcp://tunnel.test:20005", 20005)
        await server.next_data(raw=True)  # the others are served meanwhile
        wish = await control.register("t1", URL)
        assert wish["subdomain"] == "abc"
        refused = agent.screen.of(TunnelRefused)
        assert [(news.wish, news.message) for news in refused] == [("abc", "in use")]


async def test_refused_token_is_final_and_its_text_is_escaped() -> None:
    async with played_server() as server, running_agent(server, TcpTunnel(LocalAddress("localhost", 1))) as agent:
        control = await server.next_control()
        await control.expect("auth")
        await control.send({"type": "auth_error", "message": "no such token\n\x1b]0;evil\x07"})
        assert await agent.wait() == 3
        assert agent.screen.of(Ended)[0].why.endswith("no such token\\n\\x1b]0;evil\\x07")
        assert server.connections == 1


async def test_401_on_the_upgrade_is_final_and_other_answers_are_not() -> None:
    async with (
        played_server() as server,
        running_agent(server, TcpTunnel(LocalAddress("localhost", 1))) as agent,
    ):
        for status in (404, 503, 403):
            await (await server.next_upgrade()).refuse(status)
        await (await server.next_upgrade()).refuse(401)
        assert await agent.wait() == 3
        assert [
            str(status) in lost.why for status, lost in zip((404, 503, 403), agent.screen.of(Disconnected), strict=True)
        ]


async def test_polite_end_unregisters_and_sends_a_close_frame() -> None:
    async with (
        local_echo() as echo,
        played_server() as server,
        running_agent(server, HttpTunnel(echo.local), TcpTunnel(echo.local)) as agent,
    ):
        control, _ = await up(server, URL, "tcp://tunnel.test:20005")
        await agent.screen.until(Ready)
        agent.stopping.set()
        assert [(await control.receive())["tunnel_id"] for _ in range(2)] == ["t1", "t2"]
        opcode, payload = await read_websocket(control.upgrade.source)
        assert (opcode, payload[:2]) == (8, b"\x03\xe8")
        await control.send_raw(websocket_frame(8, payload))
        assert await agent.wait() == 0


async def test_polite_end_is_bounded_where_the_server_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LEAVE_SECONDS", 0.05)
    async with (
        local_echo() as echo,
        played_server() as server,
        running_agent(server, HttpTunnel(echo.local)) as agent,
    ):
        await up(server, URL)
        await agent.screen.until(Ready)
        assert await agent.stop() == 0


async def test_stop_before_anything_is_connected() -> None:
    async with played_server() as server:
        port = await closed_port()
        server.port = port
        async with running_agent(server, TcpTunnel(LocalAddress("localhost", 1))) as agent:
            lost = await agent.screen.until(Disconnected)
            assert "refused" in lost.why
            assert await agent.stop() == 0


async def test_going_away_is_told_and_the_agent_comes_back() -> None:
    async with (
        local_echo() as echo,
        played_server() as server,
        running_agent(server, HttpTunnel(echo.local)) as agent,
    ):
        control, data = await up(server, URL)
        await control.send({"type": "going_away"})
        await agent.screen.until(GoingAway)
        await control.announce(ID.format(1), "http")  # what is still under way is served
        await data.open(1, ID.format(1), b"x")
        assert await data.read(1, 1) == b"x"
        await control.upgrade.cut()
        await data.upgrade.cut()
        await up(server, URL)


async def test_pings_are_answered_and_visits_shown_and_strange_frames_ignored() -> None:
    async with (
        local_echo() as echo,
        played_server() as server,
        running_agent(server, HttpTunnel(echo.local)) as agent,
    ):
        control, data = await up(server, URL)
        await control.send_raw(websocket_frame(1, b'{"type":"going_away"}'))
        await control.send_raw(websocket_frame(2, b"no json"))
        await control.send_raw(websocket_frame(2, b"\xff"))
        await control.send({"type": "brand_new", "x": 1})
        await control.send({"type": "auth", "token": "x", "client_version": "1"})
        await control.send({"type": "new_connection", "conn_id": "no uuid", "client_addr": "", "protocol": "http"})
        await control.send({"type": "tunnel_registered", "request_id": "?", "tunnel_id": "x", "public_url": "y"})
        visit = {
            "tunnel_id": "t1",
            "method": "GET",
            "path": "/\x1b[0m",
            "status": 200,
            "ms": 1.5,
            "capture_id": "c1",
        }
        await control.send({"type": "visits", "visits": [visit]})
        assert await agent.screen.until(Visited) == Visited("t1", "GET", "/\\x1b[0m", 200, 1.5, "c1")
        await control.send({"type": "ping", "timestamp": 2**62 + 1})
        assert (await control.expect("pong"))["timestamp"] == 2**62 + 1
        await agent.screen.until(Latency)
        await data.send(PING, SYN, 0, 77)
        await data.until(lambda: Frame(PING, ACK, 0, 77) in data.frames)
        assert not agent.screen.of(GoingAway)


async def test_https_local_service_verified_or_not_as_configured() -> None:
    context = make_identity("elsewhere").context()
    async with local_echo(context=context) as echo, played_server() as server:
        local = LocalAddress("127.0.0.1", echo.local.port, Scheme.HTTPS)
        tunnels = HttpTunnel(local), HttpTunnel(local, local_insecure=True)
        async with running_agent(server, *tunnels) as agent:
            control, data = await up(server, URL, "http://def.tunnel.test")
            await control.announce(ID.format(1), "http", tunnel_id="t1")
            await data.open(1, ID.format(1), b"x")
            await data.flagged(1, RST)
            assert "self-signed" in (await agent.screen.until(LocalTrouble)).message
            await control.announce(ID.format(2), "http", tunnel_id="t2")
            await data.open(3, ID.format(2), b"by TLS")
            assert await data.read(3, 6) == b"by TLS"


async def test_https_tunnels_where_the_server_has_a_trusted_certificate() -> None:
    async with (
        local_echo() as echo,
        played_server() as server,
        running_agent(server, HttpTunnel(echo.local)) as agent,
    ):
        control = await server.next_control()
        await control.welcome(https=True)
        wish = await control.register("t1", "https://abc.tunnel.test")
        assert wish["protocol"] == "https"
        shown = await agent.screen.until(TunnelUp)
        assert (shown.public_url, shown.also) == ("https://abc.tunnel.test", "http://abc.tunnel.test")


async def run_with_signals(server: PlayedServer, tunnel: TcpTunnel, screen: Heard, codes: list[int]) -> None:
    login = Login(ServerAddress("127.0.0.1", server.port), Secret("sesame"), Pin(server.identity.pin))
    codes.append(await run_agent(AgentConfig(login, (tunnel,)), screen))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_first_signal_ends_politely_and_the_second_at_once(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(session, "LEAVE_SECONDS", 60.0)
    screen = Heard()
    codes: list[int] = []
    async with local_echo() as echo, played_server() as server, trio.open_nursery() as nursery:
        nursery.start_soon(run_with_signals, server, TcpTunnel(echo.local), screen, codes)
        control, _ = await up(server, "tcp://tunnel.test:20005")
        await screen.until(Ready)
        signal.raise_signal(number)
        await control.expect("unregister_tunnel")
        assert codes == []  # the server does not answer the close frame
        signal.raise_signal(number)
        while not codes:
            await trio.lowlevel.checkpoint()
        assert codes == [1]


async def test_nothing_is_left_open_after_sessions_cuts_and_the_end() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async with local_echo() as echo, played_server() as server:
        await trio.testing.wait_all_tasks_blocked()
        before = descriptors()
        async with running_agent(server, TcpTunnel(echo.local)) as agent:
            for turn in range(3):
                control, data = await up(server, "tcp://tunnel.test:20005")
                for stream in range(1, 20, 2):
                    await control.announce(ID.format(stream // 2), "tcp")
                    await data.open(stream, ID.format(stream // 2), b"x")
                    await data.read(stream, 1)
                await agent.screen.until(Ready, turn + 1)
                await control.upgrade.cut()
                await data.upgrade.cut()
                await echo.all_closed()
            await agent.stop()
        server.drop_all()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert descriptors() == before
