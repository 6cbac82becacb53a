"""The shell against a played stock agent on real sockets (plain: TLS is the front's business); wire spec 1 to 4."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from rustunnel_py.agents import rustunnel
from rustunnel_py.agents.rustunnel import RustunnelAgent
from rustunnel_py.errors import Hop
from rustunnel_py.model.tunnel import HttpHost
from tests.support.agents_house import AgentsHouse, WaitingTurn, agents_house
from tests.support.services import echo, http_service, pattern, tcp_service
from tests.support.stock_agent import ControlEnded, SessionFailed, StockAgent, WebSocket, stock_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def failure(turn: WaitingTurn) -> tuple[Hop, int, str]:
    assert turn.error is not None
    return turn.error.hop, turn.error.status, turn.error.code


async def get(house: AgentsHouse, label: str) -> WaitingTurn:
    turn = await house.request(label).over()
    assert turn.events[-1] == "end", turn.error
    assert turn.reply is not None
    assert turn.reply.status == 200
    return turn


def shell(house: AgentsHouse, agent: StockAgent) -> RustunnelAgent:
    session = house.sessions.find(agent.session_id)
    assert session is not None
    assert isinstance(session.agent, RustunnelAgent)
    return session.agent


async def silent(stream: trio.SocketStream) -> None:
    """A local service that takes everything and never answers."""
    while await stream.receive_some(65536):
        pass


async def pass_time(clock: trio.testing.MockClock, seconds: int) -> None:
    """Second by second, so that everything that is due in between happens in order."""
    for _ in range(seconds):
        clock.jump(1)
        await trio.testing.wait_all_tasks_blocked(0.001)


@pytest.fixture
async def house() -> AsyncIterator[AgentsHouse]:
    async with agents_house() as house:
        yield house


async def test_a_session_registers_and_serves(house: AgentsHouse) -> None:
    async with http_service() as service, stock_agent(house.port, "ann") as agent:
        assert agent.server_version == "0.7.0"
        tunnel = await agent.register("http", service.port, subdomain="Demo")
        assert (tunnel.public_url, tunnel.assigned_port) == ("http://demo.test", None)
        await agent.serve()
        for _ in range(3):
            await get(house, "demo")
        assert service.connections == 1  # one kept stream
        assert agent.violations == []
        assert [frame["type"] for frame in agent.heard] == ["auth_ok", "tunnel_registered", "new_connection"]
        assert set(agent.heard[0]) == {"type", "session_id", "server_version"}
        assert set(agent.heard[1]) == {"type", "request_id", "tunnel_id", "public_url", "assigned_port"}
        assert agent.heard[2]["client_addr"] == "192.0.2.1:4444"
        assert agent.heard[2]["protocol"] == "http"


async def test_bulk_passes_both_ways_within_the_windows(house: AgentsHouse) -> None:
    async with http_service() as service, stock_agent(house.port, "ann") as agent:
        await agent.register("http", service.port, subdomain="demo")
        await agent.serve()
        turn = await house.request("demo", b"GET /size/3000000 HTTP/1.1\r\nHost: demo.test\r\n\r\n").over()
        assert bytes(turn.body) == pattern(3_000_000)
        head = b"POST /up HTTP/1.1\r\nHost: demo.test\r\nContent-Length: 1000000\r\n\r\n"
        upload = house.request("demo", head, finish=False)
        exchange = upload.exchange
        assert exchange is not None
        body = memoryview(pattern(1_000_000))
        rooms = 0
        for at in range(0, len(body), 50_000):
            took: list[bool] = []
            house.pump.call(upload, lambda at=at, took=took: took.append(exchange.send(body[at : at + 50_000])))  # type: ignore[misc]
            if not took[0]:
                rooms += 1
                await house.until(lambda rooms=rooms: upload.events.count("room") == rooms)  # type: ignore[misc]
        house.pump.call(upload, exchange.finish)
        await upload.over()
        assert service.seen[-1].body == pattern(1_000_000)
        assert agent.violations == []


async def test_a_visitor_before_the_data_socket_waits_and_disturbs_no_registration(house: AgentsHouse) -> None:
    async with http_service() as service, stock_agent(house.port, "ann") as agent:
        await agent.register("http", service.port, subdomain="demo")
        turn = house.request("demo")
        await trio.testing.wait_all_tasks_blocked()
        await agent.register("http", service.port, subdomain="other")
        assert not turn.done.is_set()
        await agent.serve()
        await turn.over()
        assert turn.events[-1] == "end"
        assert agent.violations == []


async def test_a_contested_name_does_not_disturb_an_agent_that_still_registers(house: AgentsHouse) -> None:
    async with stock_agent(house.port, "ann") as holder, stock_agent(house.port, "ann") as claimant:
        await holder.register("http", 1, subdomain="demo")
        with pytest.raises(SessionFailed, match="in use"):
            await claimant.register("http", 1, subdomain="demo")
        await holder.register("http", 1, subdomain="other")  # no ping came in between


async def test_what_comes_during_a_registration_follows_its_answer(house: AgentsHouse) -> None:
    async with http_service() as service, stock_agent(house.port, "ann") as agent:
        await agent.register("http", service.port, subdomain="demo")
        await agent.serve()
        await agent.wait_data(1)
        session = house.sessions.find(agent.session_id)
        assert session is not None
        slow = trio.Event()
        remembered = house.names.remembered

        async def wait(key: object) -> list[object]:
            await slow.wait()
            return await remembered(key)  # type: ignore[arg-type, return-value]

        house.names.remembered = wait  # type: ignore[method-assign, assignment]
        await agent._say(type="register_tunnel", request_id="r2", protocol="http", local_addr="localhost:1")
        await house.until(lambda: session.registering)
        turn = house.request("demo")
        await agent.ping(99)
        await trio.testing.wait_all_tasks_blocked()
        before = len(agent.heard)
        assert await shell(house, agent).answers(0.0)  # counts as alive, unasked
        slow.set()
        await turn.over()
        await agent.wait_heard("pong")
        assert agent.heard[before]["type"] == "tunnel_registered"
        assert {frame["type"] for frame in agent.heard[before + 1 :]} == {"new_connection", "pong"}


async def test_the_data_socket_drops_and_comes_back_while_tunnels_stay(house: AgentsHouse) -> None:
    async with (
        http_service() as service,
        tcp_service(silent) as slow,
        stock_agent(house.port, "ann") as agent,
    ):
        await agent.register("http", slow, subdomain="demo")
        await agent.serve()
        before = house.tunnel("demo")
        flying = house.request("demo")
        await agent.wait_heard("new_connection")
        agent.tunnels[0].local = ("127.0.0.1", service.port)
        await agent.drop_data()
        await flying.over()
        assert failure(flying) == (Hop.AGENT, 502, "agent-lost")
        waiting = house.request("demo")  # of which no byte went out: it waits
        await waiting.over()
        assert waiting.events[-1] == "end"
        assert agent.data_opened == 2
        assert house.tunnel("demo") is before
        assert not agent.ended.is_set()
        assert agent.violations == []


async def test_Y30_a_second_data_socket_replaces_the_first(house: AgentsHouse) -> None:
    async with tcp_service(silent) as slow, stock_agent(house.port, "ann") as agent:
        await agent.register("http", slow, subdomain="demo")
        await agent.serve()
        first = await agent.wait_data(1)
        flying = house.request("demo")
        await agent.wait_heard("new_connection")
        agent._reconnect_data = False
        second = await agent._open(f"/_data/{agent.session_id}")
        await flying.over()
        assert failure(flying) == (Hop.AGENT, 502, "agent-lost")
        with trio.fail_after(5):
            await first.ended.wait()
        op, payload = await second.receive()  # a fresh yamux session
        assert (op, payload[:4].hex()) == (2, "00020001")
        await second.drop()


async def test_an_unclean_end_of_control_takes_the_data_socket_along_and_holds_the_name(house: AgentsHouse) -> None:
    async with http_service() as service:
        async with stock_agent(house.port, "ann") as agent:
            tunnel = await agent.register("http", service.port, subdomain="demo")
            await agent.serve()
            data = await agent.wait_data(1)
            flying = house.request("demo", b"GET /size/100000000 HTTP/1.1\r\nHost: demo.test\r\n\r\n")
            await house.until(lambda: flying.body)
            await agent.drop_control()
            await flying.over()
            assert failure(flying) == (Hop.AGENT, 502, "agent-lost")
            with trio.fail_after(5):
                await data.ended.wait()
            await house.until(lambda: len(house.sessions) == 0)
            held = house.tunnel("demo")
            assert held.held_until is not None
            assert len(held.links) == 0
        async with stock_agent(house.port, "bob") as foreign:
            with pytest.raises(SessionFailed, match="in use"):
                await foreign.register("http", service.port, subdomain="demo")
        async with stock_agent(house.port, "ann") as agent:
            again = await agent.register("http", service.port, subdomain="demo")
            assert again.id == tunnel.id
            await agent.serve()
            await get(house, "demo")
    assert len(house.log.entries) == 2
    assert house.log.entries[0].id in house.log.ended


async def test_ctrl_c_is_the_clean_end_and_frees_the_name(house: AgentsHouse) -> None:
    async with stock_agent(house.port, "ann") as agent:
        await agent.register("http", 1, subdomain="demo")
        await agent.serve()
        await agent.close()
        await house.until(lambda: house.registry.find_host("demo.test") is None)
    assert house.names.released == [("ann", "demo")]
    async with stock_agent(house.port, "bob") as other:
        await other.register("http", 1, subdomain="demo")


@pytest.mark.parametrize("token", ["wrong", "wrong\0", "wrong\N{CYRILLIC SMALL LETTER A}", "", "wrong" + "x" * 5000])
async def test_C08_a_wrong_token_hears_auth_error_and_no_close_frame(house: AgentsHouse, token: str) -> None:
    with pytest.raises(SessionFailed, match="auth error: invalid token") as failed:
        async with stock_agent(house.port, token):
            pass
    assert failed.value.final


async def test_a_taken_name_is_no_final_error(house: AgentsHouse) -> None:
    async with stock_agent(house.port, "ann") as first, stock_agent(house.port, "bob") as second:
        await first.register("http", 1, subdomain="my-auth")
        with pytest.raises(SessionFailed) as failed:
            await second.register("http", 1, subdomain="my-auth")
        assert not failed.value.final
        assert "auth" not in str(failed.value).lower()
        assert str(failed.value).replace("\u200b", "") == "tunnel error: my-auth.test is in use"
        with pytest.raises(SessionFailed, match="reserved"):
            await second.register("http", 1, subdomain="admin")
        await second.register("http", 1, subdomain="mine")  # the session goes on


@pytest.mark.parametrize(
    "fields",
    [
        {"protocol": "udp"},
        {"protocol": "p2p", "p2p_name": "x", "p2p_secret_hash": "00"},
        {"protocol": "http", "subdomain": "demo", "group": "g", "group_key_hash": "00"},
        {"protocol": "gopher"},
        {"protocol": "HTTP"},
        {"protocol": "tcp", "port": "twenty"},
        {"protocol": "tcp", "port": -1},
        {"protocol": "tcp", "port": 70000},
        {"protocol": "tcp", "port": 0},
        {"protocol": "tcp", "port": 22},
        {"protocol": "http", "subdomain": 5},
        {"protocol": "http", "host_header": "a\r\nX: y"},
        {"protocol": "http", "host_header": "rewrite", "local_addr": "a\r\nX: y"},
    ],
    ids=repr,
)
async def test_C18_C20_wishes_that_cannot_be_served_are_tunnel_errors(
    house: AgentsHouse, fields: dict[str, object]
) -> None:
    async with stock_agent(house.port, "ann") as agent:
        await agent._say(**{"type": "register_tunnel", "request_id": "r1", "local_addr": "localhost:1", **fields})
        answer = await agent._only_answer(("tunnel_error",))
        assert answer["request_id"] == "r1"
        assert "auth" not in answer["message"].lower()
        assert not answer["message"].startswith("tunnel error")
        await agent.register("http", 1, subdomain="demo")
        assert house.tunnel("demo").session is not None


@pytest.mark.parametrize("name", ["", "ab", "a" * 64, "-abc", "abc-", "a.b", "*", "ümlaut", "a\u0000bc", "abc."])
async def test_C12_malformed_names_are_refused_and_upper_case_is_folded(house: AgentsHouse, name: str) -> None:
    async with stock_agent(house.port, "ann") as agent:
        with pytest.raises(SessionFailed, match="3 to 63"):
            await agent.register("http", 1, subdomain=name)
        assert (await agent.register("https", 1, subdomain="ABC")).public_url == "https://abc.test"


async def test_C11_a_session_has_a_cap(house: AgentsHouse) -> None:
    async with stock_agent(house.port, "ann") as agent:
        for _ in range(10):
            await agent.register("http", 1)
        with pytest.raises(SessionFailed, match="may have 10 tunnels"):
            await agent.register("http", 1)
        await agent.unregister(agent.tunnels[0])
        await agent.register("http", 1)


async def test_C15_unregister_counts_for_the_sessions_own_tunnels_only(house: AgentsHouse) -> None:
    async with stock_agent(house.port, "ann") as ann, stock_agent(house.port, "ann") as other:
        tunnel = await ann.register("http", 1, subdomain="demo")
        await ann.serve()
        await other.serve()
        for foreign in (tunnel.id, tunnel.id.upper(), "{" + tunnel.id + "}", "no uuid", ""):
            await other._say(type="unregister_tunnel", tunnel_id=foreign)
        await other.ping(7)
        await other.wait_heard("pong")
        assert house.tunnel("demo").session is not None
        assert shell(house, other).ignored == 5
        await ann.unregister(tunnel)
        await house.until(lambda: house.registry.find_host("demo.test") is None)
        assert not ann.ended.is_set()


async def test_a_refused_local_service_is_a_502_that_names_it(house: AgentsHouse) -> None:
    async with stock_agent(house.port, "ann") as agent:
        await agent.register("http", 1, subdomain="demo")
        await agent.serve()
        turn = await house.request("demo").over()
        assert failure(turn) == (Hop.LOCAL_SERVICE, 502, "local-service-refused")


async def test_a_visitor_that_leaves_resets_the_stream_and_frees_the_local_connection(house: AgentsHouse) -> None:
    gone = trio.Event()

    async def watch(stream: trio.SocketStream) -> None:
        await silent(stream)
        gone.set()

    async with tcp_service(watch) as port, stock_agent(house.port, "ann") as agent:
        await agent.register("http", port, subdomain="demo")
        await agent.serve()
        turn = house.request("demo")
        await house.until(lambda: agent.local_connections)
        assert turn.exchange is not None
        house.pump.call(turn, turn.exchange.reset)
        with trio.fail_after(5):
            await gone.wait()
        assert agent.data is not None
        assert agent.data.resets == [1]
        assert agent.data.streams == {}


async def test_a_revoked_token_ends_its_session_at_once_and_frees_its_names(house: AgentsHouse) -> None:
    async with stock_agent(house.port, "ann") as agent:
        await agent.register("http", 1, subdomain="demo")
        await agent.serve()
        data = await agent.wait_data(1)
        house.accounts.revoke("id-ann")
        with trio.fail_after(5):
            await agent.ended.wait()
            await data.ended.wait()
        assert isinstance(agent.failure, ControlEnded)
        assert not agent.failure.final
        assert agent.violations == []
        assert house.registry.find_host("demo.test") is None


async def test_a_session_ends_without_a_close_frame_when_its_last_tunnel_is_closed(house: AgentsHouse) -> None:
    async with stock_agent(house.port, "ann") as agent:
        await agent.register("http", 1, subdomain="one")
        await agent.register("http", 1, subdomain="two")
        await agent.serve()
        house.sessions.close_tunnel(house.tunnel("one"))
        await agent.ping(1)
        await agent.wait_heard("pong")
        house.sessions.close_tunnel(house.tunnel("two"))
        with trio.fail_after(5):
            await agent.ended.wait()
        assert agent.violations == []


async def test_the_servers_end_is_a_plain_drop_of_both_sockets() -> None:
    async with trio.open_nursery() as nursery:
        async with agents_house() as house:
            agent = await nursery.start(hold, house.port)
        with trio.fail_after(5):
            await agent.ended.wait()
            await agent.data.ended.wait()
        assert agent.violations == []
        assert agent.heard[-1]["type"] == "tunnel_registered"
        assert not agent.data_ends or "close frame" not in agent.data_ends
        nursery.cancel_scope.cancel()


async def hold(port: int, *, task_status: trio.TaskStatus[StockAgent]) -> None:
    async with stock_agent(port, "ann") as agent:
        await agent.register("http", 1, subdomain="demo")
        await agent.serve()
        agent._reconnect_data = False
        task_status.started(agent)
        await trio.sleep_forever()


@pytest.mark.parametrize(
    "raw",
    [
        *(f'{{"type":"ping","timestamp":{value}}}'.encode() for value in ("-1", "1.5", '"1"', "null", "[]", "true")),
        *(f'{{"type":"ping","timestamp":{value}}}'.encode() for value in (2**64, 10**20, -(2**63) - 1, "1e400")),
        b'{"type":"ping"}',
        b'{"type":"pong","timestamp":-1}',
        b'{"type":"unregister_tunnel","tunnel_id":5}',
        b'{"type":"p2p_metrics","tunnel_id":"x","bytes_sent":-1,"bytes_received":0}',
        b'{"type":"register_tunnel","protocol":"http","local_addr":"x"}',
    ],
)
async def test_C19_a_frame_with_fields_that_cannot_be_used_costs_nothing_but_itself(
    house: AgentsHouse, raw: bytes
) -> None:
    async with stock_agent(house.port, "ann") as agent:
        await agent.register("http", 1, subdomain="demo")
        await agent.serve()
        assert agent.control is not None
        await agent.control.send(2, raw)
        await agent.ping(2**64 - 1)
        assert (await agent.wait_heard("pong"))["timestamp"] == 2**64 - 1
        assert shell(house, agent).ignored == 1
        assert not agent.ended.is_set()


async def test_what_is_ignored_once_authenticated(house: AgentsHouse) -> None:
    async with stock_agent(house.port, "ann") as agent:
        await agent.register("http", 1, subdomain="demo")
        await agent.serve()
        control = agent.control
        assert control is not None
        await control.send(1, b'{"type":"ping","timestamp":1}')  # W11: text
        for raw in (b"{", b"", b"\xff", b"NaN", b'{"type":"ping","timestamp":1,"timestamp":2}', b"[" * 100_000):
            await control.send(2, raw)
        await agent._say(type="novelty", a=1)
        await agent._say(type="data_stream_open", conn_id="00000000-0000-4000-8000-000000000000")
        await agent._say(type="tunnel_unhealthy", tunnel_id="x", reason="y")
        await control.send(9, b"hello")
        await agent._say(type="ping", timestamp=12345, novelty=[1])
        assert (await agent.wait_heard("pong"))["timestamp"] == 12345
        assert shell(house, agent).ignored == 10
        assert not agent.ended.is_set()
        assert house.tunnel("demo").session is not None


@pytest.mark.parametrize(
    "raw",
    [
        b"[]",
        b'"auth"',
        b"null",
        b"{}",
        b'{"type":5}',
        b'{"type":["ping"]}',
        b'{"type":"auth_ok","session_id":"x","server_version":"0.7.0"}',
        b'{"type":"new_connection","conn_id":"x","client_addr":"y","protocol":"http"}',
        b'{"type":"auth","token":"ann","client_version":"0.7.8"}',
    ],
)
async def test_C04_C06_C07_what_ends_a_session_ends_it_by_a_drop(house: AgentsHouse, raw: bytes) -> None:
    async with stock_agent(house.port, "ann") as agent:
        await agent.register("http", 1, subdomain="demo")
        await agent.serve()
        assert agent.control is not None
        await agent.control.send(2, raw)
        with trio.fail_after(5):
            await agent.ended.wait()
        assert agent.violations == []
        await house.until(lambda: house.tunnel("demo").held_until is not None)


async def test_C21_a_long_version_is_cut(house: AgentsHouse) -> None:
    async with stock_agent(house.port, "ann", connect=False) as agent:
        agent.control = await agent._open("/_control")
        await agent._say(type="auth", token="ann", client_version="\x1b[31m\n" + "x" * 10_000)
        answer = await agent._only_answer(("auth_ok",))
        session = house.sessions.find(answer["session_id"])
        assert session is not None
        assert len(session.client_version) == 256


async def test_quick_acknowledgements_are_on_for_its_data_socket(house: AgentsHouse) -> None:
    async with stock_agent(house.port, "ann") as agent:
        await agent.register("http", 1, subdomain="demo")
        await agent.serve()
        trunk = shell(house, agent)._trunk
        assert trunk is not None
        assert trunk.connection.quickack  # type: ignore[attr-defined]


async def test_W18_an_agent_that_reads_nothing_while_much_is_due_is_given_up(
    house: AgentsHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rustunnel, "OUTBOX_MAX", 3)
    async with (
        tcp_service(echo) as port,
        stock_agent(house.port, "ann") as agent,
        stock_agent(house.port, "bob") as other,
    ):
        await agent.register("http", port, subdomain="demo")
        await agent.serve()
        await other.register("http", port, subdomain="other")
        await other.serve()
        held = house.sessions.find(agent.session_id)
        assert held is not None
        held.registering = True  # nothing may be sent
        for _ in range(4):
            house.request("demo")
        with trio.fail_after(5):
            await agent.ended.wait()
        await other.ping(1)
        await other.wait_heard("pong")


async def test_a_slow_service_blocks_nobody_else_least_of_all_heartbeats(house: AgentsHouse) -> None:
    async with (
        http_service() as service,
        tcp_service(silent) as slow,
        stock_agent(house.port, "ann") as agent,
        stock_agent(house.port, "bob") as other,
    ):
        await agent.register("http", slow, subdomain="slow")
        await agent.serve()
        await other.register("http", service.port, subdomain="other")
        await other.serve()
        turns = [house.request("slow") for _ in range(600)]
        await house.until(lambda: agent.local_connections == 256)
        await get(house, "other")
        await agent.ping(5)
        await agent.wait_heard("pong")
        assert agent.most_unacknowledged <= 256
        for turn in turns:
            assert turn.exchange is not None
            house.pump.call(turn, turn.exchange.reset)
        await house.until(lambda: agent.data is not None and not agent.data.streams)
        assert agent.violations == []
        agent.tunnels[0].local = ("127.0.0.1", service.port)
        await get(house, "slow")


# with a clock that jumps


async def test_heartbeats_both_ways(mock_clock: trio.testing.MockClock) -> None:
    async with agents_house() as house, stock_agent(house.port, "ann") as agent:
        await agent.register("http", 1, subdomain="demo")
        await agent.serve()
        await trio.testing.wait_all_tasks_blocked(0.01)
        await pass_time(mock_clock, 65)
        assert len([frame for frame in agent.heard if frame["type"] == "ping"]) == 2
        assert len([frame for frame in agent.heard if frame["type"] == "pong"]) == 2
        assert agent.data is not None
        assert agent.data.pings_answered >= 1
        assert agent.violations == []
        assert not agent.ended.is_set()


async def test_W19_a_frozen_agent_is_noticed_in_time_and_its_address_held(mock_clock: trio.testing.MockClock) -> None:
    async with agents_house() as house, stock_agent(house.port, "ann") as agent:
        await agent.register("http", 1, subdomain="demo")
        await agent.serve()
        await trio.testing.wait_all_tasks_blocked(0.01)
        agent.freeze()
        flying = house.request("demo")
        await pass_time(mock_clock, 28)
        assert not flying.done.is_set()
        await pass_time(mock_clock, 4)
        assert failure(flying) == (Hop.AGENT, 502, "agent-lost")  # data: 20 s, then 10 s
        assert house.tunnel("demo").held_until is None
        await pass_time(mock_clock, 10)
        assert house.tunnel("demo").held_until is not None  # control: 30 s, then 10 s
        assert len(house.sessions) == 0
        await pass_time(mock_clock, 62)
        assert house.registry.find(HttpHost("demo.test")) is None


async def test_C14_a_name_is_taken_over_from_a_holder_that_does_not_answer(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with (
        agents_house() as house,
        stock_agent(house.port, "ann") as holder,
        stock_agent(house.port, "ann") as claimant,
    ):
        tunnel = await holder.register("http", 1, subdomain="demo")
        await holder.serve()
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(SessionFailed, match=r"in use from 127\.0\.0\.1"):
            await claimant.register("http", 1, subdomain="demo")
        holder.freeze()
        taken: list[str] = []
        async with trio.open_nursery() as nursery:

            async def claim() -> None:
                taken.append((await claimant.register("http", 1, subdomain="demo")).id)

            nursery.start_soon(claim)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await pass_time(mock_clock, 3)
        assert taken == [tunnel.id]
        await house.until(lambda: len(house.sessions) == 1)
        assert house.tunnel("demo").session is house.sessions.find(claimant.session_id)


async def test_W16_who_says_nothing_after_the_upgrade_is_gone_after_5_s(mock_clock: trio.testing.MockClock) -> None:
    async with agents_house() as house:
        quiet = StockAgent(house.port, "ann", None, "localhost", heartbeats=False)
        control = await quiet._open("/_control")
        await pass_time(mock_clock, 4)
        assert len(house.door._strangers) == 1
        await pass_time(mock_clock, 2)
        with pytest.raises(EOFError):
            await control.receive()
        await control.drop()
        assert len(house.door._strangers) == 0


async def test_a_raw_control_conversation_of_bad_first_frames(house: AgentsHouse) -> None:
    async def first(op: int, raw: bytes) -> bytes | None:
        stock = StockAgent(house.port, "ann", None, "localhost", heartbeats=False)
        control: WebSocket = await stock._open("/_control")
        await control.send(op, raw)
        try:
            return (await control.receive())[1]
        except EOFError:
            return None
        finally:
            await control.drop()

    auth = b'{"type":"auth","token":"ann","client_version":"0.7.8"}'
    refusal = b'{"type":"auth_error","message":"expected an auth frame"}'
    assert await first(2, b'{"type":"ping","timestamp":1}') == refusal
    for op, raw in [
        (1, auth),
        (2, b'{"type":"novelty"}'),
        (2, b"not json"),
        (2, b'{"type":"auth","token":"ann"}'),
        (2, b'{"type":"auth","token":null,"client_version":"0.7.8"}'),
        (2, b'{"type":"auth","token":5,"client_version":"0.7.8"}'),
        (2, b'{"type":"auth_ok","session_id":"x","server_version":"1.0.0"}'),
        (2, b"[]"),
        (2, auth[:-1] + b',"token":"ann"}'),
        (2, auth + b" " * 100_000),
    ]:
        assert await first(op, raw) is None, raw[:100]
    assert len(house.sessions) == 0
    await house.until(lambda: not house.door._strangers)
