"""An agent's life: authenticate, register, leave; and which address a registration gets.

What an agent asks for is either a name (`subdomain`, `port`) or "any". A wished address is *claimed*: free, held
for the same owner, or taken over from a holder that is the same agent, that does not answer, or that `take_over`
pushes aside. "Any" is answered from memory first, so that a random address stays the same over
reconnects and restarts; a memory never takes an address away from somebody alive.
"""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias
from typing import Protocol as TypingProtocol

import structlog
import trio

from rustunnel_py.errors import LinkLost, NotFound, Reset, StoreError, Unavailable
from rustunnel_py.hub import audit
from rustunnel_py.hub.audit import unheard
from rustunnel_py.model.names import generated_label, is_reserved_for, judge_label
from rustunnel_py.model.scope import scope_of
from rustunnel_py.model.tunnel import Address, HttpHost, Peer, Protocol, TcpPort
from rustunnel_py.model.visit import LocalTarget
from rustunnel_py.store.names import NameKey, Remembered
from rustunnel_py.store.tunnel_log import LogEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rustunnel_py.hub.accounts import Accounts
    from rustunnel_py.hub.audit import Note
    from rustunnel_py.hub.link import Link
    from rustunnel_py.hub.registry import Registry, TellVisit, Tunnel
    from rustunnel_py.model.access import Caller, Secret
    from rustunnel_py.model.scope import Scope
    from rustunnel_py.store.names import Names
    from rustunnel_py.store.tunnel_log import TunnelLog

OpenRecord: TypeAlias = "Callable[[Secret], tuple[Caller, Tunnel] | None]"
WatchTunnel: TypeAlias = "Callable[[Tunnel], TellVisit]"

ANSWER_SECONDS = 2.0  # how long the holder of a contested name may take to answer a ping (design: names)
TRIES_MAX = 64  # random names within a scope; one like `pr-?` may have few that are free
GOODBYE_SECONDS = 2.0  # how long telling all agents of the shutdown may take

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Agent(TypingProtocol):
    """What sessions ask of the shell that holds an agent's sockets."""

    @property
    def link(self) -> Link: ...

    async def answers(self, within: float) -> bool:
        """Whether the agent answers a ping within so many seconds."""

    def end(self, why: LinkLost) -> None:
        """Drop both sockets; the shell then calls `Sessions.leave`."""

    async def say_goodbye(self) -> None:
        """The server stops: tell the agent in its own protocol, then drop it. Flushes first."""

    def tell_visit(self, tunnel_id: str) -> TellVisit | None:
        """Where to tell the agent of a tunnel's visits, for agents that want to know."""

    def forget_tunnel(self, tunnel_id: str) -> None:
        """The session serves it no more: what the link keeps for it may go."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """What an agent says of itself in `auth`. `machine` and `instance` come from our own agent only."""

    token: Secret
    client_version: str
    peer: Peer
    features: tuple[str, ...] = ()
    machine: str | None = None
    instance: str | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """One `register_tunnel`, in the words of the hub."""

    protocol: Protocol
    subdomain: str | None = None
    port: int | None = None
    local_addr: str = ""
    take_over: bool = False
    target: LocalTarget = field(default_factory=LocalTarget)
    grouped: bool = False  # it came with a group key


class Session:
    """One authenticated agent. `id` opens its data socket and is a secret; `public_id` is what others see."""

    def __init__(self, caller: Caller, introduction: Introduction, *, record_tunnel: Tunnel | None = None) -> None:
        self.id = str(uuid.uuid4())
        self.public_id = str(uuid.uuid4())
        self.data_secret = secrets.token_urlsafe(32)
        self.caller = caller
        self.peer = introduction.peer
        self.client_version = introduction.client_version
        self.features = introduction.features
        self.machine = introduction.machine
        self.instance = introduction.instance
        self.tunnels: dict[str, Tunnel] = {}
        self.log_ids: dict[str, str] = {}  # tunnel id -> its row in the tunnel log
        self.agent: Agent | None = None
        self.registering = False  # between a register_tunnel and its answer: nothing else may be sent (wire 3.2)
        self.ended = False
        self.record_tunnel = record_tunnel  # the only tunnel that it may serve: it came with a record's secret
        self.heard_at = datetime.now(UTC)  # its last control frame

    def __repr__(self) -> str:
        return f"<Session {self.public_id} of {self.peer}, {len(self.tunnels)} tunnels>"


class Sessions:
    """All sessions, and what they may register."""

    def __init__(
        self,
        registry: Registry,
        accounts: Accounts,
        names: Names,
        tunnel_log: TunnelLog,
        *,
        reserved: Iterable[str],
        max_tunnels: int,
        hold_seconds: float,
        clock: Callable[[], float],
        note: Note = unheard,
    ) -> None:
        self._registry = registry
        self._accounts = accounts
        self._names = names
        self._log = tunnel_log
        self._reserved = frozenset(label.lower() for label in reserved)
        self._max_tunnels = max_tunnels
        self._hold_seconds = hold_seconds
        self._clock = clock
        self._note = note
        self._started = clock()
        self._by_id: dict[str, Session] = {}
        self._openers: list[OpenRecord] = []
        self._watch: WatchTunnel | None = None
        accounts.on_ended(self._token_ended)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_id.values()))

    def on_record_secret(self, find: OpenRecord) -> None:
        """`find(secret)` is asked first about every agent's secret: who attaches with it, and to what."""
        self._openers.append(find)

    def on_attached(self, watch: WatchTunnel) -> None:
        """`watch(tunnel)` gives what else is to be told of a tunnel's visits while this session serves it."""
        self._watch = watch

    def find(self, session_id: str) -> Session | None:
        """The live session that a data socket names; not of a token that ended."""
        session = self._by_id.get(session_id)
        return session if session is not None and self._accounts.is_live(session.caller) else None

    async def authenticate(self, introduction: Introduction) -> Session:
        """A session for whoever the token stands for. Raises BadCredentials."""
        attaching = next((found for opener in self._openers if (found := opener(introduction.token))), None)
        if attaching is not None:
            caller, tunnel = attaching
            session = Session(caller, introduction, record_tunnel=tunnel)
        else:
            caller = await self._accounts.authenticate_agent(introduction.token, introduction.peer)
            session = Session(caller, introduction)
        self._by_id[session.id] = session
        log.info("agent connected", session=session.public_id, peer=str(session.peer), owner=caller.owner)
        self._note(
            audit.LoginAccepted(
                who=audit.who_is(caller),
                peer=str(session.peer),
                session=session.public_id,
                client=introduction.client_version,
            )
        )
        return session

    async def register(self, session: Session, wish: Wish) -> Tunnel:
        """Give the session the address that it wishes for. Raises Unavailable; the text goes to the agent."""
        session.registering = True
        try:
            return await self._register(session, wish)
        except Unavailable as refused:
            self._note(
                audit.RegistrationRefused(
                    who=audit.who_is(session.caller),
                    peer=str(session.peer),
                    code=refused.code,
                    reason=str(refused),
                    session=session.public_id,
                )
            )
            raise

    async def _register(self, session: Session, wish: Wish) -> Tunnel:
        if session.record_tunnel is not None:
            tunnel = await self._claim_record(session, wish, session.record_tunnel)
            self._attach(session, wish, tunnel)
            return tunnel
        if wish.grouped:
            raise Unavailable("unsupported", "groups are not served by this server yet; register without a group key")
        if self._max_tunnels and len(session.tunnels) >= self._max_tunnels:
            raise Unavailable(
                "limit", f"a session may have {self._max_tunnels} tunnels (limits.max_tunnels_per_session)"
            )
        self._check_token(session.caller, wish.protocol)
        wished: Address | None
        match wish.protocol:
            case Protocol.HTTP | Protocol.HTTPS:
                wished = None if wish.subdomain is None else self._judged_host(session.caller, wish.subdomain)
            case Protocol.TCP:
                wished = None if wish.port is None else self._judged_port(session.caller, wish.port)
            case Protocol.UDP | Protocol.P2P:
                raise Unavailable("unsupported", f"{wish.protocol.value} tunnels are not served by this server yet")
        if wished is not None:
            tunnel = await self._claim(session, wish, wished)
        else:
            tunnel = await self._remembered(session, wish) or self._new(session.caller, wish)
        self._attach(session, wish, tunnel)
        if wished is None:
            await self._remember(session, wish, tunnel)
        return tunnel

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

    def _check_token(self, caller: Caller, protocol: Protocol) -> None:
        if not self._accounts.is_live(caller):
            raise Unavailable("scope", "the token was revoked or has expired")
        word = "tcp" if protocol is Protocol.TCP else "http"
        if caller.protocols is not None and word not in caller.protocols:
            raise Unavailable("scope", f"this token may not open {word} tunnels")

    def _check_count(self, caller: Caller) -> None:
        """Over all sessions of the token; counted where the tunnel is given, so that no race passes it."""
        most = caller.max_tunnels
        if most is None:
            return
        count = sum(len(one.tunnels) for one in self._by_id.values() if one.caller.token_id == caller.token_id)
        if count >= most:
            raise Unavailable("limit", f"this token may have {most} tunnels at a time")

    async def _claim_record(self, session: Session, wish: Wish, tunnel: Tunnel) -> Tunnel:
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
                self._detach(holder, tunnel, session)
        raise Unavailable("taken", f"{host} has ended")

    async def _claim(self, session: Session, wish: Wish, address: Address) -> Tunnel:
        caller = session.caller
        while (tunnel := self._registry.find(address)) is not None:
            if tunnel.record is not None:
                raise Unavailable("taken", f"{address} is in use")
            if tunnel.owner != caller.owner:
                if not (wish.take_over and caller.is_admin):
                    raise Unavailable("taken", f"{address} is in use")
                self.close_tunnel(tunnel)  # another owner's tunnel keeps nothing: id and captures stay with the owner
                continue
            holder = tunnel.session
            if holder is None:
                return tunnel  # held for this owner
            if holder is session:
                raise Unavailable("taken", f"{address} is in use by this session")
            if not (wish.take_over or self._is_same_agent(holder, session)) and await self._answers(holder):
                raise Unavailable("taken", f"{address} is in use from {holder.peer}; --take-over takes it over")
            if tunnel.session is holder:
                self._detach(holder, tunnel, session)
                return tunnel
        return self._registry.create(address, caller.owner, wish.protocol)

    @staticmethod
    def _is_same_agent(holder: Session, session: Session) -> bool:
        return session.instance is not None and holder.instance == session.instance

    @staticmethod
    async def _answers(holder: Session) -> bool:
        if holder.agent is None or holder.registering:
            return True  # may not be pinged now; counts as alive
        return await holder.agent.answers(ANSWER_SECONDS)

    def _detach(self, holder: Session, tunnel: Tunnel, session: Session) -> None:
        """Take a tunnel away from a live session; without tunnels left the session ends."""
        self._log_closed(holder, tunnel)
        holder.tunnels.pop(tunnel.id, None)
        if holder.agent is not None:
            tunnel.links.remove(holder.agent.link, self._clock())
            holder.agent.forget_tunnel(tunnel.id)
            if not holder.tunnels:
                holder.agent.end(Reset("its tunnel was taken over"))
        tunnel.session = None
        tunnel.tell = None
        log.info("tunnel taken over", tunnel=tunnel.id, address=str(tunnel.address), from_session=holder.public_id)
        self._note(
            audit.TunnelTakenOver(
                who=audit.who_is(session.caller),
                peer=str(session.peer),
                tunnel=tunnel.id,
                address=str(tunnel.address),
                from_session=holder.public_id,
            )
        )

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
        self._detach(holder, tunnel, session)
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

    def _attach(self, session: Session, wish: Wish, tunnel: Tunnel) -> None:
        agent = session.agent
        try:
            if session.ended or agent is None:
                raise Unavailable("limit", "the session ended meanwhile")
            self._check_token(session.caller, wish.protocol)
            self._check_count(session.caller)
        except Unavailable:
            if not tunnel.links and tunnel.held_until is None and tunnel.record is None:
                self._registry.release(tunnel)
            raise
        tunnel.protocol = wish.protocol
        tunnel.local_addr = wish.local_addr
        tunnel.target = wish.target
        tunnel.tell = _both(agent.tell_visit(tunnel.id), self._watch and self._watch(tunnel))
        session.tunnels[tunnel.id] = tunnel
        self._registry.serve(tunnel, session, agent.link, session.peer)
        caller = session.caller
        entry = LogEntry(
            id=str(uuid.uuid4()),
            tunnel_id=tunnel.id,
            owner=caller.owner,
            protocol="tcp" if wish.protocol is Protocol.TCP else "http",
            label=str(tunnel.address),
            session_id=session.public_id,
            token_id=caller.token_id,
            token_label=caller.token_label,
            registered_at=tunnel.registered_at,
        )
        session.log_ids[tunnel.id] = entry.id
        self._log.opened(entry)
        self._accounts.tunnel_registered(caller)
        self._note(
            audit.TunnelRegistered(
                who=audit.who_is(caller),
                peer=str(session.peer),
                tunnel=tunnel.id,
                address=str(tunnel.address),
                session=session.public_id,
            )
        )
        log.info(
            "tunnel registered", tunnel=tunnel.id, url=self._registry.public_url(tunnel), session=session.public_id
        )

    async def _remember(self, session: Session, wish: Wish, tunnel: Tunnel) -> None:
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

    async def unregister(self, session: Session, tunnel_id: str) -> bool:
        """The clean end of one of the session's own tunnels; False for any other id."""
        tunnel = session.tunnels.get(tunnel_id)
        if tunnel is None:
            return False
        await self._free(session, tunnel)
        return True

    async def _free(self, session: Session, tunnel: Tunnel) -> None:
        self._end_of_service(session, tunnel)
        if tunnel.record is not None:
            tunnel.session = None
            tunnel.tell = None
            return
        self._registry.release(tunnel)
        log.info("tunnel ended", tunnel=tunnel.id, address=str(tunnel.address))
        if session.caller.anonymous:
            return
        try:
            await self._names.release(tunnel.owner, _memory_text(tunnel.address))
        except StoreError:
            log.warning("the end of a name could not be stored", address=str(tunnel.address))

    def _end_of_service(self, session: Session, tunnel: Tunnel) -> None:
        self._log_closed(session, tunnel)
        session.tunnels.pop(tunnel.id, None)
        if session.agent is not None:
            tunnel.links.remove(session.agent.link, self._clock())
            session.agent.forget_tunnel(tunnel.id)

    def _log_closed(self, session: Session, tunnel: Tunnel) -> None:
        entry_id = session.log_ids.pop(tunnel.id, None)
        if entry_id is not None:
            self._log.closed(entry_id, datetime.now(UTC))

    def close_tunnel(self, tunnel: Tunnel) -> None:
        """Force it closed (REST delete, take-over by an admin): the address is free, an emptied session ends."""
        if tunnel.record is not None:
            tunnel.record.tunnel_closed()
            return
        session = tunnel.session
        if session is None:
            self._registry.release(tunnel)
            return
        self._end_of_service(session, tunnel)
        self._registry.release(tunnel)
        log.info("tunnel closed", tunnel=tunnel.id, address=str(tunnel.address))
        if not session.tunnels and session.agent is not None:
            session.agent.end(Reset("its last tunnel was closed"))

    def close_visible(self, caller: Caller, tunnel_id: str, peer: Peer | None = None) -> None:
        """Close a tunnel by id on behalf of an API caller. Raises NotFound, Forbidden."""
        tunnel = self._registry.get(tunnel_id)
        if tunnel is None or tunnel.held_until is not None or tunnel not in self._registry.visible_to(caller):
            raise NotFound("tunnel not found")
        self._accounts.require_writer(caller)
        self.close_tunnel(tunnel)
        self._note(
            audit.TunnelClosed(
                who=audit.who_is(caller),
                peer=str(peer or ""),
                tunnel=tunnel.id,
                address=str(tunnel.address),
                owner=tunnel.owner,
            )
        )

    async def leave(self, session: Session, *, clean: bool) -> None:
        """The control socket ended: free its addresses, or hold them for the owner after an unclean end."""
        if session.ended:
            return
        session.ended = True
        self._by_id.pop(session.id, None)
        for tunnel in list(session.tunnels.values()):
            if clean or session.agent is None:
                await self._free(session, tunnel)
            else:
                self._log_closed(session, tunnel)
                self._registry.hold(tunnel, session.agent.link, self._hold_seconds)
        session.tunnels.clear()
        log.info("agent left", session=session.public_id, clean=clean)

    def _token_ended(self, token_id: str) -> None:
        """A token was revoked or has expired: its sessions end at once, their addresses are free."""
        for session in self:
            if session.caller.token_id == token_id:
                for tunnel in list(session.tunnels.values()):
                    self._end_of_service(session, tunnel)
                    if tunnel.record is None:
                        self._registry.release(tunnel)
                if session.agent is not None:
                    session.agent.end(Reset("its token was revoked"))

    async def say_goodbye(self) -> None:
        """Tell every agent that the server stops; bounded, whatever they do."""
        with trio.move_on_after(GOODBYE_SECONDS):
            async with trio.open_nursery() as nursery:
                for session in self:
                    if session.agent is not None:
                        nursery.start_soon(session.agent.say_goodbye)


def _both(first: TellVisit | None, second: TellVisit | None) -> TellVisit | None:
    if first is None or second is None:
        return first or second

    def tell(method: bytes, target: bytes, status: int, milliseconds: float, visit_id: str) -> None:
        first(method, target, status, milliseconds, visit_id)
        second(method, target, status, milliseconds, visit_id)

    return tell


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
