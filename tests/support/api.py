"""A real hub over a real store for tests of the API: tunnels without agents."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import trio

from rustunnel_py.api.app import build_app
from rustunnel_py.hub.accounts import Accounts
from rustunnel_py.hub.registry import Places, Registry, Tunnel
from rustunnel_py.hub.sessions import Introduction, Session, Sessions
from rustunnel_py.model.access import Caller, Role, Secret
from rustunnel_py.model.tunnel import Address, HttpHost, Peer, Protocol, TcpPort
from rustunnel_py.store.database import Store, open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime
    from pathlib import Path

    from quart import Quart

    from rustunnel_py.hub.link import Link

ADMIN_TOKEN = "admin-token-of-more-than-22-characters"
PEER = Peer("192.0.2.10", 54321)


class NoPorts:
    """Every port can be had; nothing listens."""

    def open(self, tunnel: Tunnel, port: int) -> None:
        pass

    def close(self, port: int) -> None:
        pass


@dataclass(slots=True)
class ApiBench:
    store: Store
    registry: Registry
    sessions: Sessions
    accounts: Accounts
    app: Quart
    stopping: trio.Event

    def tunnel(self, address: Address, caller: Caller, protocol: Protocol) -> Tunnel:
        """A tunnel that is served by an agent of the caller's."""
        session = Session(caller, Introduction(Secret(""), "0.7.0", PEER))
        tunnel = self.registry.create(address, caller.owner, protocol)
        self.registry.serve(tunnel, session, cast("Link", object()), PEER)
        session.tunnels[tunnel.id] = tunnel
        return tunnel

    def http(self, label: str, caller: Caller, protocol: Protocol = Protocol.HTTP) -> Tunnel:
        return self.tunnel(HttpHost(f"{label}.t.example.com"), caller, protocol)

    def tcp(self, port: int, caller: Caller) -> Tunnel:
        return self.tunnel(TcpPort(port), caller, Protocol.TCP)

    async def token(
        self, label: str, role: Role = Role.AGENT, expires_at: datetime | None = None
    ) -> tuple[str, Caller]:
        """A new API token: its raw text and who it stands for."""
        token, secret = await self.accounts.create_token(label, role=role, expires_at=expires_at)
        return secret.reveal(), Caller(token.owner, role, token.id, label)


@asynccontextmanager
async def api_bench(folder: Path) -> AsyncIterator[ApiBench]:
    async with open_store(folder / "rustunnel.db", folder / "captured.db") as store:
        registry = Registry(NoPorts(), (20000, 20099), trio.current_time)
        registry.places = Places("t.example.com", 8080, 443)
        accounts = Accounts(store, Secret(ADMIN_TOKEN), True)
        sessions = Sessions(
            registry,
            accounts,
            store.names,
            store.tunnel_log,
            reserved=(),
            max_tunnels=50,
            hold_seconds=60,
            clock=trio.current_time,
        )
        stopping = trio.Event()
        app = build_app(
            registry=registry,
            sessions=sessions,
            accounts=accounts,
            tunnel_log=store.tunnel_log,
            domain="t.example.com",
            dashboard_origin="https://dash.example.com:9000",
            is_stopping=stopping.is_set,
        )
        yield ApiBench(store, registry, sessions, accounts, app, stopping)
