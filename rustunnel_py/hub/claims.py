"""Which address a registration gets.

What an agent asks for is either a name (`subdomain`, `port`) or "any". A wished address is *claimed*: free, held
for the same owner, or taken over from a holder that is the same agent, that does not answer, or that `take_over`
pushes aside. "Any" is answered from memory first, so that a random address stays the same over
reconnects and restarts; a memory never takes an address away from somebody alive.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from rustunnel_py.errors import StoreError, Unavailable
from rustunnel_py.model.names import generated_label, is_reserved_for, judge_label
from rustunnel_py.model.scope import scope_of
from rustunnel_py.model.tunnel import Address, HttpHost, Protocol, TcpPort
from rustunnel_py.store.names import NameKey, Remembered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rustunnel_py.hub.registry import Registry, Tunnel
    from rustunnel_py.hub.sessions import Session, Wish
    from rustunnel_py.model.access import Caller
    from rustunnel_py.model.scope import Scope
    from rustunnel_py.store.names import Names

ANSWER_SECONDS = 2.0  # how long the holder of a contested name may take to answer a ping (design: names)
TRIES_MAX = 64  # random names within a scope; one like `pr-?` may have few that are free

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Claims:
    """Finds, for one registration, the tunnel that it may serve; who serves it before gives way by then.

    `take_away(tunnel, session)` ends the service of the tunnel's present session, for that one. `close(tunnel)` ends
    the tunnel. Everything raises Unavailable, whose text goes to the agent.
    """

    def __init__(
        self,
        registry: Registry,
        names: Names,
        *,
        reserved: Iterable[str],
        hold_seconds: float,
        clock: Callable[[], float],
        take_away: Callable[[Tunnel, Session], None],
        close: Callable[[Tunnel], None],
    ) -> None:
        self._registry = registry
        self._names = names
        self._reserved = frozenset(label.lower() for label in reserved)
        self._hold_seconds = hold_seconds
        self._clock = clock
        self._take_away = take_away
        self._close = close
        self._started = clock()

    # what is wished for

    def wished(self, caller: Caller, wish: Wish) -> Address | None:
        """The address by name, judged; None: any will do."""
        match wish.protocol:
            case Protocol.HTTP | Protocol.HTTPS:
                return None if wish.subdomain is None else self._judged_host(caller, wish.subdomain)
            case Protocol.TCP:
                return None if wish.port is None else self._judged_port(caller, wish.port)
            case Protocol.UDP | Protocol.P2P:
                raise Unavailable("unsupported", f"{wish.protocol.value} tunnels are not served by this server yet")

    def _judged_host(self, caller: Caller, subdomain: str) -> HttpHost:
        label = judge_label(subdomain)
        if not caller.is_admin and is_reserved_for(label, self._reserved, caller.scope):
            raise Unavailable("reserved", f"the name {label} is reserved on this server")
        address = self._registry.host_of(label)
        if not may_have(caller, address):
            raise Unavailable("scope", f"this token may not have the name {label}; its scope is {caller.scope}")
        return address

    def _judged_port(self, caller: Caller, port: int) -> TcpPort:
        if not self._registry.in_tcp_range(port):
            raise Unavailable("malformed", f"port {port} is outside this server's limits.tcp_port_range")
        address = TcpPort(port)
        if not may_have(caller, address):
            raise Unavailable("scope", f"this token may not have port {port}; its scope is {caller.scope}")
        return address

    # by name

    async def claim(self, session: Session, wish: Wish, address: Address) -> Tunnel:
        """The tunnel at that address: a new one, one that is held for its owner, or one that is taken over."""
        caller = session.caller
        while (tunnel := self._registry.find(address)) is not None:
            if tunnel.record is not None:
                raise Unavailable("taken", f"{address} is in use")
            if tunnel.owner != caller.owner:
                if not (wish.take_over and caller.is_admin):
                    raise Unavailable("taken", f"{address} is in use")
                self._close(tunnel)  # another owner's tunnel keeps nothing: id and captures stay with the owner
                continue
            holder = tunnel.session
            if holder is None:
                return tunnel  # held for this owner
            if holder is session:
                raise Unavailable("taken", f"{address} is in use by this session")
            if not (wish.take_over or self._is_same_agent(holder, session)) and await self._answers(holder):
                raise Unavailable("taken", f"{address} is in use from {holder.peer}; --take-over takes it over")
            if tunnel.session is holder:
                self._take_away(tunnel, session)
                return tunnel
        return self._registry.create(address, caller.owner, wish.protocol)

    async def claim_record(self, session: Session, wish: Wish, tunnel: Tunnel) -> Tunnel:
        """The record's tunnel, by its own name; its present agent gives way when it is the same one, or silent."""
        host = tunnel.address
        label = host.host.partition(".")[0] if isinstance(host, HttpHost) else ""
        if wish.protocol not in (Protocol.HTTP, Protocol.HTTPS) or (wish.subdomain or "").lower() != label:
            raise Unavailable("taken", "this secret is for another tunnel")
        while self._registry.owns(tunnel):
            holder = tunnel.session
            if holder is None:
                return tunnel
            if holder is session:
                raise Unavailable("taken", f"{host} is in use by this session")
            if not self._is_same_agent(holder, session) and await self._answers(holder):
                raise Unavailable("taken", f"{host} is in use from {holder.peer}")
            if tunnel.session is holder:
                self._take_away(tunnel, session)
        raise Unavailable("taken", f"{host} has ended")

    @staticmethod
    def _is_same_agent(holder: Session, session: Session) -> bool:
        return session.instance is not None and holder.instance == session.instance

    @staticmethod
    async def _answers(holder: Session) -> bool:
        if holder.agent is None or holder.registering:
            return True  # may not be pinged now; counts as alive
        return await holder.agent.answers(ANSWER_SECONDS)

    # any

    async def any(self, session: Session, wish: Wish) -> Tunnel:
        """The tunnel that this agent had before, else one at a random address within its token's scope."""
        return await self._remembered(session, wish) or self._new(session.caller, wish)

    async def _remembered(self, session: Session, wish: Wish) -> Tunnel | None:
        if session.caller.anonymous:
            return None
        key = _name_key(session, wish)
        try:
            memories = await self._names.remembered(key)
        except StoreError:
            return None  # a broken disk costs the memory, not the tunnel
        memories.sort(key=lambda memory: memory.instance != session.instance)
        for memory in memories:
            tunnel = await self._recall(session, wish, memory)
            if tunnel is not None:
                return tunnel
        return None

    async def _recall(self, session: Session, wish: Wish, memory: Remembered) -> Tunnel | None:
        """The remembered address, if nobody else has the better right to it."""
        foreign = memory.instance is not None and session.instance is not None and memory.instance != session.instance
        address = self._address_of(wish.protocol, memory.address)
        if address is None or not may_have(session.caller, address):
            return None
        tunnel = self._registry.find(address)
        if tunnel is None:
            waiting = foreign and not memory.released and self._clock() < self._started + self._hold_seconds
            if waiting:
                return None  # after a restart its last holder comes first, for as long as a hold
            try:
                return self._registry.create(address, session.caller.owner, wish.protocol, tunnel_id=memory.tunnel_id)
            except Unavailable:
                return None
        if tunnel.owner != session.caller.owner or tunnel.session is session or tunnel.record is not None:
            return None
        holder = tunnel.session
        if holder is None:
            return None if foreign else tunnel
        if not self._is_same_agent(holder, session):
            if (holder.instance is not None and session.instance is not None) or await self._answers(holder):
                return None
            if tunnel.session is not holder:
                return None
        self._take_away(tunnel, session)
        return tunnel

    def _address_of(self, protocol: Protocol, text: str) -> Address | None:
        if protocol is not Protocol.TCP:
            return self._registry.host_of(text)
        return TcpPort(int(text)) if self._registry.in_tcp_range(int(text)) else None

    def _new(self, caller: Caller, wish: Wish) -> Tunnel:
        """A random address, within the token's scope."""
        scope = scope_of(caller.scope)
        if wish.protocol is Protocol.TCP:
            if scope is None:
                return self._registry.create_tcp(caller.owner)
            if not scope.ports:
                raise Unavailable("scope", f"this token may not have a port; its scope is {caller.scope}")
            return self._registry.create_tcp(caller.owner, allowed=scope.allows_port)
        host = self._registry.free_host() if scope is None else self._free_host(caller, scope)
        return self._registry.create(host, caller.owner, wish.protocol)

    def _free_host(self, caller: Caller, scope: Scope) -> HttpHost:
        """Whichever literal name of the scope is free, else a random one of its form."""
        labels: list[str | None] = [*scope.literal_labels, *(self._random_label(scope) for _ in range(TRIES_MAX))]
        for label in labels:
            try:
                host = None if label is None else self._judged_host(caller, label)
            except Unavailable:
                continue
            if host is not None and self._registry.find(host) is None:
                return host
        raise Unavailable("scope", f"no name within this token's scope is free; its scope is {caller.scope}")

    @staticmethod
    def _random_label(scope: Scope) -> str | None:
        return scope.label_from(generated_label(secrets.token_bytes(16)))

    # memory

    async def remember(self, session: Session, wish: Wish, tunnel: Tunnel) -> None:
        """For the next `any` of this agent; a broken disk costs the memory, not the tunnel."""
        if session.caller.anonymous:
            return
        memory = Remembered(
            address=_memory_text(tunnel.address),
            tunnel_id=tunnel.id,
            instance=session.instance,
            released=False,
            used_at=datetime.now(UTC),
        )
        try:
            await self._names.remember(_name_key(session, wish), memory)
        except StoreError:
            log.warning("a name could not be remembered", address=str(tunnel.address))

    async def let_go(self, tunnel: Tunnel) -> None:
        """Its owner has freed the address: whoever of the owner's agents comes first may be given it again."""
        try:
            await self._names.release(tunnel.owner, _memory_text(tunnel.address))
        except StoreError:
            log.warning("the end of a name could not be stored", address=str(tunnel.address))


def may_have(caller: Caller, address: Address) -> bool:
    """Whether the scope of the caller's token names the address."""
    scope = scope_of(caller.scope)
    if scope is None:
        return True
    if isinstance(address, HttpHost):
        return scope.allows_label(address.host.partition(".")[0])
    return isinstance(address, TcpPort) and scope.allows_port(address.port)


def _name_key(session: Session, wish: Wish) -> NameKey:
    return NameKey(
        owner=session.caller.owner,
        machine=session.machine or "",
        protocol="tcp" if wish.protocol is Protocol.TCP else "http",
        local_addr=wish.local_addr,
    )


def _memory_text(address: Address) -> str:
    """A label without the server's domain (which may change), or the port."""
    return address.host.partition(".")[0] if isinstance(address, HttpHost) else str(address)
