"""An agent's life: authenticate, register, serve, leave. Which address it gets is said by `claims.py`."""

from __future__ import annotations

import secrets
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias
from typing import Protocol as TypingProtocol

import structlog
import trio

from rustunnel_py.errors import LinkLost, NotFound, Reset, Unavailable
from rustunnel_py.hub import audit
from rustunnel_py.hub.audit import unheard
from rustunnel_py.hub.claims import Claims
from rustunnel_py.model.tunnel import Peer, Protocol
from rustunnel_py.model.visit import LocalTarget
from rustunnel_py.store.tunnel_log import LogEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rustunnel_py.hub.accounts import Accounts
    from rustunnel_py.hub.audit import Note
    from rustunnel_py.hub.link import Link
    from rustunnel_py.hub.registry import Registry, TellVisit, Tunnel
    from rustunnel_py.model.access import Caller, Secret
    from rustunnel_py.store.names import Names
    from rustunnel_py.store.tunnel_log import TunnelLog

OpenRecord: TypeAlias = "Callable[[Secret], tuple[Caller, Tunnel] | None]"
WatchTunnel: TypeAlias = "Callable[[Tunnel], TellVisit]"

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
        self._log = tunnel_log
        self._max_tunnels = max_tunnels
        self._hold_seconds = hold_seconds
        self._clock = clock
        self._note = note
        self._claims = Claims(
            registry,
            names,
            reserved=reserved,
            hold_seconds=hold_seconds,
            clock=clock,
            take_away=self._take_away,
            close=self.close_tunnel,
        )
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
            tunnel = await self._claims.claim_record(session, wish, session.record_tunnel)
            self._attach(session, wish, tunnel)
            return tunnel
        if wish.grouped:
            raise Unavailable("unsupported", "groups are not served by this server yet; register without a group key")
        if self._max_tunnels and len(session.tunnels) >= self._max_tunnels:
            raise Unavailable(
                "limit", f"a session may have {self._max_tunnels} tunnels (limits.max_tunnels_per_session)"
            )
        self._check_token(session.caller, wish.protocol)
        wished = self._claims.wished(session.caller, wish)
        if wished is not None:
            tunnel = await self._claims.claim(session, wish, wished)
        else:
            tunnel = await self._claims.any(session, wish)
        self._attach(session, wish, tunnel)
        if wished is None:
            await self._claims.remember(session, wish, tunnel)
        return tunnel

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

    def _take_away(self, tunnel: Tunnel, session: Session) -> None:
        """From the live session that serves it, for another one; without tunnels left the former ends."""
        holder = tunnel.session
        if holder is None:
            return
        self._log_closed(holder, tunnel)
        holder.tunnels.pop(tunnel.id, None)
        if holder.agent is not None:
            tunnel.links.remove(holder.agent.link, self._clock())
            holder.agent.forget_tunnel(tunnel.id)
            if not holder.tunnels:
                holder.agent.end(Reset("its tunnel was taken over"))
        tunnel.session = None
        tunnel.tell = tunnel.watch
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
        tunnel.watch = self._watch and self._watch(tunnel)
        tunnel.tell = _both(agent.tell_visit(tunnel.id), tunnel.watch)
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

    async def unregister(self, session: Session, tunnel_id: str) -> bool:
        """The clean end of one of the session's own tunnels; False for any other id."""
        tunnel = session.tunnels.get(tunnel_id)
        if tunnel is None:
            return False
        if self._free(session, tunnel):
            await self._claims.let_go(tunnel)
        return True

    def _free(self, session: Session, tunnel: Tunnel) -> bool:
        """The address is free from now on; True if the store has yet to hear of it."""
        self._end_of_service(session, tunnel)
        if tunnel.record is not None:
            tunnel.session = None
            tunnel.tell = tunnel.watch
            return False
        self._registry.release(tunnel)
        log.info("tunnel ended", tunnel=tunnel.id, address=str(tunnel.address))
        return not session.caller.anonymous

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
        freed: list[Tunnel] = []  # all addresses first: the store may take longer than the caller waits
        for tunnel in list(session.tunnels.values()):
            if clean or session.agent is None:
                if self._free(session, tunnel):
                    freed.append(tunnel)
            else:
                self._log_closed(session, tunnel)
                self._registry.hold(tunnel, session.agent.link, self._hold_seconds)
        session.tunnels.clear()
        log.info("agent left", session=session.public_id, clean=clean)
        for tunnel in freed:
            await self._claims.let_go(tunnel)

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

    def tell(method: bytes, target: bytes, status: int, milliseconds: float, visit_id: str, cut: bool) -> None:
        first(method, target, status, milliseconds, visit_id, cut)
        second(method, target, status, milliseconds, visit_id, cut)

    return tell
