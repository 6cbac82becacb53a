"""The rs-tunnel world without sockets: real store, hub and app on a virtual clock; and a caller that sends raw texts.

    async with leased_house(tmp_path) as house:
        made = await house.created("demo")

The wall clock is the virtual one from NOON on. Time passes by `house.pass_time(seconds)` only.
"""

from __future__ import annotations

import json as jsonlib
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import trio
from quart.testing.utils import sentinel
from trio.testing import MockClock
from werkzeug.datastructures import Headers

from rustunnel_py.api.app import build_app
from rustunnel_py.api.rs_tunnel import RsTunnel
from rustunnel_py.hub.accounts import Accounts
from rustunnel_py.hub.leases import Leases
from rustunnel_py.hub.logins import Logins
from rustunnel_py.hub.registry import Places, Registry
from rustunnel_py.hub.sessions import Introduction, Session, Sessions
from rustunnel_py.hub.telemetry import Telemetry
from rustunnel_py.model.access import Caller, Role, Secret
from rustunnel_py.model.tunnel import HttpHost, Peer, Protocol
from rustunnel_py.store.store import open_store
from rustunnel_py.store.telemetry import TelemetryBatch
from tests.support.api import ADMIN_TOKEN, PEER, NoPorts
from tests.support.rs_tunnel_contract import check_created

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from quart import Quart

    from rustunnel_py.errors import LinkLost
    from rustunnel_py.hub.audit import Event
    from rustunnel_py.hub.link import Link
    from rustunnel_py.hub.registry import TellVisit, Tunnel
    from rustunnel_py.store.store import Store

NOON = datetime(2026, 3, 5, 12, 0, 0, 250_000, tzinfo=UTC)
PIN = "sha256:" + "ab" * 32
DOMAIN = "t.example.com"


@dataclass(slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json; charset=utf-8", self.headers
        return jsonlib.loads(self.text)

    @property
    def code(self) -> str:
        """Of an error, whose shape is looked at."""
        body = self.json
        assert list(body) in (["code", "message"], ["code", "message", "details"]), body
        assert isinstance(body["message"], str)
        assert body["message"]
        return str(body["code"])


class PlayedAgent:
    """An agent of which only the end is looked at."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.ended: list[LinkLost] = []

    async def answers(self, within: float) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    def end(self, why: LinkLost) -> None:
        self.ended.append(why)

    async def say_goodbye(self) -> None:
        await trio.lowlevel.checkpoint()

    def forget_tunnel(self, tunnel_id: str) -> None: ...

    def tell_visit(self, tunnel_id: str) -> TellVisit | None:
        return None


@dataclass(slots=True)
class LeasedHouse:
    store: Store
    registry: Registry
    sessions: Sessions
    accounts: Accounts
    leases: Leases
    logins: Logins
    telemetry: Telemetry
    events: list[Event]  # what was noted for the audit
    app: Quart
    clock: MockClock
    began: float

    def now(self) -> datetime:
        return NOON + timedelta(seconds=trio.current_time() - self.began)

    async def pass_time(self, seconds: float) -> None:
        """Let every task that is due do its work, and the store too."""
        await self.settle()
        self.clock.jump(seconds)
        await self.settle()

    async def settle(self) -> None:
        """Until nothing is under way: a chore takes up to three transactions one after another."""
        for _ in range(4):
            await trio.testing.wait_all_tasks_blocked()
            await self.store.leases.update([])  # behind whatever is queued in either file
            await self.store.telemetry.write(TelemetryBatch())

    async def call(
        self,
        method: str,
        path: str,
        token: str | None = ADMIN_TOKEN,
        *,
        json: object = None,
        text: str | bytes | None = None,
        headers: dict[str, str] | None = None,
        client: str = "192.0.2.1",
    ) -> Answer:
        sent = {"Host": "localhost:4041"}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if json is not None or text is not None:
            sent["Content-Type"] = "application/json"
        sent |= headers or {}
        data = text if json is None else jsonlib.dumps(json)
        response = await self.app.test_client().open(
            path,
            method=method,
            headers=Headers(sent),
            data=data,
            json=sentinel,
            scope_base={"client": (client, 40000)},
        )
        body = await response.get_data(as_text=True)
        return Answer(response.status_code, {name.lower(): value for name, value in response.headers.items()}, body)

    async def created(self, slug: str | None = None, token: str = ADMIN_TOKEN, port: int = 41234) -> Any:
        """The answer to a creation that has to succeed."""
        body: dict[str, object] = {"port": port} | ({} if slug is None else {"requestedSlug": slug})
        answer = await self.call("POST", "/v1/tunnels", token, json=body)
        assert answer.status == 200, answer.text
        check_created(answer.json)
        return answer.json

    async def token(self, label: str = "someone", role: Role = Role.AGENT, **more: Any) -> tuple[str, Caller]:
        token, secret = await self.accounts.create_token(label, role=role, **more)
        caller = self.accounts.caller_of(token.id)
        assert caller is not None
        return secret.reveal(), caller

    def native(self, label: str, caller: Caller, local_addr: str = "127.0.0.1:3000") -> Tunnel:
        """A tunnel that an agent of the caller's registered."""
        session = Session(caller, Introduction(Secret(""), "0.7.0", PEER))
        session.heard_at = self.now()
        tunnel = self.registry.create(HttpHost(f"{label}.{DOMAIN}"), caller.owner, Protocol.HTTP)
        tunnel.local_addr = local_addr
        agent = PlayedAgent(object())  # type: ignore[arg-type]
        session.agent = agent
        self.registry.serve(tunnel, session, agent.link, PEER)
        tunnel.registered_at = self.now()
        session.tunnels[tunnel.id] = tunnel
        return tunnel

    async def attach(self, secret: str) -> tuple[Session, PlayedAgent]:
        """An agent that shows this secret; it has registered nothing yet."""
        session = await self.sessions.authenticate(Introduction(Secret(secret), "0.1", Peer("192.0.2.7", 5000)))
        agent = PlayedAgent(object())  # type: ignore[arg-type]
        session.agent = agent
        return session, agent


@asynccontextmanager
async def leased_house(
    folder: Path,
    *,
    max_active: int = 5,
    reserved: tuple[str, ...] = (),
    began: float | None = None,
    origin: str | None = None,
) -> AsyncIterator[LeasedHouse]:
    """`began`: the virtual time of NOON, for a second server in the first one's place."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    at = trio.current_time() if began is None else began

    def now() -> datetime:
        return NOON + timedelta(seconds=trio.current_time() - at)

    events: list[Event] = []
    async with open_store(folder / "main.db", folder / "captured.db", now=now) as store:
        registry = Registry(NoPorts(), (20000, 20099), trio.current_time)
        registry.places = Places(DOMAIN, 8080, 443)
        accounts = Accounts(store, Secret(ADMIN_TOKEN), True, now=now, note=events.append)
        sessions = Sessions(
            registry,
            accounts,
            store.names,
            store.tunnel_log,
            reserved=reserved,
            max_tunnels=50,
            hold_seconds=60,
            clock=trio.current_time,
            note=events.append,
        )
        leases = Leases(
            store.leases,
            registry,
            sessions,
            accounts,
            store.names,
            store.tunnel_log,
            reserved=reserved,
            max_active=max_active,
            now=now,
            note=events.append,
        )
        logins = Logins(store.logins, accounts, now=now, note=events.append)
        telemetry = Telemetry(store.telemetry, registry, region="eu-1", now=now)
        leases.on_ended(telemetry.forget)
        sessions.on_attached(telemetry.watch)
        app = build_app(
            registry=registry,
            sessions=sessions,
            accounts=accounts,
            tunnel_log=store.tunnel_log,
            domain=DOMAIN,
            dashboard_origin=origin,
            rs_tunnel_parts=RsTunnel(leases, logins, telemetry, lambda: (f"{DOMAIN}:4040", PIN), events.append),
        )
        await leases.load()
        await logins.load()
        house = LeasedHouse(store, registry, sessions, accounts, leases, logins, telemetry, events, app, clock, at)
        async with trio.open_nursery() as chores:
            chores.start_soon(leases.run)
            chores.start_soon(logins.run)
            chores.start_soon(telemetry.run)
            await house.settle()
            yield house
            chores.cancel_scope.cancel()
