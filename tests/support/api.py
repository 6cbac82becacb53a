"""A real hub over a real store for tests of the API: tunnels without agents."""

from __future__ import annotations

import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import trio

from rustunnel_py.api.app import build_app
from rustunnel_py.config import InspectConfig
from rustunnel_py.hub.accounts import Accounts
from rustunnel_py.hub.audit import Audit
from rustunnel_py.hub.inspector import Inspector
from rustunnel_py.hub.metrics import Metrics
from rustunnel_py.hub.registry import Places, Registry, Tunnel
from rustunnel_py.hub.sessions import Introduction, Session, Sessions
from rustunnel_py.model.access import Caller, Role, Secret
from rustunnel_py.model.tunnel import Address, HttpHost, Peer, Protocol, TcpPort
from rustunnel_py.model.visit import Visit, VisitKind
from rustunnel_py.store.captures import Captures
from rustunnel_py.store.store import Store, open_store
from rustunnel_py.wire.http1 import REPLY_LIMITS, REQUEST_LIMITS, judge_reply, judge_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime
    from pathlib import Path

    from quart import Quart

    from rustunnel_py.hub.link import Link
    from rustunnel_py.transport.pump import Pump

ADMIN_TOKEN = "admin-token-of-more-than-22-characters"
PEER = Peer("192.0.2.10", 54321)


class NoPorts:
    """Every port can be had; nothing listens."""

    def open(self, tunnel: Tunnel, port: int) -> None:
        pass

    def close(self, port: int) -> None:
        pass


class _Clock:
    """As much of a pump as recordings see."""

    @property
    def now(self) -> float:
        return trio.current_time()


@dataclass(slots=True)
class ApiBench:
    store: Store
    registry: Registry
    sessions: Sessions
    accounts: Accounts
    app: Quart
    stopping: trio.Event
    audit: Audit
    inspector: Inspector

    def capture(
        self,
        tunnel: Tunnel,
        request: bytes = b"",
        reply: bytes = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n",
        body: bytes = b"",
        answer: bytes = b"ok",
    ) -> str:
        """An exchange that passed through a tunnel; its id."""
        request = request or b"GET /a?b=1 HTTP/1.1\r\nHost: %b\r\n\r\n" % str(tunnel.address).encode()
        head = judge_request(request, REQUEST_LIMITS)
        visit = Visit(uuid.uuid4().hex, tunnel.id, VisitKind.HTTP, PEER, PEER, connection=self)
        visit.arrived = trio.current_time()
        tap = self.inspector.watch(tunnel, visit, head)
        tap.begun()
        if body:
            tap.sent(memoryview(body))
        tap.head(judge_reply(reply, head.method, REPLY_LIMITS))
        if answer:
            tap.data(memoryview(answer))
        tap.over(int(reply.split(b" ", 2)[1]), 12.4)
        return str(uuid.UUID(visit.id))

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
        self,
        label: str,
        role: Role = Role.AGENT,
        expires_at: datetime | None = None,
        reads: str | None = None,
    ) -> tuple[str, Caller]:
        """A new API token: its raw text and who it stands for."""
        token, secret = await self.accounts.create_token(label, role=role, expires_at=expires_at, reads=reads)
        return secret.reveal(), Caller(token.owner, role, token.id, label)


@asynccontextmanager
async def api_bench(folder: Path, inspect: InspectConfig | None = None) -> AsyncIterator[ApiBench]:
    folder.mkdir(exist_ok=True)
    async with open_store(folder / "rustunnel.db", folder / "captured.db") as store:
        registry = Registry(NoPorts(), (20000, 20099), trio.current_time)
        registry.places = Places("t.example.com", 8080, 443)
        audit = Audit(store.audit)
        inspector = Inspector(
            inspect or InspectConfig(),
            registry,
            cast("Pump", _Clock()),
            Captures(store.captured),
            owner_of=store.tunnel_log.owner_of,
        )
        await inspector.start()
        accounts = Accounts(store, Secret(ADMIN_TOKEN), True, note=audit.note)
        accounts.on_ended(inspector.end_views)
        sessions = Sessions(
            registry,
            accounts,
            store.names,
            store.tunnel_log,
            reserved=(),
            max_tunnels=50,
            hold_seconds=60,
            clock=trio.current_time,
            note=audit.note,
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
            audit=audit,
            metrics=Metrics(registry, sessions),
            inspector=inspector,
        )
        yield ApiBench(store, registry, sessions, accounts, app, stopping, audit, inspector)
