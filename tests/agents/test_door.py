"""The door in raw bytes, and the shell against an agent of our own kind (features, raw data socket)."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from rustunnel_py.agents.rustunnel import RustunnelAgent
from rustunnel_py.model.tunnel import HttpHost
from rustunnel_py.wire import stream_head
from rustunnel_py.wire.yamux import Limits, Role
from tests.support.agents_house import AgentsHouse, WaitingTurn, agents_house
from tests.support.muxpair import Hearing, Side, feed
from tests.support.stock_agent import Refused, SessionFailed, StockAgent, WebSocket, stock_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
UPGRADE = b"Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" + KEY
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.fixture
async def house() -> AsyncIterator[AgentsHouse]:
    async with agents_house() as house:
        yield house


async def ask(house: AgentsHouse, raw: bytes) -> tuple[int, bytes]:
    """Send bytes; the whole answer of a connection that the server ends."""
    stream = await trio.open_tcp_stream("127.0.0.1", house.port)
    async with stream:
        await stream.send_all(raw)
        answer = bytearray()
        with trio.fail_after(5):
            async for part in stream:
                answer += part
    return int(answer[9:12]), bytes(answer)


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        (400, b"GET /_control HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n"),
        (400, b"GET /_control HTTP/1.1\r\n" + UPGRADE.replace(b"dGhl", b"") + b"\r\n"),
        (400, b"GET /_control HTTP/1.1\r\n" + UPGRADE.replace(KEY, b"") + b"\r\n"),
        (426, b"GET /_control HTTP/1.1\r\n" + UPGRADE.replace(b"Version: 13", b"Version: 8") + b"\r\n"),
        (426, b"GET /_control HTTP/1.1\r\n" + UPGRADE.replace(b"Version: 13", b"Version: 12") + b"\r\n"),
        (400, b"GET /_control HTTP/1.1\r\n" + UPGRADE.replace(b"Sec-WebSocket-Version: 13\r\n", b"") + b"\r\n"),
        (403, b"GET /_control HTTP/1.1\r\n" + UPGRADE + b"Origin: https://evil.example\r\n\r\n"),
        (403, b"GET /_control HTTP/1.1\r\n" + UPGRADE + b"Origin: null\r\n\r\n"),
        (431, b"GET /_control HTTP/1.1\r\n" + UPGRADE + b"X: y\r\n" * 10_000 + b"\r\n"),
        (400, b"GET /_control HTTP/1.1\r\n" + UPGRADE + b"Content-Length: 5\r\n\r\nhello"),
        (400, b"POST /_control HTTP/1.1\r\n" + UPGRADE + b"\r\n"),
        (400, b"GET /_control HTTP/1.0\r\n" + UPGRADE + b"\r\n"),
        (426, b"GET /_control HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        (400, b"GET /_control HTTP/1.1\r\n" + UPGRADE.replace(b"Connection: Upgrade\r\n", b"") + b"\r\n"),
        (400, b"GET /_control?token=ann HTTP/1.1\r\n" + UPGRADE + b"\r\n"),
        (400, b"GET /_data/x?secret=y HTTP/1.1\r\n" + UPGRADE + b"\r\n"),
        (404, b"GET /other HTTP/1.1\r\n" + UPGRADE + b"\r\n"),
        (404, b"GET /_control/ HTTP/1.1\r\n" + UPGRADE + b"\r\n"),
        (404, b"GET /_data HTTP/1.1\r\n" + UPGRADE + b"\r\n"),
        (403, b"GET /_data/x HTTP/1.1\r\n" + UPGRADE + b"Origin: https://evil.example\r\n\r\n"),
        (400, b"hello\r\n\r\n"),
    ],
)
async def test_W15_what_is_no_upgrade_of_an_agents_is_refused_before_it(
    house: AgentsHouse, status: int, raw: bytes
) -> None:
    got, answer = await ask(house, raw)
    assert got == status
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    assert set(json.loads(body)) == {"error"}
    assert len(house.door._strangers) == 0


async def test_W14_extensions_and_subprotocols_are_not_negotiated(house: AgentsHouse) -> None:
    offers = b"Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: chat\r\n"
    async with stock_agent(house.port, "ann") as agent:
        for path in (b"/_control", b"/_data/" + agent.session_id.encode()):
            async with await trio.open_tcp_stream("127.0.0.1", house.port) as stream:
                await stream.send_all(b"GET " + path + b" HTTP/1.1\r\n" + UPGRADE + offers + b"\r\n")
                answer = bytes(await stream.receive_some(4096)).lower()
            assert answer.startswith(b"http/1.1 101 ")
            assert b"extensions" not in answer
            assert b"protocol:" not in answer


async def test_an_agent_that_does_not_wait_for_the_101_is_answered(house: AgentsHouse) -> None:
    """W15: upgrade, `auth` and a registration in one segment; then the data socket's upgrade and its first frame."""
    stream = await trio.open_tcp_stream("127.0.0.1", house.port)
    said = (
        {"type": "auth", "token": "ann", "client_version": "0.7.8"},
        {"type": "register_tunnel", "request_id": "1", "protocol": "http", "subdomain": "demo", "local_addr": "x:1"},
    )
    frames = b"".join(masked(json.dumps(frame).encode()) for frame in said)
    await stream.send_all(b"GET /_control HTTP/1.1\r\n" + UPGRADE + b"\r\n" + frames)
    control = WebSocket(stream, (await upgraded(stream)))
    with trio.fail_after(5):
        welcome = json.loads((await control.receive())[1])
        assert welcome["type"] == "auth_ok"
        assert json.loads((await control.receive())[1])["type"] == "tunnel_registered"

        other = await trio.open_tcp_stream("127.0.0.1", house.port)
        ping = bytes.fromhex("0002000100000000000000ab")  # yamux, SYN, value 0xab
        await other.send_all(
            f"GET /_data/{welcome['session_id']} HTTP/1.1\r\n".encode() + UPGRADE + b"\r\n" + masked(ping)
        )
        data = WebSocket(other, (await upgraded(other)))
        heard = b""
        while bytes.fromhex("0002000200000000000000ab") not in heard:  # ACK
            heard += (await data.receive())[1]
    for one in (other, stream):
        await trio.aclose_forcefully(one)


def masked(payload: bytes) -> bytes:
    """A binary message as a client sends it; its mask is all zeros."""
    size = len(payload)
    assert size < 0x10000
    return (bytes((0x82, 0x80 | size)) if size < 126 else b"\x82\xfe" + size.to_bytes(2, "big")) + bytes(4) + payload


async def upgraded(stream: trio.SocketStream) -> bytes:
    """What came behind the 101."""
    answer = bytearray()
    with trio.fail_after(5):
        while b"\r\n\r\n" not in answer:
            answer += await stream.receive_some(4096)
    assert answer.startswith(b"HTTP/1.1 101 ")
    return bytes(answer.partition(b"\r\n\r\n")[2])


async def test_Y30_data_sockets_of_no_session_are_refused_alike(house: AgentsHouse) -> None:
    async with stock_agent(house.port, "ann") as agent, own_agent(house) as own:
        session = house.sessions.find(agent.session_id)
        assert session is not None
        answers = set()
        for name in (
            "00000000-0000-4000-8000-000000000000",
            "no-uuid",
            "",
            agent.session_id.upper(),
            agent.session_id + "/",
            session.public_id,  # what others see opens nothing
            own.session_id,  # without its secret
        ):
            status, answer = await ask(house, f"GET /_data/{name} HTTP/1.1\r\n".encode() + UPGRADE + b"\r\n")
            assert status == 403
            answers.add(answer)
        wrong = b"X-Rustunnel-Data-Secret: " + b"x" * 43 + b"\r\n"
        answers.add(
            (await ask(house, f"GET /_data/{own.session_id} HTTP/1.1\r\n".encode() + UPGRADE + wrong + b"\r\n"))[1]
        )
        assert len(answers) == 1
    await house.until(lambda: len(house.sessions) == 0)
    with pytest.raises(Refused) as gone:  # the session is over
        await agent._open(f"/_data/{agent.session_id}")
    assert gone.value.status == 403


class OwnAgent(StockAgent):
    """As the stock one, but with features, several tunnels told apart, and raw yamux on its data socket."""

    features: tuple[str, ...] = ("raw_data",)
    welcome: dict[str, Any]
    raw: trio.SocketStream | None = None
    side: Side
    raw_lock: trio.Lock

    async def connect(self) -> None:
        self.control = await self._open("/_control")
        await self._say(
            type="auth",
            token=self._token,
            client_version="0.1.0",
            features=self.features,
            machine="m1",
            instance="i1",
        )
        self.welcome = await self._only_answer(("auth_ok",))
        self.session_id = self.welcome["session_id"]

    async def open_raw(self) -> None:
        """Upgrade with the secret; from then on plain yamux, served by `pump_raw`."""
        stream = await trio.open_tcp_stream("127.0.0.1", self._port)
        secret = f"X-Rustunnel-Data-Secret: {self.welcome['data_secret']}\r\n".encode()
        await stream.send_all(f"GET /_data/{self.session_id} HTTP/1.1\r\n".encode() + UPGRADE + secret + b"\r\n")
        answer = bytearray()
        while b"\r\n\r\n" not in answer:
            answer += await stream.receive_some(4096)
        assert answer.startswith(b"HTTP/1.1 101 ")
        self.raw = stream
        self.raw_lock = trio.Lock()
        self.side = Side(Role.SERVER, limits=Limits(max_accepted=2048))
        feed(self.side.session, bytes(answer.partition(b"\r\n\r\n")[2]))
        assert self.nursery is not None
        if not self.data_opened:
            self.nursery.start_soon(self._run_control)
        self.data_opened += 1
        self.nursery.start_soon(self.pump_raw)

    async def pump_raw(self) -> None:
        assert self.raw is not None
        try:
            while True:
                await self.send_raw(self.side.trunk.take())
                data = await self.raw.receive_some(65536)
                if not data:
                    self.data_ends.append("fin")
                    return
                feed(self.side.session, bytes(data))
                self.side.later.run()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.data_ends.append("reset")

    async def answer(self, stream: Hearing, raw: bytes) -> None:
        """A local service's answer; it leaves with what the agent has to send now."""
        assert stream.stream is not None
        assert self.raw is not None
        stream.stream.send(raw)
        await self.send_raw(self.side.trunk.take())

    async def send_raw(self, data: bytes) -> None:
        assert self.raw is not None
        async with self.raw_lock:
            await self.raw.send_all(data)


@asynccontextmanager
async def own_agent(house: AgentsHouse, features: tuple[str, ...] = ("raw_data",)) -> AsyncIterator[OwnAgent]:
    agent = OwnAgent(house.port, "ann", None, "localhost", heartbeats=False)
    agent.features = features
    await agent.connect()
    async with trio.open_nursery() as nursery:
        agent.nursery = nursery
        try:
            yield agent
        finally:
            with trio.CancelScope(shield=True):
                assert agent.control is not None
                await agent.control.drop()
                if agent.raw is not None:
                    await trio.aclose_forcefully(agent.raw)
            nursery.cancel_scope.cancel()


async def wish(agent: OwnAgent, **fields: object) -> dict[str, Any]:
    await agent._say(**{"type": "register_tunnel", "request_id": "r", "local_addr": "localhost:3000", **fields})
    return await agent._only_answer(("tunnel_registered", "tunnel_error"))


async def test_an_agent_that_reads_heads_of_streams_hears_of_them_there_alone(house: AgentsHouse) -> None:
    async with own_agent(house, ("raw_data", "stream_heads")) as agent:
        one = await wish(agent, protocol="http", subdomain="one")
        two = await wish(agent, protocol="http", subdomain="two")
        await agent.open_raw()
        turns = [house.request("one"), house.request("two")]
        await house.until(lambda: len(agent.side.accepted) == 2)
        for tunnel, stream, turn in zip((one, two), agent.side.accepted, turns, strict=True):
            await house.until(lambda stream=stream: stream.received.endswith(b"\r\n\r\n"))  # type: ignore[misc]
            found = stream_head.cut(stream.received)
            assert found is not None
            head, size = found
            assert head.tunnel_id == tunnel["tunnel_id"]
            assert head.visitor.rpartition(":")[0]
            assert stream.received[size:].startswith(b"GET ")
            await agent.answer(stream, OK)
            await turn.over()
        assert not [frame for frame in agent.heard if frame["type"] == "new_connection"]


@pytest.mark.parametrize(("features", "most"), [(("raw_data",), 400), (("raw_data", "many_streams"), 1638)])
async def test_P05_an_agent_gets_as_many_streams_as_it_says_that_it_stands(
    house: AgentsHouse, features: tuple[str, ...], most: int
) -> None:
    async with own_agent(house, features) as agent:
        await wish(agent, protocol="http", subdomain="one")
        await agent.open_raw()
        for wanted in range(200, most + 200, 200):  # fewer at once than may be unacknowledged
            for _ in range(200):
                house.request("one")
            there = min(wanted, most)
            await house.until(lambda there=there: len(agent.side.accepted) == there)  # type: ignore[misc]
        found = house.sessions.find(agent.session_id)
        assert found is not None
        assert isinstance(found.agent, RustunnelAgent)
        link = found.agent.link
        assert link.session is not None
        assert link.session.open_streams == most
        assert not link.session.can_open()


async def test_our_own_agent_is_told_more_and_tells_its_tunnels_apart(house: AgentsHouse) -> None:
    async with own_agent(house) as agent:
        assert agent.welcome["features"] == ["raw_data", "stream_heads", "many_streams"]
        assert agent.welcome["region"] == "lab"
        assert agent.welcome["https"] is True
        one = await wish(agent, protocol="http", subdomain="one", host_header="rewrite")
        two = await wish(agent, protocol="http", subdomain="two", host_header="app.internal:8080")
        await agent.open_raw()
        turns = [house.request("one"), house.request("two")]
        await house.until(lambda: len(agent.side.accepted) == 2)
        await agent.wait_heard("new_connection", 2)
        told = [frame for frame in agent.heard if frame["type"] == "new_connection"]
        assert [frame["tunnel_id"] for frame in told] == [one["tunnel_id"], two["tunnel_id"]]
        first, second = agent.side.accepted
        await house.until(lambda: first.received.endswith(b"\r\n\r\n") and second.received.endswith(b"\r\n\r\n"))
        assert bytes(first.received[:16]).hex() == told[0]["conn_id"].replace("-", "")
        assert b"Host: localhost:3000\r\n" in first.received
        assert b"Host: app.internal:8080\r\n" in second.received
        for stream, turn in zip((first, second), turns, strict=True):
            await agent.answer(stream, OK)
            await turn.over()
            assert turn.events == ["head", "data", "end"]
        assert house.names.known == {}


async def test_an_agent_without_raw_data_speaks_websocket_on_its_data_socket(house: AgentsHouse) -> None:
    async with own_agent(house, features=("something_else",)) as agent:
        stream = await trio.open_tcp_stream("127.0.0.1", house.port)
        secret = f"X-Rustunnel-Data-Secret: {agent.welcome['data_secret']}\r\n".encode()
        await stream.send_all(f"GET /_data/{agent.session_id} HTTP/1.1\r\n".encode() + UPGRADE + secret + b"\r\n")
        answer = bytearray()
        while len(answer.partition(b"\r\n\r\n")[2]) < 14:
            answer += await stream.receive_some(4096)
        assert bytes(answer.partition(b"\r\n\r\n")[2])[:6].hex() == "820c00020001"  # binary, 12 bytes: a yamux ping
        await trio.aclose_forcefully(stream)


async def test_visits_are_told_in_batches(house: AgentsHouse) -> None:
    async with own_agent(house) as agent:
        registered = await wish(agent, protocol="http", subdomain="one")
        await agent.open_raw()
        tell = house.tunnel("one").tell
        assert tell is not None
        tell(b"GET", b"/a?b=\xff", 200, 1.234, "v1", False)
        frame = await agent.wait_heard("visits")
        assert frame["visits"] == [
            {
                "tunnel_id": registered["tunnel_id"],
                "method": "GET",
                "path": "/a?b=\xff",
                "status": 200,
                "ms": 1.2,
                "capture_id": "v1",
            }
        ]
        for number in range(1000):
            tell(b"GET", b"/" + b"x" * 1000, 200, 1.0, str(number), False)
        frame = await agent.wait_heard("visits", 2)
        assert [line["capture_id"] for line in frame["visits"]] == [str(number) for number in range(936, 1000)]
        assert len(frame["visits"][0]["path"]) == 256


async def test_stock_agents_are_told_no_visits(house: AgentsHouse) -> None:
    async with stock_agent(house.port, "ann") as agent:
        await agent.register("http", 1, subdomain="demo")
        assert house.tunnel("demo").tell is None


async def test_our_own_agent_hears_that_the_server_goes_away() -> None:
    async with trio.open_nursery() as nursery:

        async def stay(house: AgentsHouse, *, task_status: trio.TaskStatus[OwnAgent]) -> None:
            async with own_agent(house) as agent:
                await wish(agent, protocol="http", subdomain="one")
                await agent.open_raw()
                task_status.started(agent)
                await trio.sleep_forever()

        async with agents_house() as house:
            agent: OwnAgent = await nursery.start(stay, house)
        with trio.fail_after(5):
            await agent.ended.wait()
        assert agent.heard[-1]["type"] == "going_away"
        await house.until(lambda: agent.data_ends)
        nursery.cancel_scope.cancel()


async def test_the_same_instance_takes_its_name_over_at_once_and_take_over_from_another(house: AgentsHouse) -> None:
    async with own_agent(house) as first:
        await wish(first, protocol="http", subdomain="one")
        async with own_agent(house) as again:  # the same instance: its own ghost
            assert (await wish(again, protocol="http", subdomain="one"))["type"] == "tunnel_registered"
            await house.until(lambda: len(house.sessions) == 1)
            await again.open_raw()
            async with stock_agent(house.port, "ann") as other:
                with pytest.raises(SessionFailed, match="in use from"):
                    await other.register("http", 1, subdomain="one")
                await other._say(
                    type="register_tunnel",
                    request_id="r",
                    protocol="http",
                    subdomain="one",
                    local_addr="localhost:1",
                    take_over=True,
                )
                await other._only_answer(("tunnel_registered",))
                with trio.fail_after(5):
                    await again.ended.wait()


async def test_a_raw_data_socket_that_breaks_yamux_hears_go_away_and_may_come_back(house: AgentsHouse) -> None:
    async with own_agent(house) as agent:
        await wish(agent, protocol="http", subdomain="one")
        await agent.open_raw()
        raw = agent.raw
        assert raw is not None
        turn: WaitingTurn = house.request("one")
        await house.until(lambda: agent.side.accepted)
        await agent.send_raw(b"\x01" + bytes(11))
        await turn.over()
        assert turn.error is not None
        assert turn.error.code == "agent-lost"
        await house.until(lambda: agent.data_ends)
        assert agent.side.session.peer_code == 1
        await trio.aclose_forcefully(raw)
        await agent.open_raw()
        turn = house.request("one")
        await house.until(lambda: agent.side.accepted)
        await agent.answer(agent.side.accepted[0], OK)
        await turn.over()
        assert turn.events[-1] == "end"


async def test_a_crowd_of_strangers_is_bounded(house: AgentsHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    from rustunnel_py.agents import door

    monkeypatch.setattr(door, "STRANGERS_PER_SOURCE", 3)
    quiet = StockAgent(house.port, "ann", None, "localhost", heartbeats=False)
    controls: list[WebSocket] = [await quiet._open("/_control") for _ in range(3)]
    with pytest.raises(Refused) as full:
        await quiet._open("/_control")
    assert full.value.status == 503
    await controls[0].drop()
    await house.until(lambda: len(house.door._strangers) == 2)
    async with stock_agent(house.port, "ann"):
        assert len(house.door._strangers) == 2
        more = await quiet._open("/_control")
    for control in [*controls[1:], more]:
        await control.drop()


async def test_an_accepted_session_ends_without_a_trace(house: AgentsHouse) -> None:
    for _ in range(3):
        async with stock_agent(house.port, "ann") as agent:
            await agent.register("tcp", 1)
            await agent.serve()
            await agent.close()
    await house.until(lambda: len(house.sessions) == 0)
    await house.until(lambda: not list(house.registry.live()))
    assert house.tcp._ports == {}
    assert house.registry.find(HttpHost("one.test")) is None
    assert len(house.log.ended) == 3


@pytest.mark.parametrize("target", [b"/_control", b"/other", b"/_data/x", b"no-path"])
async def test_an_answer_to_HEAD_has_no_body(house: AgentsHouse, target: bytes) -> None:
    _, answer = await ask(house, b"HEAD " + target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head, end, body = answer.partition(b"\r\n\r\n")
    assert int(head[9:12]) in (400, 404, 426)
    assert b"Content-Length: " in head
    assert (end, body) == (b"\r\n\r\n", b"")


async def test_a_426_says_what_to_upgrade_to(house: AgentsHouse) -> None:
    _, answer = await ask(house, b"GET /_control HTTP/1.1\r\nHost: localhost\r\n\r\n")
    lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert b"Upgrade: websocket" in lines
    assert b"Connection: close, upgrade" in lines
    assert b"Sec-WebSocket-Version: 13" in lines
