"""An agent's life and the fight for names: sessions over a real registry, agents that are played, a store in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import trio
import trio.testing

from rustunnel_py.errors import BadCredentials, Forbidden, NotFound, StoreError, Unavailable
from rustunnel_py.hub.registry import Places, Registry
from rustunnel_py.hub.sessions import Introduction, Session, Sessions, Wish
from rustunnel_py.model.access import Caller, Role, Secret
from rustunnel_py.model.tunnel import Peer, Protocol, TcpPort
from tests.support.agents_house import FakeAccounts, FakeLog, FakeNames, NoPorts

if TYPE_CHECKING:
    from rustunnel_py.errors import LinkLost
    from rustunnel_py.hub.accounts import Accounts
    from rustunnel_py.hub.link import Link
    from rustunnel_py.hub.registry import Tunnel
    from rustunnel_py.store.names import NameKey, Names, Remembered
    from rustunnel_py.store.tunnel_log import TunnelLog

TOLD = object()


class PlayedAgent:
    """Answers pings while it is `alive`; `end` is noted, the session leaves when the test says so."""

    def __init__(self, session: Session, bench: Bench) -> None:
        self.session = session
        self.bench = bench
        self.link = cast("Link", object())
        self.alive = True
        self.asked = 0
        self.why: LinkLost | None = None
        self.forgotten: list[str] = []
        self.said_goodbye = False
        self.on_ask: trio.Event | None = None

    async def answers(self, within: float) -> bool:
        self.asked += 1
        if self.on_ask is not None:
            await self.on_ask.wait()
        await trio.lowlevel.checkpoint()
        return self.alive

    def end(self, why: LinkLost) -> None:
        self.why = why

    async def say_goodbye(self) -> None:
        self.said_goodbye = True
        await trio.lowlevel.checkpoint()

    def forget_tunnel(self, tunnel_id: str) -> None:
        self.forgotten.append(tunnel_id)

    def tell_visit(self, tunnel_id: str) -> None:
        return None


class Bench:
    def __init__(self, *, max_tunnels: int = 5) -> None:
        self.now = 1000.0
        self.accounts = FakeAccounts()
        self.names = FakeNames()
        self.log = FakeLog()
        self.ports = NoPorts()
        self.max_tunnels = max_tunnels
        self.restart()

    def restart(self) -> None:
        """The server starts anew: what was live is gone, what was stored is there."""
        self.ports = NoPorts()
        self.registry = Registry(self.ports, (20000, 20009), lambda: self.now)
        self.registry.places = Places("t.example", 80, 443)
        self.sessions = Sessions(
            self.registry,
            cast("Accounts", self.accounts),
            cast("Names", self.names),
            cast("TunnelLog", self.log),
            reserved=["Admin", "www"],
            max_tunnels=self.max_tunnels,
            hold_seconds=60,
            clock=lambda: self.now,
        )

    async def agent(
        self, token: str = "ann", *, instance: str | None = None, machine: str | None = None
    ) -> PlayedAgent:
        introduction = Introduction(Secret(token), "0.7.8", Peer("192.0.2.7", 5555), machine=machine, instance=instance)
        session = await self.sessions.authenticate(introduction)
        agent = PlayedAgent(session, self)
        session.agent = agent
        return agent

    async def register(
        self,
        agent: PlayedAgent,
        subdomain: str | None = None,
        *,
        protocol: Protocol = Protocol.HTTP,
        port: int | None = None,
        local: str = "localhost:3000",
        take_over: bool = False,
    ) -> Tunnel:
        wish = Wish(protocol, subdomain=subdomain, port=port, local_addr=local, take_over=take_over)
        try:
            return await self.sessions.register(agent.session, wish)
        finally:
            agent.session.registering = False  # its answer has been written

    @staticmethod
    def ended(agent: PlayedAgent) -> bool:
        return agent.why is not None

    async def leave(self, agent: PlayedAgent, *, clean: bool = False) -> None:
        await self.sessions.leave(agent.session, clean=clean)


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_token_makes_a_session_with_three_different_secrets(bench: Bench) -> None:
    agent = await bench.agent()
    session = agent.session
    assert bench.sessions.find(session.id) is session
    assert bench.sessions.find(session.public_id) is None
    assert len({session.id, session.public_id, session.data_secret}) == 3
    assert session.id not in repr(session)
    assert list(bench.sessions) == [session]
    with pytest.raises(BadCredentials):
        await bench.agent("wrong")
    assert len(bench.sessions) == 1


async def test_a_wished_name_is_served_logged_and_counted(bench: Bench) -> None:
    agent = await bench.agent("ann")
    tunnel = await bench.register(agent, "App")
    assert bench.registry.find_host("app.t.example") is tunnel
    assert (tunnel.owner, tunnel.local_addr) == ("ann", "localhost:3000")
    assert tunnel.links.pick(None) is agent.link  # type: ignore[arg-type]
    entry = bench.log.entries[0]
    assert (entry.label, entry.protocol, entry.token_label) == ("app.t.example", "http", "ann")
    assert entry.session_id == agent.session.public_id
    assert [caller.owner for caller in bench.accounts.registered] == ["ann"]
    assert bench.names.known == {}  # wishes are not remembered


@pytest.mark.parametrize(
    ("token", "allowed"), [("ann", False), ("ann/admin,x", True), ("admin", True), ("ann/adm*", False)]
)
async def test_C12_reserved_labels_are_for_admins_and_for_tokens_that_name_them(
    bench: Bench, token: str, allowed: bool
) -> None:
    agent = await bench.agent(token)
    if allowed:
        await bench.register(agent, "ADMIN")
        return
    with pytest.raises(Unavailable) as refused:
        await bench.register(agent, "admin")
    assert refused.value.code == "reserved"


async def test_C13_exactly_one_of_many_wins_a_name(bench: Bench) -> None:
    agents = [await bench.agent(f"user{number}") for number in range(200)]
    won: list[PlayedAgent] = []

    async def race(agent: PlayedAgent) -> None:
        try:
            await bench.register(agent, "prize")
        except Unavailable:
            return
        won.append(agent)

    async with trio.open_nursery() as nursery:
        for agent in agents:
            nursery.start_soon(race, agent)
    assert len(won) == 1
    assert bench.registry.find_host("prize.t.example") is not None


async def test_a_foreign_name_is_in_use_and_tells_no_address(bench: Bench) -> None:
    await bench.register(await bench.agent("ann"), "app")
    with pytest.raises(Unavailable) as refused:
        await bench.register(await bench.agent("bob"), "app", take_over=True)
    assert str(refused.value) == "app.t.example is in use"


async def test_the_owners_other_agent_hears_from_where_it_is_used(bench: Bench) -> None:
    holder = await bench.agent("ann")
    await bench.register(holder, "app")
    other = await bench.agent("ann")
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"in use from 192\.0\.2\.7:5555; --take-over"):
            await bench.register(other, "app")
    assert holder.asked == 2
    assert holder.why is None  # neither flaps


async def test_take_over_by_the_owner_keeps_the_id_and_ends_the_emptied_session(bench: Bench) -> None:
    holder = await bench.agent("ann")
    before = await bench.register(holder, "app")
    kept = await bench.register(holder, "other")
    claimant = await bench.agent("ann")
    after = await bench.register(claimant, "app", take_over=True)
    assert after is before
    assert kept.session is holder.session
    assert not bench.ended(holder)
    await bench.register(claimant, "other", take_over=True)
    assert bench.ended(holder)
    await bench.leave(holder)
    assert after.session is claimant.session
    assert after.held_until is None
    assert len(after.links) == 1


async def test_take_over_by_an_admin_leaves_id_and_captures_with_their_owner(bench: Bench) -> None:
    holder = await bench.agent("ann")
    before = await bench.register(holder, "app")
    after = await bench.register(await bench.agent("admin"), "app", take_over=True)
    assert after.owner == "root"
    assert after.id != before.id
    assert holder.why is not None


async def test_C14_a_dead_holder_loses_a_live_one_keeps_and_one_in_registration_counts_as_alive(bench: Bench) -> None:
    holder = await bench.agent("ann")
    tunnel = await bench.register(holder, "app")
    holder.alive = False
    holder.session.registering = True
    with pytest.raises(Unavailable):
        await bench.register(await bench.agent("ann"), "app")
    assert holder.asked == 0
    holder.session.registering = False
    assert await bench.register(await bench.agent("ann"), "app") is tunnel


async def test_a_reconnect_never_loses_to_its_own_ghost(bench: Bench) -> None:
    ghost = await bench.agent("ann", instance="i1")
    tunnel = await bench.register(ghost, "app")
    again = await bench.agent("ann", instance="i1")
    assert await bench.register(again, "app") is tunnel
    assert ghost.asked == 0
    assert ghost.why is not None
    await bench.leave(ghost)
    assert tunnel.session is again.session


async def test_two_claims_on_a_dead_holder_end_with_one_owner(bench: Bench) -> None:
    holder = await bench.agent("ann")
    await bench.register(holder, "app")
    holder.alive = False
    holder.on_ask = trio.Event()
    claimants = [await bench.agent("ann") for _ in range(3)]
    outcomes: list[object] = []

    async def claim(agent: PlayedAgent) -> None:
        try:
            outcomes.append(await bench.register(agent, "app"))
        except Unavailable as error:
            outcomes.append(error.code)

    async with trio.open_nursery() as nursery:
        for agent in claimants:
            nursery.start_soon(claim, agent)
        await trio.testing.wait_all_tasks_blocked()
        holder.on_ask.set()
    assert sorted(map(str, outcomes))[1:] == ["taken", "taken"]


async def test_a_hold_waits_for_its_owner_alone_and_keeps_the_id(bench: Bench) -> None:
    agent = await bench.agent("ann")
    tunnel = await bench.register(agent, "app")
    await bench.leave(agent)
    await bench.leave(agent)
    assert tunnel.held_until == 1060.0
    assert bench.log.ended == [bench.log.entries[0].id]
    with pytest.raises(Unavailable):
        await bench.register(await bench.agent("bob"), "app")
    assert await bench.register(await bench.agent("ann"), "app") is tunnel
    assert len(bench.log.entries) == 2


async def test_a_clean_end_frees_at_once(bench: Bench) -> None:
    agent = await bench.agent("ann")
    await bench.register(agent, "app")
    tcp = await bench.register(agent, protocol=Protocol.TCP)
    await bench.leave(agent, clean=True)
    assert bench.registry.find_host("app.t.example") is None
    assert bench.ports.open_ports == set()
    assert ("ann", str(tcp.address)) in bench.names.released
    await bench.register(await bench.agent("bob"), "app")


async def test_a_random_name_is_the_same_after_a_reconnect_and_a_restart(bench: Bench) -> None:
    first = await bench.agent("ann", instance="i1", machine="m1")
    tunnel = await bench.register(first)
    tcp = await bench.register(first, protocol=Protocol.TCP)
    await bench.leave(first)
    again = await bench.agent("ann", instance="i1", machine="m1")
    assert (await bench.register(again)).address == tunnel.address
    bench.restart()
    back = await bench.agent("ann", instance="i1", machine="m1")
    restored = await bench.register(back)
    assert (restored.address, restored.id) == (tunnel.address, tunnel.id)
    assert (await bench.register(back, protocol=Protocol.TCP)).address == tcp.address


async def test_a_memory_is_by_machine_owner_protocol_and_local_address(bench: Bench) -> None:
    first = await bench.agent("ann", instance="i1", machine="m1")
    tunnel = await bench.register(first)
    await bench.leave(first, clean=True)
    for token, machine, local in [
        ("bob", "m1", "localhost:3000"),
        ("ann", "m2", "localhost:3000"),
        ("ann", "m1", "x:1"),
    ]:
        other = await bench.agent(token, instance="i2", machine=machine)
        assert (await bench.register(other, local=local)).address != tunnel.address
    assert (await bench.register(await bench.agent("ann", instance="i3", machine="m1"))).address == tunnel.address


async def test_two_live_agents_without_a_wish_have_two_names_and_keep_theirs_over_a_restart(bench: Bench) -> None:
    first = await bench.agent("ann", instance="i1", machine="m1")
    second = await bench.agent("ann", instance="i2", machine="m1")
    one, two = await bench.register(first), await bench.register(second)
    assert one.address != two.address
    bench.restart()
    bench.now += 1
    # In the other order: each still gets its own.
    second = await bench.agent("ann", instance="i2", machine="m1")
    first = await bench.agent("ann", instance="i1", machine="m1")
    assert (await bench.register(second)).address == two.address
    assert (await bench.register(first)).address == one.address


async def test_another_instance_gets_a_remembered_name_when_the_last_holder_did_not_come_back(bench: Bench) -> None:
    agent = await bench.agent("ann", instance="i1", machine="m1")
    tunnel = await bench.register(agent)
    bench.restart()
    bench.now += 61
    assert (await bench.register(await bench.agent("ann", instance="i9", machine="m1"))).address == tunnel.address


async def test_a_memory_never_takes_a_name_from_somebody_alive(bench: Bench) -> None:
    stock = await bench.agent("ann")
    tunnel = await bench.register(stock)
    other = await bench.agent("ann")
    assert (await bench.register(other)).address != tunnel.address
    assert stock.asked == 1
    assert tunnel.session is stock.session
    stock.alive = False
    third = await bench.agent("ann")
    await bench.leave(other, clean=True)
    assert (await bench.register(third)).address in {tunnel.address, *bench_addresses(bench)}


def bench_addresses(bench: Bench) -> set[object]:
    return {tunnel.address for tunnel in bench.registry.live()}


async def test_anonymous_agents_are_not_remembered_and_take_nothing_over(bench: Bench) -> None:
    first = await bench.agent("anonymous-1")
    await bench.register(first, "app")
    await bench.register(first)
    assert bench.names.known == {}
    with pytest.raises(Unavailable):
        await bench.register(await bench.agent("anonymous-2"), "app", take_over=True)


@pytest.mark.parametrize("port", [-1, 0, 22, 19999, 20010, 70000])
async def test_C18_a_port_outside_the_range_is_refused(bench: Bench, port: int) -> None:
    with pytest.raises(Unavailable) as refused:
        await bench.register(await bench.agent(), protocol=Protocol.TCP, port=port)
    assert refused.value.code == "malformed"


async def test_a_wished_port_and_one_that_another_program_has(bench: Bench) -> None:
    agent = await bench.agent()
    bench.ports.taken = {20006}
    assert (await bench.register(agent, protocol=Protocol.TCP, port=20005)).address == TcpPort(20005)
    with pytest.raises(Unavailable, match="another program"):
        await bench.register(agent, protocol=Protocol.TCP, port=20006)
    with pytest.raises(Unavailable, match="by this session"):
        await bench.register(agent, protocol=Protocol.TCP, port=20005)


async def test_C11_register_and_leave_a_thousand_times_leaves_nothing(bench: Bench) -> None:
    for number in range(300):
        agent = await bench.agent("ann", machine="m")
        await bench.register(agent, f"name{number}" if number % 2 else None)
        await bench.register(agent, protocol=Protocol.TCP)
        await bench.leave(agent, clean=number % 3 > 0)
        bench.now += 61
        bench.registry.sweep(bench.now)
    assert list(bench.registry.live()) == []
    assert bench.registry._by_id == {}
    assert bench.ports.open_ports == set()
    assert len(bench.sessions) == 0
    assert len(bench.log.entries) == len(bench.log.ended) == 600


async def test_the_cap_per_session_counts_what_is_live(bench: Bench) -> None:
    agent = await bench.agent()
    tunnels = [await bench.register(agent, f"app{number}") for number in range(5)]
    with pytest.raises(Unavailable) as refused:
        await bench.register(agent, "app9")
    assert refused.value.code == "limit"
    assert await bench.sessions.unregister(agent.session, tunnels[0].id)
    await bench.register(agent, "app9")


async def test_unregister_is_for_the_sessions_own(bench: Bench) -> None:
    ann, other = await bench.agent(), await bench.agent()
    tunnel = await bench.register(ann, "app")
    assert not await bench.sessions.unregister(other.session, tunnel.id)
    assert not await bench.sessions.unregister(ann.session, "no such")
    assert await bench.sessions.unregister(ann.session, tunnel.id)
    assert bench.registry.get(tunnel.id) is None
    assert ann.forgotten == [tunnel.id]


async def test_closing_by_the_api(bench: Bench) -> None:
    agent = await bench.agent("ann")
    one, two = await bench.register(agent, "one"), await bench.register(agent, "two")
    bench.accounts.require_writer = lambda caller: None  # type: ignore[attr-defined]
    for caller in (Caller("bob", Role.AGENT, token_id="x"), Caller("ann", Role.AGENT, anonymous=True)):
        with pytest.raises(NotFound):
            bench.sessions.close_visible(caller, one.id)
    bench.sessions.close_visible(Caller("ann", Role.AGENT, token_id="y"), one.id)
    assert agent.why is None
    with pytest.raises(NotFound):
        bench.sessions.close_visible(Caller("root", Role.ADMIN), one.id)

    def refuse(caller: Caller) -> None:
        raise Forbidden("no")

    bench.accounts.require_writer = refuse  # type: ignore[attr-defined]
    with pytest.raises(Forbidden):
        bench.sessions.close_visible(Caller("ann", Role.READ, token_id="z"), two.id)
    bench.sessions.close_tunnel(two)
    assert agent.forgotten == [one.id, two.id]
    assert agent.why is not None


async def test_a_revoked_token_frees_its_names_and_ends_its_sessions(bench: Bench) -> None:
    ann, bob = await bench.agent("ann"), await bench.agent("bob")
    await bench.register(ann, "app")
    await bench.register(bob, "other")
    bench.accounts.revoke("id-ann")
    assert ann.why is not None
    assert bob.why is None
    assert bench.registry.find_host("app.t.example") is None
    assert bench.registry.find_host("other.t.example") is not None


async def test_a_session_that_ended_while_it_registered_leaves_no_tunnel(bench: Bench) -> None:
    agent = await bench.agent("ann")

    async def slow(key: NameKey) -> list[Remembered]:
        await bench.leave(agent)
        return []

    bench.names.remembered = slow  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await bench.register(agent)
    assert list(bench.registry.live()) == []
    assert bench.registry._by_id == {}


async def test_a_broken_store_costs_the_memory_not_the_tunnel(bench: Bench) -> None:
    async def broken(*args: object) -> list[Remembered]:
        await trio.lowlevel.checkpoint()
        raise StoreError("disk full")

    bench.names.remembered = bench.names.remember = bench.names.release = broken  # type: ignore[method-assign, assignment]
    agent = await bench.agent("ann")
    tunnel = await bench.register(agent)
    assert await bench.sessions.unregister(agent.session, tunnel.id)


async def test_goodbye_is_said_to_all_and_bounded(bench: Bench, autojump_clock: trio.testing.MockClock) -> None:
    agents = [await bench.agent() for _ in range(3)]

    async def never() -> None:
        await trio.sleep_forever()

    agents[1].say_goodbye = never  # type: ignore[method-assign]
    began = trio.current_time()
    await bench.sessions.say_goodbye()
    assert trio.current_time() - began == 2.0
    assert agents[0].said_goodbye
    assert agents[2].said_goodbye


@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.P2P])
async def test_what_is_not_served_yet_is_said_clearly(bench: Bench, protocol: Protocol) -> None:
    with pytest.raises(Unavailable, match="not served by this server yet") as refused:
        await bench.register(await bench.agent(), protocol=protocol)
    assert refused.value.code == "unsupported"
