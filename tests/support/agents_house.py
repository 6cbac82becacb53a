"""The agents' half of a server in the test's process: real hub, pump, door and TCP edge; the store is in memory.

async with agents_house() as house:
    async with stock_agent(house.port, "token", tls=house.client_context) as agent: ...
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import trio

from rustunnel_py.agents.door import Door
from rustunnel_py.edges.limits import ParkingLimits
from rustunnel_py.edges.tcp import TcpEdge
from rustunnel_py.errors import BadCredentials
from rustunnel_py.hub.ports import PortTaken
from rustunnel_py.hub.registry import Places, Registry
from rustunnel_py.hub.sessions import Sessions
from rustunnel_py.model.access import Caller, Role, Secret
from rustunnel_py.model.tunnel import Peer, TcpPort
from rustunnel_py.model.visit import Visit, VisitKind
from rustunnel_py.transport.front import Front
from rustunnel_py.transport.listen import bind
from rustunnel_py.transport.pump import Pump, open_pump
from tests.support.link_bench import GET, Turn, head_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable

    from rustunnel_py.hub.accounts import Accounts
    from rustunnel_py.hub.registry import Tunnel
    from rustunnel_py.model.visit import LocalTarget
    from rustunnel_py.store.names import NameKey, Names, Remembered
    from rustunnel_py.store.tunnel_log import LogEntry, TunnelLog

WAIT_SECONDS = 20.0  # a hang shows as a failure


class FakeAccounts:
    """Tokens by name: "admin", "wrong", "anonymous-…"; any other is an API token of the user that it names."""

    def __init__(self) -> None:
        self.ended: list[Callable[[str], None]] = []
        self.registered: list[Caller] = []
        self.dead: set[str] = set()

    async def authenticate_agent(self, token: Secret, peer: Peer) -> Caller:
        await trio.lowlevel.checkpoint()
        name = token.reveal()
        if name.startswith("wrong") or not name:
            raise BadCredentials("invalid token")
        if name == "admin":
            return Caller("root", Role.ADMIN)
        user, _, scope = name.partition("/")
        return Caller(
            user,
            Role.AGENT,
            token_id=f"id-{user}",
            token_label=user,
            scope=scope or None,
            anonymous=user.startswith("anonymous"),
        )

    def on_ended(self, callback: Callable[[str], None]) -> None:
        self.ended.append(callback)

    def tunnel_registered(self, caller: Caller) -> None:
        self.registered.append(caller)

    def is_live(self, caller: Caller) -> bool:
        return caller.token_id not in self.dead

    def revoke(self, token_id: str) -> None:
        self.dead.add(token_id)
        for callback in self.ended:
            callback(token_id)


class FakeNames:
    """Remembered names, in memory."""

    def __init__(self) -> None:
        self.known: dict[NameKey, list[Remembered]] = {}
        self.released: list[tuple[str, str]] = []

    async def remembered(self, key: NameKey) -> list[Remembered]:
        await trio.lowlevel.checkpoint()
        return list(self.known.get(key, []))

    async def remember(self, key: NameKey, memory: Remembered) -> None:
        await trio.lowlevel.checkpoint()
        known = [one for one in self.known.get(key, []) if one.address != memory.address]
        self.known[key] = [memory, *known]

    async def release(self, owner: str, address: str) -> None:
        await trio.lowlevel.checkpoint()
        self.released.append((owner, address))
        for key, known in self.known.items():
            if key.owner == owner:
                self.known[key] = [replace(one, released=True) if one.address == address else one for one in known]


@dataclass
class FakeLog:
    """Registrations as they were told; `closed` are entry ids."""

    entries: list[LogEntry] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def opened(self, entry: LogEntry) -> None:
        self.entries.append(entry)

    def closed(self, entry_id: str, at: object) -> None:
        self.ended.append(entry_id)


class NoPorts:
    """Ports that open by themselves; `taken` are those of another program."""

    def __init__(self, taken: set[int] | None = None) -> None:
        self.taken = taken or set()
        self.open_ports: set[int] = set()

    def open(self, tunnel: Tunnel, port: int) -> None:
        if port in self.taken:
            raise PortTaken(str(port))
        self.open_ports.add(port)

    def close(self, port: int) -> None:
        self.open_ports.remove(port)


@dataclass
class AgentsHouse:
    """What a test asks."""

    pump: Pump
    registry: Registry
    sessions: Sessions
    accounts: FakeAccounts
    names: FakeNames
    log: FakeLog
    tcp: TcpEdge
    door: Door
    port: int
    client_context: ssl.SSLContext | None
    visits: int = 0

    def tunnel(self, label: str) -> Tunnel:
        tunnel = self.registry.find_host(f"{label}.test")
        assert tunnel is not None
        return tunnel

    def tcp_tunnel(self, port: int) -> Tunnel:
        tunnel = self.registry.find(TcpPort(port))
        assert tunnel is not None
        return tunnel

    def request(
        self, label: str, raw: bytes = GET, *, finish: bool = True, target: LocalTarget | None = None
    ) -> WaitingTurn:
        """One exchange as an edge begins it."""
        tunnel = self.tunnel(label)
        self.visits += 1
        visit = Visit(
            id=f"{self.visits:032x}",
            tunnel_id=tunnel.id,
            kind=VisitKind.HTTP,
            visitor=Peer("192.0.2.1", 4444),
            edge=Peer("192.0.2.2", 80),
            target=target or tunnel.target,
        )
        link = tunnel.links.pick(visit)
        assert link is not None
        turn = WaitingTurn()

        def begin() -> None:
            turn.exchange = link.exchange(visit, head_of(raw), turn)
            if finish:
                turn.exchange.finish()

        self.pump.call(turn, begin)
        return turn

    async def until(self, condition: Callable[[], object]) -> None:
        """Spin until it holds; fails, does not hang."""
        with trio.fail_after(WAIT_SECONDS):
            while not condition():
                await trio.lowlevel.checkpoint()


@dataclass(eq=False)
class WaitingTurn(Turn):
    """A Turn that a task can wait for."""

    done: trio.Event = field(default_factory=trio.Event)

    def _note(self, event: str) -> None:
        super()._note(event)
        if event in ("end", "failed", "upgraded"):
            self.done.set()

    def crashed(self, error: Exception) -> None:
        raise error

    async def over(self) -> WaitingTurn:
        with trio.fail_after(WAIT_SECONDS):
            await self.done.wait()
        return self


@asynccontextmanager
async def agents_house(
    *,
    server_context: ssl.SSLContext | None = None,
    client_context: ssl.SSLContext | None = None,
    max_tunnels: int = 10,
    hold_seconds: float = 60.0,
    tcp_range: tuple[int, int] = (20000, 20099),
    wait_seconds: float = 10.0,
    first_byte_seconds: float = 300.0,
    pump_kind: Any = "auto",
) -> AsyncIterator[AgentsHouse]:
    """A house that stops in the server's order when the context ends."""
    async with open_pump(pump_kind) as pump, trio.open_nursery() as fronts:
        accounts, names, log = FakeAccounts(), FakeNames(), FakeLog()
        tcp = TcpEdge(pump, "127.0.0.1", parking=ParkingLimits(wait_seconds=wait_seconds))
        registry = Registry(tcp, tcp_range, trio.current_time)
        registry.places = Places("test", 80, 443)
        sessions = Sessions(
            registry,
            cast("Accounts", accounts),
            cast("Names", names),
            cast("TunnelLog", log),
            reserved=["admin", "www"],
            max_tunnels=max_tunnels,
            hold_seconds=hold_seconds,
            clock=trio.current_time,
        )
        off = pump.on_sweep(registry.sweep)
        door = Door(pump, sessions, registry, fronts, region="lab", https=True, first_byte_seconds=first_byte_seconds)
        front = Front(pump, bind("127.0.0.1", 0, key="test"), door.routes, context=server_context, name="control")
        addresses = await fronts.start(front.run)
        async with trio.open_nursery() as visits:
            async with trio.open_nursery() as listeners:
                await listeners.start(tcp.run, visits)
                yield AgentsHouse(
                    pump, registry, sessions, accounts, names, log, tcp, door, addresses[0].port, client_context
                )
                listeners.cancel_scope.cancel()
            visits.cancel_scope.cancel()
        await sessions.say_goodbye()
        fronts.cancel_scope.cancel()
        off()
    assert pump.crashes == 0
