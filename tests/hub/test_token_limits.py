"""What a token may open: scope, protocols, number; and that it ends with the token. Real accounts, played agents."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from rustunnel_py.errors import Unavailable
from rustunnel_py.model.tunnel import Protocol, TcpPort
from tests.hub.test_sessions import Bench, PlayedAgent

if TYPE_CHECKING:
    from rustunnel_py.model.access import Caller


@pytest.fixture
def bench() -> Bench:
    return Bench()


def limited(agent: PlayedAgent, **limits: object) -> Caller:
    session = agent.session
    session.caller = replace(session.caller, **limits)  # type: ignore[arg-type]
    return session.caller


async def refused(bench: Bench, agent: PlayedAgent, code: str, **wish: object) -> str:
    with pytest.raises(Unavailable) as caught:
        await bench.register(agent, **wish)  # type: ignore[arg-type]
    assert caught.value.code == code
    return str(caught.value)


async def test_a_name_outside_the_scope_is_refused(bench: Bench) -> None:
    agent = await bench.agent("ann/ci-*")
    assert "ci-*" in await refused(bench, agent, "scope", subdomain="app")
    assert str((await bench.register(agent, "CI-7")).address) == "ci-7.t.example"


async def test_ports_need_a_pattern_of_their_own(bench: Bench) -> None:
    agent = await bench.agent("ann/ci-*")
    await refused(bench, agent, "scope", protocol=Protocol.TCP)
    await refused(bench, agent, "scope", protocol=Protocol.TCP, port=20001)
    other = await bench.agent("bob/tcp:20003-20004")
    await refused(bench, other, "scope", protocol=Protocol.TCP, port=20005)
    await refused(bench, other, "scope")
    assert (await bench.register(other, protocol=Protocol.TCP, port=20003)).address == TcpPort(20003)
    assert (await bench.register(other, protocol=Protocol.TCP, local="x:1")).address == TcpPort(20004)
    await refused(bench, other, "exhausted", protocol=Protocol.TCP, local="x:2")


async def test_a_random_name_is_made_within_the_scope(bench: Bench) -> None:
    agent = await bench.agent("ann/ci-*")
    name = str((await bench.register(agent)).address)
    assert name.startswith("ci-")
    assert len(name) == len("ci-12345678901.t.example")
    other = await bench.agent("bob/one,two")
    first, second = await bench.register(other), await bench.register(other, local="x:1")
    assert [str(tunnel.address) for tunnel in (first, second)] == ["one.t.example", "two.t.example"]
    await refused(bench, other, "scope", local="x:2")


async def test_a_memory_outside_the_scope_is_not_given_again(bench: Bench) -> None:
    agent = await bench.agent("ann", machine="m")
    remembered = await bench.register(agent)
    await bench.leave(agent, clean=True)
    narrower = await bench.agent("ann/ci-*", machine="m")
    again = await bench.register(narrower)
    assert again.address != remembered.address
    assert str(again.address).startswith("ci-")


async def test_C12_reserved_names_need_to_be_named_literally(bench: Bench) -> None:
    await refused(bench, await bench.agent("ann/*"), "reserved", subdomain="www")
    await bench.register(await bench.agent("bob/www"), "www")


async def test_protocols(bench: Bench) -> None:
    agent = await bench.agent("ann")
    limited(agent, protocols=("tcp",))
    assert "http" in await refused(bench, agent, "scope", subdomain="app")
    await bench.register(agent, protocol=Protocol.TCP)
    limited(agent, protocols=("http",))
    await refused(bench, agent, "scope", protocol=Protocol.TCP)
    await bench.register(agent, "app", protocol=Protocol.HTTPS)


async def test_the_number_counts_over_all_sessions_of_a_token(bench: Bench) -> None:
    one, two = await bench.agent("ann"), await bench.agent("ann")
    for agent in (one, two):
        limited(agent, max_tunnels=2)
    await bench.register(one, "app")
    second = await bench.register(two, "web")
    assert "2 tunnels" in await refused(bench, one, "limit", subdomain="third")
    assert bench.registry.find_host("third.t.example") is None  # nothing is left of the try
    await bench.sessions.unregister(two.session, second.id)
    await bench.register(one, "third")


async def test_at_the_limit_a_reconnect_still_gets_its_name_back(bench: Bench) -> None:
    ghost = await bench.agent("ann", instance="i")
    limited(ghost, max_tunnels=1)
    tunnel = await bench.register(ghost, "app")
    again = await bench.agent("ann", instance="i")
    limited(again, max_tunnels=1)
    assert await bench.register(again, "app") is tunnel


async def test_C13_many_at_once_do_not_pass_the_number(bench: Bench) -> None:
    agents = [await bench.agent("ann") for _ in range(8)]
    for agent in agents:
        limited(agent, max_tunnels=3)
    got: list[object] = []
    refusals: list[str] = []

    async def try_it(agent: PlayedAgent, number: int) -> None:
        try:
            got.append(await bench.register(agent, local=f"x:{number}"))
        except Unavailable as error:
            refusals.append(error.code)

    async with trio.open_nursery() as nursery:
        for number, agent in enumerate(agents):
            nursery.start_soon(try_it, agent, number)
    assert len(got) == 3
    assert refusals == ["limit"] * 5
    assert len(list(bench.registry.live())) == 3


async def test_a_revoked_token_registers_nothing_more_and_opens_no_data_socket(bench: Bench) -> None:
    agent = await bench.agent("ann")
    await bench.register(agent, "app")
    assert bench.sessions.find(agent.session.id) is agent.session
    bench.accounts.revoke("id-ann")
    assert bench.sessions.find(agent.session.id) is None
    await refused(bench, agent, "scope", subdomain="more")
    assert list(bench.registry.all()) == []


async def test_a_token_that_ends_during_a_registration(bench: Bench) -> None:
    holder = await bench.agent("ann")
    await bench.register(holder, "app")
    holder.on_ask = trio.Event()
    holder.alive = False
    agent = await bench.agent("ann")
    async with trio.open_nursery() as nursery:

        async def claim() -> None:
            await refused(bench, agent, "scope", subdomain="app")

        nursery.start_soon(claim)
        await trio.testing.wait_all_tasks_blocked()
        bench.accounts.dead.add("id-ann")
        holder.on_ask.set()
