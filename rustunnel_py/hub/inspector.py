"""What passes through the tunnels, kept, searched and sent again.

    edge ──tap──► Recording ──append──► ring of the tunnel (memory, as it was)
                                          │ once a second, newest first, shared evenly
                                          ▼
                                     redact ──► SQLite (store/captures.py), pruned in small steps

The ring is the queue to the store: the hot path appends and nothing more. What is overwritten before its turn is
counted. Whatever leaves a ring is redacted, on its way to the store as to a caller. Trouble of the store stops nothing
here: it is counted, told once, and tried again the next second.

Every method that takes a `Caller` raises NotFound for what that caller may not see, whether it is there or not.
"""

from __future__ import annotations

import itertools
import secrets
import uuid
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import structlog
import trio

from rustunnel_py.errors import BadRequest, Forbidden, NotFound, StoreError, Unavailable
from rustunnel_py.hub import replay as replaying
from rustunnel_py.hub.feed import VIEWERS_MAX, VIEWERS_OF_ONE_MAX, Viewer
from rustunnel_py.hub.recording import Recording, TunnelRing, dashed
from rustunnel_py.model.access import Role, may_see
from rustunnel_py.model.capture import Capture, Difference, Message, difference
from rustunnel_py.model.redact import Redactor
from rustunnel_py.model.ring import Budget
from rustunnel_py.model.tunnel import Peer
from rustunnel_py.store.captures import ROWS_A_TRANSACTION, Captures, Filter, Found, Retention

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from rustunnel_py.config import InspectConfig
    from rustunnel_py.hub.registry import Registry, Tunnel
    from rustunnel_py.model.access import Caller
    from rustunnel_py.model.redact import Tier
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.wire.http1 import RequestHead

WRITE_SECONDS = 1.0
SLICE_SECONDS = 0.001  # so long captures are made ready at a time; then traffic has its turn
AGE_EVERY = timedelta(minutes=1)
PRUNE_STEPS = 24  # a second; each is PRUNED_AT_ONCE rows
GOODBYE_SECONDS = 10.0  # what is not stored by then when the server stops is lost, and said so
VIEWS_BYTES_MAX = 16 * 1024 * 1024  # captures made ready for callers that are kept so for the next one
LIST_MAX = 500  # of `recent`, as the ring
PAGE_MAX = 1000
IMPORTED_MAX = 1000  # captures at a time
PINNED_MAX = 1000  # of one tunnel; and they have at most half of the bytes that may be kept
REPLAYS_AT_ONCE = 4  # of one tunnel
CLOCK_SLACK = timedelta(seconds=0.5)  # a wall clock that moved further against ours was set

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class InspectorStatus:
    """For the status page and metrics. `lossy`: the store does not take captures just now."""

    in_memory: int
    bytes_in_memory: int
    waiting: int  # in memory, not stored yet
    stored: int  # by this process
    not_stored: int  # overwritten before their turn, or lost with the store
    in_store: int
    bytes_in_store: int
    lossy: bool


class Inspector:
    """`owner_of(tunnel_id)` knows tunnels that have ended without a capture; `wall` is the wall clock."""

    def __init__(
        self,
        config: InspectConfig,
        registry: Registry,
        pump: Pump,
        captures: Captures,
        *,
        owner_of: Callable[[str], Awaitable[str | None]] | None = None,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._config = config
        self._registry = registry
        self._pump = pump
        self._captures = captures
        self._owner_of = owner_of
        self._wall = wall
        self._budget = Budget(config.ring_bytes)
        self._rings: dict[str, TunnelRing] = {}
        self._numbers: Iterator[int] = itertools.count(1)
        self._redactors: dict[str, Redactor] = {}
        self._tiers = [(pattern, tier) for pattern, tier in map(_tier_of, config.redact_hosts)]
        self._views: OrderedDict[int, Capture] = OrderedDict()
        self._views_bytes = 0
        self._pinned: set[int] = set()  # of what is in memory
        self._viewers: set[Viewer] = set()
        self._replaying: dict[str, int] = {}
        self._writing = trio.Lock()
        self._overwritten = 0  # of rings that are gone
        self._stored = 0
        self._failing = False
        self._offset = timedelta()
        self._aged = datetime.fromtimestamp(0, UTC)  # when age was last looked at, to the end
        self._retention = Retention(
            seconds=config.keep_days * 86400.0,
            rows_per_tunnel=config.keep_per_tunnel,
            bytes_per_tunnel=config.keep_bytes_per_tunnel,
            rows=config.keep_in_all,
            bytes=config.keep_bytes,
        )
        self._set_clock()

    # what the edge calls

    def watch(self, tunnel: Tunnel, visit: Visit, head: RequestHead) -> Recording:
        """The tap for an exchange that begins."""
        ring = self._rings.get(tunnel.id)
        if ring is None:
            ring = self._new_ring(tunnel)
        return Recording(ring, visit, head)

    def _new_ring(self, tunnel: Tunnel) -> TunnelRing:
        ring = TunnelRing(
            tunnel.id,
            tunnel.owner,
            self._config.ring_size,
            self._budget,
            body_max=self._config.body_max_bytes,
            clock=self._pump,
            numbers=self._numbers,
            redactor=self.redactor(self.tier_for(str(tunnel.address))),
        )
        ring.relist = self._relist
        ring.viewers.extend(viewer for viewer in self._viewers if viewer.tunnel_id == tunnel.id)
        self._rings[tunnel.id] = ring
        return ring

    def _relist(self, ring: TunnelRing) -> None:
        """An exchange outlived its tunnel."""
        present = self._rings.setdefault(ring.tunnel_id, ring)
        if present is ring:
            ring.is_listed = True
            self._budget.rings[ring] = None  # type: ignore[index]

    # redaction

    def tier_for(self, host: str) -> Tier:
        """The tier of a tunnel by its address: the first of `inspect.redact_hosts` that fits, else the server's."""
        for pattern, tier in self._tiers:
            if fnmatchcase(host, pattern):
                return tier
        return self._config.redact

    def redactor(self, tier: Tier) -> Redactor:
        found = self._redactors.get(tier)
        if found is None:
            found = Redactor(tier, self._config.redact_names, self._config.redact_patterns)
            self._redactors[tier] = found
        return found

    def set_tier(self, caller: Caller, tunnel_id: str, tier: Tier) -> None:
        """For what is captured or looked at from now on, while the tunnel lives."""
        tunnel = self._registry.get(tunnel_id)
        if tunnel is None or not may_see(caller, tunnel.owner):
            raise NotFound("tunnel not found")
        _require_writer(caller)
        ring = self._rings.get(tunnel_id) or self._new_ring(tunnel)
        ring.redactor = self.redactor(tier)
        for recording in ring:
            self._forget_view(recording.seq)

    # life

    async def start(self) -> None:
        """Before anything is captured: numbers go on where the store ends."""
        try:
            await self._captures.load()
        except StoreError as error:
            self._note_trouble(error)
        self._numbers = itertools.count(self._captures.last_seq + 1)

    async def run(self) -> None:
        """Write and prune once a second; at the end everything that waits."""
        try:
            due = trio.current_time()
            while True:
                due = max(due + WRITE_SECONDS, trio.current_time())
                await trio.sleep(max(0.0, due - trio.current_time()))
                await self.write()
                await self.prune()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_SECONDS):
                await self.flush()
            lost = self.status().waiting
            if lost:
                log.warning("captures were not stored before the end", captures=lost)

    async def write(self) -> None:
        """What waits, newest first, at most `rows_per_second` shared evenly; and what ended tunnels left."""
        self._set_clock()
        ended = [ring for ring in self._rings.values() if self._registry.get(ring.tunnel_id) is None]
        live = [ring for ring in self._rings.values() if self._registry.get(ring.tunnel_id) is not None]
        await self._store(_shared_evenly(live, self._config.rows_per_second))
        for ring in ended:
            if not self._config.rows_per_second or (await self._store(_waiting(ring)) and not _waiting(ring)):
                self._let_go(ring)

    async def flush(self) -> None:
        """All that waits, whatever the rate; nothing where memory is all there shall be."""
        if not self._config.rows_per_second:
            return
        for ring in list(self._rings.values()):
            await self._store(_waiting(ring))

    async def prune(self) -> None:
        """Some steps towards what may be kept. Age is looked at now and then: that reads rows, the rest only counts."""
        now = self._wall()
        by_age = abs(now - self._aged) >= AGE_EVERY
        retention = self._retention if by_age else replace(self._retention, seconds=0.0)
        try:
            for _ in range(PRUNE_STEPS):
                if not await self._captures.prune(retention, now):
                    if by_age:
                        self._aged = now
                    return
        except StoreError as error:
            self._note_trouble(error)

    def _let_go(self, ring: TunnelRing) -> None:
        """Its tunnel has ended."""
        self._rings.pop(ring.tunnel_id, None)
        ring.is_listed = False
        ring.close()
        self._overwritten += ring.overwritten
        ring.overwritten = 0
        for viewer in ring.viewers:
            viewer.end()

    async def _store(self, recordings: Sequence[Recording]) -> bool:
        """Redact in slices, write in batches. False: the store does not take it; it stays in the rings."""
        async with self._writing:
            for at in range(0, len(recordings), ROWS_A_TRANSACTION):
                batch = [recording for recording in recordings[at : at + ROWS_A_TRANSACTION] if not recording.stored]
                captures = await self._ready(batch, keep=False)
                batch = [recording for recording in batch if not recording.stored]
                owners = {recording.ring.tunnel_id: recording.ring.owner for recording in batch}
                try:
                    await self._captures.write(captures, owners)
                except StoreError as error:
                    self._note_trouble(error)
                    return False
                for recording in batch:
                    recording.stored = True
                self._stored += len(batch)
        if recordings and self._failing:
            self._failing = False
            log.info("captures are stored again", not_stored=self.status().not_stored)
            await self.start_over()
        return True

    async def start_over(self) -> None:
        """After trouble: a batch that failed may be there all the same, so count again."""
        try:
            await self._captures.load()
        except StoreError as error:
            self._note_trouble(error)

    def _note_trouble(self, error: StoreError) -> None:
        if not self._failing:
            log.error("captures cannot be stored; the newest stay in memory", error=str(error))
        self._failing = True

    def status(self) -> InspectorStatus:
        """Counts; costs a look at every recording in memory."""
        waiting = sum(1 for ring in self._rings.values() for recording in ring if not recording.stored)
        shares = self._captures.shares.values()
        return InspectorStatus(
            in_memory=sum(len(ring) for ring in self._rings.values()),
            bytes_in_memory=self._budget.used,
            waiting=waiting,
            stored=self._stored,
            not_stored=self._overwritten + sum(ring.overwritten for ring in self._rings.values()),
            in_store=sum(share.rows for share in shares),
            bytes_in_store=sum(share.bytes for share in shares),
            lossy=self._failing,
        )

    def not_stored(self, tunnel_id: str) -> int:
        """Captures of a live tunnel that were overwritten before their turn."""
        ring = self._rings.get(tunnel_id)
        return 0 if ring is None else ring.overwritten

    # from recordings to captures

    def _set_clock(self) -> None:
        offset = self._wall() - datetime.fromtimestamp(0, UTC) - timedelta(seconds=trio.current_time())
        if abs(offset - self._offset) > CLOCK_SLACK:
            self._offset = offset

    def _capture(self, recording: Recording) -> Capture:
        capture = recording.capture(0.0, datetime.fromtimestamp(0, UTC) + self._offset)
        capture.pinned = capture.seq in self._pinned
        return capture

    async def _ready(self, recordings: Iterable[Recording], *, keep: bool) -> list[Capture]:
        """Redact them, a millisecond at a time, so that traffic has its turn in between."""
        captures: list[Capture] = []
        until = trio.current_time() + SLICE_SECONDS
        for recording in recordings:
            capture = self._views.get(recording.seq)
            if capture is None:
                capture = await self._one_ready(recording, keep=keep)
            if capture is not None:
                captures.append(capture)
            if trio.current_time() >= until:
                await trio.lowlevel.checkpoint()
                until = trio.current_time() + SLICE_SECONDS
        return captures

    async def _one_ready(self, recording: Recording, *, keep: bool) -> Capture | None:
        """In a thread where that takes long: there the interpreter switches by itself. None: it cannot be redacted."""
        try:
            if recording.heavy:
                capture = await trio.to_thread.run_sync(self._capture, recording)
            else:
                capture = self._capture(recording)
        except Exception as error:
            # Nothing that passes through a tunnel may end the server; what cannot be redacted stays here.
            log.exception("a capture could not be made ready", error=repr(error), visit=recording.id)
            recording.stored = True
            self._overwritten += 1
            return None
        if keep:
            self._keep_view(capture, recording.size)
        return capture

    def _keep_view(self, capture: Capture, size: int) -> None:
        self._views[capture.seq] = capture
        self._views_bytes += size
        if self._views_bytes > VIEWS_BYTES_MAX:
            self._views.clear()
            self._views_bytes = 0

    def _forget_view(self, seq: int) -> None:
        self._views.pop(seq, None)

    async def view(self, recording: Recording) -> Capture:
        """What a viewer may see of a recording."""
        for capture in await self._ready([recording], keep=True):
            return capture
        raise NotFound("request not found")

    # who may see what

    async def require(self, caller: Caller, tunnel_id: str) -> str:
        """The owner of a tunnel that lives, or has lived. Raises NotFound for what the caller may not see."""
        owner = await self._owner(tunnel_id)
        if owner is None or not may_see(caller, owner):
            raise NotFound("tunnel not found")
        return owner

    async def _owner(self, tunnel_id: str) -> str | None:
        tunnel = self._registry.get(tunnel_id)
        if tunnel is not None:
            return tunnel.owner
        ring = self._rings.get(tunnel_id)
        if ring is not None:
            return ring.owner
        known = self._captures.owners.get(tunnel_id)
        if known is None and self._owner_of is not None:
            known = await self._owner_of(tunnel_id)
        return known

    # reading

    async def recent(self, caller: Caller, tunnel_id: str, limit: int = 50) -> list[Capture]:
        """The newest, newest first: from memory, completed from the store where memory has fewer."""
        await self.require(caller, tunnel_id)
        ring = self._rings.get(tunnel_id)
        newest = [] if ring is None else list(itertools.islice(reversed(ring), limit))
        captures = {capture.seq: capture for capture in await self._ready(newest, keep=True)}
        if len(captures) < limit:
            try:
                found = await self._captures.search(tunnel_id, Filter(), None, limit)
            except StoreError as error:
                if not captures:
                    raise
                self._note_trouble(error)
            else:
                for capture in found.captures:
                    captures[capture.seq] = capture  # the store knows what is pinned
        return sorted(captures.values(), key=_seq, reverse=True)[:limit]

    async def page(self, caller: Caller, tunnel_id: str, cursor: int | None = None, limit: int = 50) -> Found:
        """`recent`, from a cursor on, as far back as anything is kept."""
        return await self.search(caller, tunnel_id, Filter(), cursor, limit)

    async def search(
        self, caller: Caller, tunnel_id: str, wanted: Filter, cursor: int | None = None, limit: int = 50
    ) -> Found:
        """What fits, newest first. A search in bodies stops after SEARCHED_BYTES_MAX and gives a cursor, perhaps
        with nothing found so far. Raises NotFound, StoreError.
        """
        await self.require(caller, tunnel_id)
        limit = min(limit, PAGE_MAX)
        before = cursor if cursor is not None else 2**62
        ring = self._rings.get(tunnel_id)
        waiting = [] if ring is None else [one for one in reversed(ring) if not one.stored and one.seq < before]
        captures = {capture.seq: capture for capture in await self._ready(waiting, keep=True) if wanted.fits(capture)}
        found = await self._captures.search(tunnel_id, wanted, cursor, limit)
        captures.update((capture.seq, capture) for capture in found.captures)
        newest = sorted(captures.values(), key=_seq, reverse=True)
        if found.cursor is not None:
            # What lies below the store's cursor was not looked at there, so it is not this page's yet.
            newest = [capture for capture in newest if capture.seq >= found.cursor]
        if len(newest) > limit:
            return Found(newest[:limit], newest[limit - 1].seq)
        return Found(newest, found.cursor)

    async def get(self, caller: Caller, tunnel_id: str, request_id: str) -> Capture:
        """One of them. Raises NotFound: `request not found`, or `request does not belong to this tunnel`."""
        await self.require(caller, tunnel_id)
        wanted = _uuid(request_id)
        stored = await self._stored_one(tunnel_id, wanted)
        if stored is not None:
            return stored
        recording = self._in_memory(tunnel_id, wanted)
        if recording is not None:
            return await self.view(recording)
        raise await self._missing(caller, wanted)

    async def _stored_one(self, tunnel_id: str, wanted: str) -> Capture | None:
        """From the store, unless memory has it and the store is of no use."""
        try:
            return await self._captures.get(tunnel_id, wanted)
        except StoreError:
            if self._in_memory(tunnel_id, wanted) is None:
                raise
            return None

    def _in_memory(self, tunnel_id: str, wanted: str) -> Recording | None:
        ring = self._rings.get(tunnel_id)
        if ring is None:
            return None
        digits = wanted.replace("-", "")
        return next((recording for recording in reversed(ring) if recording.id == digits), None)

    async def _missing(self, caller: Caller, wanted: str) -> NotFound:
        """The words for a request that this tunnel has not."""
        for ring in self._rings.values():
            if may_see(caller, ring.owner) and self._in_memory(ring.tunnel_id, wanted) is not None:
                return NotFound("request does not belong to this tunnel")
        of = await self._captures.tunnel_of(wanted)
        if of is not None and may_see(caller, self._captures.owners.get(of, "")):
            return NotFound("request does not belong to this tunnel")
        return NotFound("request not found")

    async def diff(self, caller: Caller, tunnel_id: str, old_id: str, new_id: str) -> Difference:
        """What the second has otherwise than the first, both of one tunnel, as they are shown."""
        return difference(await self.get(caller, tunnel_id, old_id), await self.get(caller, tunnel_id, new_id))

    # changing

    async def delete(self, caller: Caller, tunnel_id: str, request_id: str) -> None:
        """From memory and from the store. Raises NotFound, Forbidden, StoreError."""
        await self.require(caller, tunnel_id)
        _require_writer(caller)
        wanted = _uuid(request_id)
        async with self._writing:
            stored = await self._captures.delete(tunnel_id, wanted)
            recording = self._in_memory(tunnel_id, wanted)
            if recording is not None:
                recording.ring.remove(recording)
                self._forget_view(recording.seq)
        if not stored and recording is None:
            raise await self._missing(caller, wanted)

    async def pin(self, caller: Caller, tunnel_id: str, request_id: str, pinned: bool = True) -> Capture:
        """Keep it, whatever its age, until it is unpinned. Raises NotFound, Forbidden, Unavailable, StoreError."""
        await self.require(caller, tunnel_id)
        _require_writer(caller)
        wanted = _uuid(request_id)
        recording = self._in_memory(tunnel_id, wanted)
        if recording is not None and not recording.stored and not await self._store([recording]):
            raise StoreError("captures cannot be stored just now")
        capture = await self._captures.get(tunnel_id, wanted)
        if capture is None:
            raise await self._missing(caller, wanted)
        if pinned and not capture.pinned:
            share = await self._captures.pinned(tunnel_id)
            most = min((n for n in (self._retention.bytes_per_tunnel, self._retention.bytes) if n), default=0) // 2
            if share.rows >= PINNED_MAX or (most and share.bytes >= most):
                raise Unavailable("limit", "this tunnel has as many pinned requests as there may be")
        await self._captures.pin(tunnel_id, wanted, pinned)
        if recording is not None and pinned:
            self._pinned.add(capture.seq)
        else:
            self._pinned.discard(capture.seq)
        self._forget_view(capture.seq)
        return replace(capture, pinned=pinned)

    async def import_(self, caller: Caller, tunnel_id: str, captures: Sequence[Capture]) -> list[Capture]:
        """Keep captures from elsewhere (a HAR file), redacted, with ids of their own. Raises BadRequest, StoreError."""
        owner = await self.require(caller, tunnel_id)
        _require_writer(caller)
        if len(captures) > IMPORTED_MAX:
            raise BadRequest(f"at most {IMPORTED_MAX} requests at a time")
        tunnel = self._registry.get(tunnel_id)
        ring = self._rings.get(tunnel_id)
        redactor = self.redactor(self._config.redact if tunnel is None else self.tier_for(str(tunnel.address)))
        if ring is not None:
            redactor = ring.redactor
        made: list[Capture] = []
        for capture in captures:
            made.append(self._imported(tunnel_id, capture, redactor))
            await trio.lowlevel.checkpoint()
        async with self._writing:
            await self._captures.write(made, {tunnel_id: owner})
        return made

    def _imported(self, tunnel_id: str, capture: Capture, redactor: Redactor) -> Capture:
        most = self._config.body_max_bytes
        request, response = redactor.judge(capture.request_headers), redactor.judge(capture.response_headers)
        sent = redactor.body(capture.request_body[:most], request)
        got = redactor.body(capture.response_body[:most], response)
        return replace(
            capture,
            seq=next(self._numbers),
            id=str(uuid.uuid4()),
            tunnel_id=tunnel_id,
            path=redactor.target(capture.path.encode("latin-1", "replace")).decode("latin-1"),
            request_headers=request.headers,
            request_trailers=redactor.judge(capture.request_trailers).headers,
            request_body=sent or b"",
            request_clipped=capture.request_clipped or len(capture.request_body) > most,
            request_withheld=capture.request_withheld or sent is None,
            response_headers=response.headers,
            response_trailers=redactor.judge(capture.response_trailers).headers,
            response_body=got or b"",
            response_clipped=capture.response_clipped or len(capture.response_body) > most,
            response_withheld=capture.response_withheld or got is None,
            messages=tuple(
                Message(m.forth, m.kind, m.size, m.at_ms, redactor.message(m) or b"", m.compressed)
                for m in capture.messages
            ),
            imported=True,
            pinned=False,
        )

    # looking on

    @contextmanager
    def look_on(self, caller: Caller, tunnel_id: str) -> Iterator[Viewer]:
        """Hear of captures of a live tunnel as they come. Raises NotFound, Unavailable("limit").

        `await viewer.next()` gives a Recording, for `view`; None: the tunnel ended, or the token did.
        """
        tunnel = self._registry.get(tunnel_id)
        if tunnel is None or not may_see(caller, tunnel.owner):
            raise NotFound("tunnel not found")
        mine = sum(1 for viewer in self._viewers if viewer.caller.owner == caller.owner)
        if len(self._viewers) >= VIEWERS_MAX or mine >= VIEWERS_OF_ONE_MAX:
            raise Unavailable("limit", "too many live views are open")
        ring = self._rings.get(tunnel_id) or self._new_ring(tunnel)
        viewer = Viewer(caller, tunnel_id)
        self._viewers.add(viewer)
        ring.viewers.append(viewer)
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)
            ring.viewers.remove(viewer)

    def end_views(self, token_id: str) -> None:
        """A token was revoked or has expired (`Accounts.on_ended`)."""
        for viewer in self._viewers:
            if viewer.caller.token_id == token_id:
                viewer.end()

    # sending again

    async def replay(
        self,
        caller: Caller,
        tunnel_id: str,
        request_id: str,
        edit: replaying.Edit | None = None,
        times: int = 1,
    ) -> list[replaying.Replayed]:
        """Send a captured request through its tunnel, and tell what came of it, a new capture each time.

        From memory as it was, from the store with what was redacted replaced by `edit`. Raises NotFound, Forbidden,
        BadRequest (what cannot be sent, and why), Unavailable (`gone`: the tunnel has ended; `limit`), StoreError.
        """
        await self.require(caller, tunnel_id)
        _require_writer(caller)
        if not 1 <= times <= replaying.TIMES_MAX:
            raise BadRequest(f"times: 1 to {replaying.TIMES_MAX}")
        recording = self._in_memory(tunnel_id, _uuid(request_id))
        shown = await self.get(caller, tunnel_id, request_id)
        tunnel = self._registry.get(tunnel_id)
        if tunnel is None:
            raise Unavailable("gone", "the tunnel has ended")
        original = _original(shown, recording)
        head, body = replaying.build(original, edit or replaying.Edit(), tunnel)
        with self._one_more_replay(tunnel_id):
            return [await self._send(tunnel, original, shown, head, body) for _ in range(times)]

    async def _send(
        self, tunnel: Tunnel, original: replaying.Original, shown: Capture, head: RequestHead, body: bytes
    ) -> replaying.Replayed:
        now = trio.current_time()
        visit = replaying.visit_for(tunnel, original, secrets.token_hex(16), _NOWHERE, head, now)
        recording = self.watch(tunnel, visit, head)
        recording.replays(shown.id)
        tunnel.requests += 1
        await replaying.send(self._pump, tunnel, visit, head, body, recording)
        capture = await self.view(recording)
        return replaying.Replayed(capture, difference(shown, capture))

    @contextmanager
    def _one_more_replay(self, tunnel_id: str) -> Iterator[None]:
        present = self._replaying.get(tunnel_id, 0)
        if present >= REPLAYS_AT_ONCE:
            raise Unavailable("limit", "this tunnel has enough replays under way; try again when one has ended")
        self._replaying[tunnel_id] = present + 1
        try:
            yield
        finally:
            self._replaying[tunnel_id] -= 1
            if not self._replaying[tunnel_id]:
                del self._replaying[tunnel_id]


_NOWHERE = Peer("127.0.0.1", 0)  # a replay comes in by no edge


def _tier_of(entry: str) -> tuple[str, Tier]:
    """`HOST=TIER`, checked with the settings."""
    host, _, tier = entry.partition("=")
    return host.lower(), "none" if tier == "none" else "strict" if tier == "strict" else "standard"


def _original(shown: Capture, recording: Recording | None) -> replaying.Original:
    """From memory where that is possible: secrets are as they were."""
    is_upgrade = shown.status == 101
    if recording is not None:
        request = recording.request
        return replaying.Original(
            shown.id,
            request.method,
            request.target,
            request.block.headers,
            recording.request_body,
            recording.is_clipped,
            is_upgrade or recording.is_upgrade,
            shown.scheme,
            shown.visitor,
            masked=False,
        )
    return replaying.Original(
        shown.id,
        shown.method.encode("latin-1"),
        shown.path.encode("latin-1"),
        shown.request_headers,
        shown.request_body,
        shown.request_clipped or shown.request_withheld,
        is_upgrade or any(name.lower() == b"sec-websocket-key" for name, _ in shown.request_headers),
        shown.scheme,
        shown.visitor,
        masked=True,
    )


def _waiting(ring: TunnelRing) -> list[Recording]:
    return [recording for recording in reversed(ring) if not recording.stored]


def _shared_evenly(rings: Sequence[TunnelRing], rows: int) -> list[Recording]:
    """The newest that wait, as many of each ring as of any other, where it has so many."""
    waiting = sorted((_waiting(ring) for ring in rings), key=len)
    taken: list[Recording] = []
    for index, some in enumerate(waiting):
        share = (rows - len(taken)) // (len(waiting) - index)
        taken += some[:share]
    return taken


def _seq(capture: Capture) -> int:
    return capture.seq


def _uuid(text: str) -> str:
    """An id with its dashes, from either spelling; what is none finds nothing."""
    try:
        return dashed(uuid.UUID(text).hex)
    except ValueError:
        raise NotFound("request not found") from None


def _require_writer(caller: Caller) -> None:
    if caller.role is Role.READ:
        raise Forbidden("this token may only read")
