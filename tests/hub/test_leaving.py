"""A clean end frees every address of a session, also while the store hangs."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import trio

from rustunnel_py.hub.registry import Places, Registry
from rustunnel_py.hub.sessions import Introduction, Session, Sessions, Wish
from rustunnel_py.model.access import Secret
from rustunnel_py.model.tunnel import Peer, Protocol
from tests.support.agents_house import FakeAccounts, FakeLog, FakeNames, NoPorts

if TYPE_CHECKING:
    from rustunnel_py.hub.accounts import Accounts
    from rustunnel_py.hub.sessions import Agent
    from rustunnel_py.store.names import Names
    from rustunnel_py.store.tunnel_log import TunnelLog


class StuckNames(FakeNames):
    """A store whose disk is held by another program: what is to be freed there never is."""

    async def release(self, owner: str, address: str) -> None:
        await trio.sleep_forever()


class StillAgent:
    """An agent whose control socket has ended."""

    def __init__(self) -> None:
        self.link = object()

    def forget_tunnel(self, tunnel_id: str) -> None: ...

    def tell_visit(self, tunnel_id: str) -> None:
        return None


async def session_with(sessions: Sessions, token: str, *labels: str) -> Session:
    session = await sessions.authenticate(Introduction(Secret(token), "0.7.8", Peer("192.0.2.7", 5555)))
    session.agent = cast("Agent", StillAgent())
    for label in labels:
        await sessions.register(session, Wish(Protocol.HTTP, subdomain=label))
    return session


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_C14_a_store_that_hangs_keeps_no_address_of_a_session_that_ended_cleanly(
    autojump_clock: trio.testing.MockClock, count: int
) -> None:
    registry = Registry(NoPorts(), (20000, 20009), trio.current_time)
    registry.places = Places("t.example", 80, 443)
    sessions = Sessions(
        registry,
        cast("Accounts", FakeAccounts()),
        cast("Names", StuckNames()),
        cast("TunnelLog", FakeLog()),
        reserved=[],
        max_tunnels=10,
        hold_seconds=60,
        clock=trio.current_time,
    )
    labels = [f"app-{number}" for number in range(count)]
    session = await session_with(sessions, "ann", *labels)
    with trio.move_on_after(5):  # as the agent's shell does
        await sessions.leave(session, clean=True)
    assert [label for label in labels if registry.find_host(f"{label}.t.example")] == []
    assert session.tunnels == {}
    await session_with(sessions, "bob", *labels)
