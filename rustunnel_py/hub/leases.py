"""Leases: tunnels that are made by REST and live as long as somebody sends heartbeats.

A lease is the record behind a tunnel of the registry. Its name is taken from the moment `create` is called; an agent
attaches with the lease's own secret and may come and go. It ends when it is stopped, when its tunnel is closed by
anybody who may, or at the instant at which its time is up: one task sleeps until the earliest of these. In each case
the name is free, the agent gone and the status `stopped` when the call returns. Only `stop` is patient: no visitor
finds the tunnel from then on, but those who are in have DRAIN_SECONDS to get their replies; meanwhile it is `stopping`.

Whoever asks by an instant that has passed is answered as if the task had already run: a heartbeat never revives.
What changes is in memory first and written in batches; at most WRITE_SECONDS of heartbeats are lost by a crash.
"""

from __future__ import annotations

import heapq
import math
import secrets
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeAlias

import structlog
import trio

from rustunnel_py.errors import NotFound, StoreError, Unavailable
from rustunnel_py.hub import audit
from rustunnel_py.hub.accounts import hash_of
from rustunnel_py.hub.audit import unheard
from rustunnel_py.hub.claims import may_have
from rustunnel_py.model.access import Caller, Secret
from rustunnel_py.model.lease import LEASE_SECONDS, Lease, Listed, Status, Term, judge_slug
from rustunnel_py.model.names import generated_label, is_reserved_for
from rustunnel_py.model.scope import scope_of
from rustunnel_py.model.telemetry import whole_ms
from rustunnel_py.model.tunnel import HttpHost, Protocol
from rustunnel_py.store.instants import utc_now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from rustunnel_py.hub.accounts import Accounts
    from rustunnel_py.hub.audit import Note
    from rustunnel_py.hub.registry import Registry, Tunnel
    from rustunnel_py.hub.sessions import Sessions
    from rustunnel_py.model.tunnel import Peer
    from rustunnel_py.store.leases import LeaseBook
    from rustunnel_py.store.names import Names
    from rustunnel_py.store.tunnel_log import LogEntry, TunnelLog

WhyEnded: TypeAlias = Literal["deleted", "expired", "closed", "token ended"]

WRITE_SECONDS = 1.0  # between two batches
DRAIN_SECONDS = 2.0  # for the visits of a tunnel that is stopped: a page is through, a user does not wait for more
SLUG_TRIES = 10  # for a generated name; with 36^11 of them the first is free
NATIVE_ENDED_MAX = 1000  # of an owner's ended registrations the newest are looked at, as of ended leases
FALLBACK_PORT = 80  # where a native client did not say its local port; the contract wants one

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class QuotaReached(Unavailable):
    """The owner has as many leased tunnels as allowed."""

    def __init__(self, active: int, most: int) -> None:
        super().__init__("limit", f"You have {active} active tunnels; {most} are allowed. Stop one first.")
        self.active = active
        self.most = most


@dataclass(frozen=True, slots=True)
class NewLease:
    """A lease with its two secrets, which nobody sees again."""

    lease: Lease
    run_secret: Secret
    agent_secret: Secret


@dataclass(frozen=True, slots=True)
class RunPass:
    """What a run token was made for."""

    tunnel_id: str
    owner: str


class Leases:
    """`clock` is monotonic seconds, `now` the wall clock. `max_active` 0: no limit."""

    def __init__(
        self,
        book: LeaseBook,
        registry: Registry,
        sessions: Sessions,
        accounts: Accounts,
        names: Names,
        tunnel_log: TunnelLog,
        *,
        reserved: Iterable[str],
        max_active: int,
        clock: Callable[[], float] = trio.current_time,
        now: Callable[[], datetime] = utc_now,
        note: Note = unheard,
    ) -> None:
        self._book = book
        self._registry = registry
        self._sessions = sessions
        self._accounts = accounts
        self._names = names
        self._tunnel_log = tunnel_log
        self._reserved = frozenset(label.lower() for label in reserved)
        self._max_active = max_active
        self._clock = clock
        self._now = now
        self._note = note
        self._winding_down: dict[str, trio.Event] = {}  # by tunnel id: set when it is over
        self._alive: dict[str, _Held] = {}
        self._by_run: dict[str, _Held] = {}
        self._by_agent: dict[str, _Held] = {}
        self._due: list[tuple[float, int, _Held]] = []  # a heap; entries of renewed leases are early, never late
        self._number = 0
        self._earlier = trio.Event()
        self._dirty: dict[str, Lease] = {}
        self._writing = trio.Lock()
        self._ended: list[Callable[[str], None]] = []
        sessions.on_record_secret(self._open)
        accounts.on_ended(self._token_ended)

    def __len__(self) -> int:
        return len(self._alive)

    def on_ended(self, callback: Callable[[str], None]) -> None:
        """`callback(tunnel_id)` is called when a lease has ended."""
        self._ended.append(callback)

    async def load(self) -> None:
        """At start: take the names of leases that still have time, end the others. Raises StoreError."""
        wall = self._now()
        for lease in await self._book.alive():
            left = -1.0 if lease.expires_at is None else (lease.expires_at - wall).total_seconds()
            address = self._registry.host_of(lease.slug)
            was_stopping = lease.status is Status.STOPPING
            if left <= 0 or was_stopping or self._registry.find(address) is not None or address.host != lease.hostname:
                lease.status = Status.STOPPED
                lease.stopped_at = lease.expires_at if left <= 0 and lease.expires_at is not None else whole_ms(wall)
                self._dirty[lease.id] = lease
                self._note_end(lease, "expired" if left <= 0 else "deleted" if was_stopping else "closed")
                continue
            lease.status = Status.ACTIVE
            self._take(lease, address, min(left, LEASE_SECONDS))
        await self.flush()

    async def run(self) -> None:
        """End leases at their instant, and write what changed; once more when cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._expire_in_time)
                while True:
                    await trio.sleep(WRITE_SECONDS)
                    await self.flush()
        finally:
            await self.flush()

    async def _expire_in_time(self) -> None:
        while True:
            self._earlier = trio.Event()
            self._expire()
            with trio.CancelScope(deadline=self._due[0][0] if self._due else math.inf):
                await self._earlier.wait()

    def _expire(self) -> None:
        """End what is due, in order."""
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            _, _, held = heapq.heappop(self._due)
            if self._alive.get(held.lease.id) is not held:
                continue
            if held.deadline > now:
                self._push(held)
                continue
            self._stop(held, "expired")

    def _push(self, held: _Held) -> None:
        self._number += 1
        heapq.heappush(self._due, (held.deadline, self._number, held))
        if self._due[0][2] is held:
            self._earlier.set()

    # its life

    async def create(self, caller: Caller, port: int, slug: str | None, peer: Peer | None = None) -> NewLease:
        """A new lease. Name, quota and row are one step: of many at once for one name, one gets it.

        Raises Forbidden, QuotaReached, Unavailable(malformed, reserved, taken, exhausted), StoreError.
        """
        self._accounts.require_writer(caller)
        who, at = audit.who_is(caller), str(peer or "")
        try:
            address = self._address_for(caller, slug)
        except Unavailable as refused:
            self._note(audit.RegistrationRefused(who=who, peer=at, code=refused.code, reason=str(refused), session=""))
            raise
        made = await self._create(caller, port, address)
        lease = made.lease
        log.info("lease made", tunnel=lease.id, hostname=lease.hostname, owner=lease.owner)
        self._note(audit.LeaseCreated(who=who, peer=at, tunnel=lease.id, address=lease.hostname))
        return made

    def _address_for(self, caller: Caller, slug: str | None) -> HttpHost:
        """A free address that the caller may have, within the quota. Raises QuotaReached, Unavailable."""
        self._expire()
        if caller.protocols is not None and "http" not in caller.protocols:
            raise Unavailable("scope", "This token may not open HTTP tunnels.")
        active = sum(
            held.lease.owner == caller.owner and held.lease.status is not Status.STOPPING
            for held in self._alive.values()
        )
        limits = [most for most in (self._max_active, caller.max_tunnels) if most]
        if limits and active >= min(limits):
            raise QuotaReached(active, min(limits))
        return self._free_address(caller) if not slug else self._wished_address(caller, slug)

    async def _create(self, caller: Caller, port: int, address: HttpHost) -> NewLease:
        """Takes the address before it waits for anything."""
        run_secret, agent_secret = Secret(secrets.token_urlsafe(32)), Secret(secrets.token_urlsafe(32))
        lease = Lease(
            id=str(uuid.uuid4()),
            owner=caller.owner,
            token_id=caller.token_id,
            token_label=caller.token_label,
            slug=address.host.partition(".")[0],
            hostname=address.host,
            status=Status.CREATING,
            requested_port=port,
            created_at=whole_ms(self._now()),
            heartbeat_at=None,
            expires_at=None,
            stopped_at=None,
            last_error=None,
            run_hash=hash_of(run_secret),
            agent_hash=hash_of(agent_secret),
        )
        held = self._take(lease, address, math.inf)
        await self._keep(held)
        if lease.status is not Status.CREATING:
            self._dirty[lease.id] = lease  # its row may have come after the news of its end
            raise NotFound("The tunnel was stopped while it was being made.")
        lease.status = Status.ACTIVE
        self._renew(held)
        self._push(held)
        return NewLease(lease, run_secret, agent_secret)

    async def _keep(self, held: _Held) -> None:
        """Its row, written as it will be in a moment: a crash in between must not leave a name taken for ever."""
        lease = held.lease
        born = lease.created_at
        row = Lease(
            lease.id,
            lease.owner,
            lease.token_id,
            lease.token_label,
            lease.slug,
            lease.hostname,
            Status.ACTIVE,
            lease.requested_port,
            born,
            born,
            born + timedelta(seconds=LEASE_SECONDS),
            None,
            None,
            lease.run_hash,
            lease.agent_hash,
        )
        with trio.CancelScope(shield=True):
            try:
                async with self._writing:
                    await self._write_dirty()  # the row that had the name before must have let it go
                    await self._book.add(row)
            except StoreError:
                self._stop(held, None)
                self._dirty.pop(lease.id, None)
                raise

    def _wished_address(self, caller: Caller, slug: str) -> HttpHost:
        address = self._judged(caller, judge_slug(slug))
        label = address.host.partition(".")[0]
        if self._registry.find(address) is not None:
            raise Unavailable("taken", f"The name {label} is in use.")
        return address

    def _judged(self, caller: Caller, label: str) -> HttpHost:
        if not caller.is_admin and is_reserved_for(label, self._reserved, caller.scope):
            raise Unavailable("reserved", f"The name {label} is reserved on this server.")
        address = self._registry.host_of(label)
        if not may_have(caller, address):
            raise Unavailable("scope", f"This token may not have the name {label}.")
        return address

    def _free_address(self, caller: Caller) -> HttpHost:
        """A generated name, or where the token has a scope one that fits it."""
        scope = scope_of(caller.scope)
        made = [generated_label(secrets.token_bytes(16)) for _ in range(SLUG_TRIES)]
        labels = made if scope is None else [*scope.literal_labels, *filter(None, map(scope.label_from, made))]
        for label in labels:
            try:
                address = self._judged(caller, judge_slug(label))
            except Unavailable:
                continue
            if self._registry.find(address) is None:
                return address
        raise Unavailable("exhausted", "No free name was found.")

    def _take(self, lease: Lease, address: HttpHost, seconds: float) -> _Held:
        tunnel = self._registry.create(address, lease.owner, Protocol.HTTP, tunnel_id=lease.id)
        held = _Held(self, lease, tunnel, self._clock() + seconds)
        tunnel.record = held
        tunnel.local_addr = f"127.0.0.1:{lease.requested_port}"
        self._alive[lease.id] = held
        self._by_run[lease.run_hash] = held
        self._by_agent[lease.agent_hash] = held
        if seconds < math.inf:
            self._push(held)
        return held

    def _renew(self, held: _Held) -> Term:
        at = whole_ms(self._now())
        held.deadline = self._clock() + LEASE_SECONDS
        held.lease.heartbeat_at = at
        held.lease.expires_at = at + timedelta(seconds=LEASE_SECONDS)
        self._dirty[held.lease.id] = held.lease
        return Term(at, held.lease.expires_at)

    def heartbeat(self, tunnel_id: str) -> Term:
        """The lease is new from now on. Raises NotFound for what is not active."""
        self._expire()
        held = self._alive.get(tunnel_id)
        if held is None or held.lease.status is not Status.ACTIVE:
            raise NotFound("Tunnel not found.")
        return self._renew(held)

    def _stop(self, held: _Held, why: WhyEnded | None, by: Caller | None = None, peer: Peer | None = None) -> None:
        """It is over, now; `why` None: it had not begun."""
        lease = held.lease
        if self._alive.pop(lease.id, None) is None:
            return
        del self._by_run[lease.run_hash]
        del self._by_agent[lease.agent_hash]
        lease.status = Status.STOPPED
        lease.stopped_at = whole_ms(self._now())
        self._dirty[lease.id] = lease
        held.tunnel.record = None
        self._sessions.close_tunnel(held.tunnel)
        if why is not None:
            self._note_end(lease, why, by, peer)
        for callback in self._ended:
            callback(lease.id)

    def _note_end(self, lease: Lease, why: WhyEnded, by: Caller | None = None, peer: Peer | None = None) -> None:
        log.info("lease ended", tunnel=lease.id, hostname=lease.hostname, why=why)
        self._note(
            audit.LeaseEnded(
                who=None if by is None else audit.who_is(by),
                peer=str(peer or ""),
                tunnel=lease.id,
                address=lease.hostname,
                owner=lease.owner,
                why=why,
            )
        )

    async def stop(self, caller: Caller, id_or_host: str, peer: Peer | None = None) -> None:
        """End a tunnel of the caller's, leased or native: no visitor finds it from now on; who is in may finish.

        Who asks for the same meanwhile waits for the same end. Raises NotFound, Forbidden.
        """
        tunnel = self._find_alive(caller, id_or_host)
        self._accounts.require_writer(caller)
        over = self._winding_down.get(tunnel.id)
        if over is not None:
            await over.wait()
        else:
            await self._wind_down(tunnel, caller, peer)
        await self.flush()

    async def _wind_down(self, tunnel: Tunnel, by: Caller, peer: Peer | None) -> None:
        held = self._alive.get(tunnel.id)
        if held is not None:
            held.lease.status = Status.STOPPING
            self._dirty[tunnel.id] = held.lease
        over = self._winding_down[tunnel.id] = trio.Event()
        self._registry.close_door(tunnel)
        try:
            await _drained(tunnel)
        finally:
            del self._winding_down[tunnel.id]
            over.set()
            if held is not None:
                self._stop(held, "deleted", by, peer)
            elif self._registry.owns(tunnel):
                self._sessions.close_tunnel(tunnel)
                self._note(
                    audit.TunnelClosed(
                        who=audit.who_is(by),
                        peer=str(peer or ""),
                        tunnel=tunnel.id,
                        address=str(tunnel.address),
                        owner=tunnel.owner,
                    )
                )

    def _token_ended(self, token_id: str) -> None:
        for held in list(self._alive.values()):
            if held.lease.token_id == token_id:
                self._stop(held, "token ended")

    # who attaches, who reports

    def _open(self, secret: Secret) -> tuple[Caller, Tunnel] | None:
        """Who an agent is that shows a lease's secret."""
        self._expire()
        held = self._by_agent.get(hash_of(secret))
        if held is None or held.lease.status is Status.STOPPING:
            return None
        owner = self._accounts.caller_of(held.lease.token_id)
        return None if owner is None else (owner, held.tunnel)

    async def run_pass(self, secret: Secret) -> RunPass | None:
        """What a run token was made for, also after the end of that; None for any other text. Raises StoreError."""
        run_hash = hash_of(secret)
        held = self._by_run.get(run_hash)
        if held is not None:
            return RunPass(held.lease.id, held.lease.owner)
        found = await self._book.id_of_run(run_hash)
        return None if found is None else RunPass(*found)

    # lists

    def active_id(self, caller: Caller, id_or_host: str, *, slug: bool = False) -> str:
        """The id of an active tunnel of the caller's. `slug`: its label will do too. Raises NotFound."""
        return self._find_alive(caller, id_or_host, slug=slug).id

    def is_active(self, tunnel_id: str) -> bool:
        self._expire()
        held = self._alive.get(tunnel_id)
        if held is not None:
            return held.lease.status is Status.ACTIVE
        tunnel = self._registry.get(tunnel_id)
        return tunnel is not None and tunnel.held_until is None and tunnel_id not in self._winding_down

    def native_term(self, tunnel_id: str) -> Term | None:
        """The term of a tunnel that is kept alive by its control connection, not by heartbeats."""
        tunnel = self._registry.get(tunnel_id)
        return None if tunnel is None or tunnel_id in self._winding_down else _native_term(tunnel)

    def is_leased(self, tunnel_id: str) -> bool:
        return tunnel_id in self._alive

    def _find_alive(self, caller: Caller, id_or_host: str, *, slug: bool = False) -> Tunnel:
        self._expire()
        wanted = id_or_host.lower()
        tunnel = self._registry.get(wanted) or self._registry.find(HttpHost(wanted))
        if tunnel is None and slug and "." not in wanted:
            tunnel = self._registry.find(self._registry.host_of(wanted))
        if (
            tunnel is None
            or tunnel.owner != caller.owner
            or tunnel.held_until is not None
            or not isinstance(tunnel.address, HttpHost)
        ):
            raise NotFound("Tunnel not found.")
        return tunnel

    async def any_id(self, caller: Caller, id_or_host: str) -> str:
        """The id of a tunnel of the caller's in any state. Raises NotFound, StoreError."""
        try:
            return self.active_id(caller, id_or_host)
        except NotFound:
            pass
        wanted = id_or_host.lower()
        found = await self._book.find_ended(caller.owner, wanted)
        if found is not None:
            return found
        _, entries = await self._tunnel_log.history(caller.owner, "http", NATIVE_ENDED_MAX, 0)
        for entry in entries:
            if wanted in (entry.tunnel_id, self._host_of(entry)):
                return entry.tunnel_id
        raise NotFound("Tunnel not found.")

    def alive_of(self, owner: str) -> list[Listed]:
        """The owner's HTTP tunnels that are alive, oldest first."""
        self._expire()
        shown = []
        for tunnel in self._registry.owned_by(owner):
            held = self._alive.get(tunnel.id)
            if held is not None:
                shown.append(_listed(held.lease))
            elif isinstance(tunnel.address, HttpHost) and tunnel.held_until is None:
                status = Status.STOPPING if tunnel.id in self._winding_down else Status.ACTIVE
                shown.append(_native(tunnel, tunnel.address.host, status))
        shown.sort(key=lambda one: one.created_at)
        return shown

    async def all_of(self, owner: str) -> list[Listed]:
        """The same, and those that ended, as far back as is kept; oldest first. Raises StoreError."""
        await self.flush()
        ended = await self._book.ended_of(owner)
        _, entries = await self._tunnel_log.history(owner, "http", NATIVE_ENDED_MAX, 0)
        ports = await self._names.local_addresses(owner)
        shown = {one.id: one for one in self.alive_of(owner)}
        for lease in ended:
            shown.setdefault(lease.id, _listed(lease))
        # An entry may be of a lease whose own row is beyond what is kept; it is shown as what it was.
        for entry in entries:
            if entry.unregistered_at is not None:
                shown.setdefault(entry.tunnel_id, self._ended_native(entry, ports.get(entry.tunnel_id, "")))
        return sorted(shown.values(), key=lambda one: one.created_at)

    def _host_of(self, entry: LogEntry) -> str:
        return entry.label if "." in entry.label else self._registry.host_of(entry.label).host

    def _ended_native(self, entry: LogEntry, local_addr: str) -> Listed:
        host = self._host_of(entry)
        return Listed(
            id=entry.tunnel_id,
            hostname=host,
            slug=host.partition(".")[0],
            status=Status.STOPPED,
            requested_port=port_of(local_addr),
            created_at=entry.registered_at,
            lease=None,
            stopped_at=entry.unregistered_at,
            last_error=None,
        )

    # what is written

    async def flush(self) -> None:
        """Write what changed; what cannot be written is tried again."""
        with trio.CancelScope(shield=True):
            async with self._writing:
                try:
                    await self._write_dirty()
                except StoreError as error:
                    log.warning("leases could not be written", error=str(error))

    async def _write_dirty(self) -> None:
        dirty, self._dirty = self._dirty, {}
        if not dirty:
            return
        try:
            await self._book.update(list(dirty.values()))
        except StoreError:
            self._dirty = dirty | self._dirty
            raise


class _Held:
    """A living lease: the record behind its tunnel. `deadline` is on the monotonic clock."""

    __slots__ = ("_leases", "deadline", "lease", "tunnel")

    def __init__(self, leases: Leases, lease: Lease, tunnel: Tunnel, deadline: float) -> None:
        self._leases = leases
        self.lease = lease
        self.tunnel = tunnel
        self.deadline = deadline

    def tunnel_closed(self) -> None:
        self._leases._stop(self, "closed")


async def _drained(tunnel: Tunnel) -> None:
    """Until no visit is under way, for at most DRAIN_SECONDS; where nobody serves it, nothing would come of waiting."""
    if not tunnel.links or not _visits_open(tunnel):
        return
    empty = trio.Event()
    before = tunnel.tell

    def tell(method: bytes, target: bytes, status: int, milliseconds: float, visit_id: str, cut: bool) -> None:
        if before is not None:
            before(method, target, status, milliseconds, visit_id, cut)
        if not _visits_open(tunnel):
            empty.set()

    tunnel.tell = tell
    with trio.move_on_after(DRAIN_SECONDS):
        await empty.wait()


def _visits_open(tunnel: Tunnel) -> int:
    return tunnel.requests - sum(tunnel.tally.statuses)


def port_of(local_addr: str) -> int:
    """The port in a local address as agents say it."""
    port = local_addr.rpartition(":")[2]
    if port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535:
        return int(port)
    return FALLBACK_PORT


def _listed(lease: Lease) -> Listed:
    term = None
    if lease.status.is_alive and lease.heartbeat_at is not None and lease.expires_at is not None:
        term = Term(lease.heartbeat_at, lease.expires_at)
    return Listed(
        id=lease.id,
        hostname=lease.hostname,
        slug=lease.slug,
        status=lease.status,
        requested_port=lease.requested_port,
        created_at=lease.created_at,
        lease=term,
        stopped_at=lease.stopped_at,
        last_error=lease.last_error,
    )


def _native_term(tunnel: Tunnel) -> Term | None:
    if tunnel.session is None:
        return None
    heard = whole_ms(tunnel.session.heard_at)
    return Term(heard, heard + timedelta(seconds=LEASE_SECONDS))


def _native(tunnel: Tunnel, host: str, status: Status) -> Listed:
    """A tunnel that an agent registered; its control connection is what keeps it."""
    return Listed(
        id=tunnel.id,
        hostname=host,
        slug=host.partition(".")[0],
        status=status,
        requested_port=port_of(tunnel.local_addr),
        created_at=tunnel.registered_at,
        lease=_native_term(tunnel),
        stopped_at=None,
        last_error=None,
    )
