"""What passes through the tunnels, kept, searched and sent again.

    edge ──tap──► Recording ──append──► ring of the tunnel (rings.py: memory, as it was)
                                          │ once a second, newest first, shared evenly (capture_writer.py)
                                          ▼
                                     redact (capture_views.py) ──► SQLite (store/captures.py), pruned in small steps

The ring is the queue to the store: the hot path appends and nothing more. Whatever leaves a ring is redacted, on its
way to the store as to a caller. Who may look at what, and change it, is decided here: every method that takes a
`Caller` raises NotFound for what that caller may not see, whether it is there or not.
"""

from __future__ import annotations

import itertools
import uuid
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from rustunnel_py.errors import BadRequest, Forbidden, NotFound, StoreError, Unavailable
from rustunnel_py.hub.capture_views import CaptureViews
from rustunnel_py.hub.capture_writer import CaptureWriter
from rustunnel_py.hub.feed import VIEWERS_MAX, VIEWERS_OF_ONE_MAX, Viewer
from rustunnel_py.hub.replay import TIMES_MAX, Edit, Replayed, Replays
from rustunnel_py.hub.rings import Rings, request_uuid
from rustunnel_py.hub.under_way import newest, so_far, with_id
from rustunnel_py.model.access import Role, may_see
from rustunnel_py.model.capture import Capture, Difference, Message, difference
from rustunnel_py.store.captures import Captures, Filter, Found

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from rustunnel_py.config import InspectConfig
    from rustunnel_py.hub.recording import Recording
    from rustunnel_py.hub.registry import Registry
    from rustunnel_py.hub.under_way import FindUnderWay
    from rustunnel_py.model.access import Caller
    from rustunnel_py.model.redact import Redactor, Tier
    from rustunnel_py.transport.pump import Pump

PAGE_MAX = 1000
IMPORTED_MAX = 1000  # captures at a time
PINNED_MAX = 1000  # of one tunnel; and they have at most half of the bytes that may be kept


class Inspector:
    """`owner_of(tunnel_id)` knows tunnels that have ended without a capture; `wall` is the wall clock.

    `watch` is for the edge: a tap for an exchange that begins. `start` comes before anything is captured, `run` writes
    until it is cancelled; `write`, `flush` and `prune` are its parts. `status` and `view` are for those who look.
    """

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
        self._body_max = config.body_max_bytes
        self._registry = registry
        self._captures = captures
        self._owner_of = owner_of
        self._rings = rings = Rings(config, pump)
        self._views = views = CaptureViews(wall)
        self._writer = writer = CaptureWriter(config, registry, rings, views, captures, wall)
        self._pump = pump
        self._replays = Replays(pump, rings, views)
        self._finders: list[FindUnderWay] = [self._replays.under_way]
        self.watch = rings.watch
        self.start = writer.start
        self.run = writer.run
        self.write = writer.write
        self.flush = writer.flush
        self.prune = writer.prune
        self.status = writer.status
        self.view = views.view

    def on_look(self, find: FindUnderWay) -> None:
        """`find(tunnel_id)` is asked for exchanges that have not ended, when somebody looks for them."""
        self._finders.append(find)

    def not_stored(self, tunnel_id: str) -> int:
        """Captures of a live tunnel that were overwritten before their turn."""
        ring = self._rings.by_tunnel.get(tunnel_id)
        return 0 if ring is None else ring.overwritten

    def set_tier(self, caller: Caller, tunnel_id: str, tier: Tier) -> None:
        """How much is masked of what is captured or looked at from now on, while the tunnel lives."""
        tunnel = self._registry.get(tunnel_id)
        if tunnel is None or not may_see(caller, tunnel.owner):
            raise NotFound("tunnel not found")
        _require_writer(caller)
        ring = self._rings.ring_of(tunnel)
        ring.redactor = self._rings.redactor(tier)
        for recording in ring:
            self._views.forget(recording.seq)

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
        ring = self._rings.by_tunnel.get(tunnel_id)
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
        ring = self._rings.by_tunnel.get(tunnel_id)
        newest = [] if ring is None else list(itertools.islice(reversed(ring), limit))
        captures = {capture.seq: capture for capture in await self._views.ready(newest, keep=True)}
        if len(captures) < limit:
            try:
                found = await self._captures.search(tunnel_id, Filter(), None, limit)
            except StoreError as error:
                if not captures:
                    raise
                self._writer.note_trouble(error)
            else:
                for capture in found.captures:
                    captures[capture.seq] = capture  # the store knows what is pinned
        return sorted(captures.values(), key=_seq, reverse=True)[:limit]

    async def open_ones(self, caller: Caller, tunnel_id: str, limit: int = 50) -> list[Capture]:
        """Exchanges that have not ended, newest first, without bodies and messages. Raises NotFound, StoreError."""
        await self.require(caller, tunnel_id)
        now = self._pump.now
        found = itertools.islice(newest(self._finders, tunnel_id), limit)
        return await self._views.ready([so_far(one, now, contents=False) for one in found], keep=False)

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
        ring = self._rings.by_tunnel.get(tunnel_id)
        waiting = [] if ring is None else [one for one in reversed(ring) if not one.stored and one.seq < before]
        captures = {
            capture.seq: capture for capture in await self._views.ready(waiting, keep=True) if wanted.fits(capture)
        }
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
        """One of them, also one that has not ended (`is_open`).

        Raises NotFound: `request not found`, or `request does not belong to this tunnel`; StoreError.
        """
        await self.require(caller, tunnel_id)
        wanted = request_uuid(request_id)
        stored = await self._stored_one(tunnel_id, wanted)
        if stored is not None:
            return stored
        recording = self._rings.find(tunnel_id, wanted)
        if recording is not None:
            return await self.view(recording)
        going_on = self._under_way(tunnel_id, wanted)
        if going_on is not None:
            for capture in await self._views.ready([going_on], keep=False):
                return capture
        raise await self._missing(caller, wanted)

    def _under_way(self, tunnel_id: str, wanted: str) -> Recording | None:
        one = with_id(self._finders, tunnel_id, wanted.replace("-", ""))
        return None if one is None else so_far(one, self._pump.now, contents=True)

    async def _stored_one(self, tunnel_id: str, wanted: str) -> Capture | None:
        """From the store, unless memory has it and the store is of no use."""
        try:
            return await self._captures.get(tunnel_id, wanted)
        except StoreError:
            if self._rings.find(tunnel_id, wanted) is None:
                raise
            return None

    async def _missing(self, caller: Caller, wanted: str) -> NotFound:
        """The words for a request that this tunnel has not."""
        for ring in self._rings.by_tunnel.values():
            if may_see(caller, ring.owner) and self._rings.find(ring.tunnel_id, wanted) is not None:
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
        wanted = request_uuid(request_id)
        async with self._writer.writing:
            stored = await self._captures.delete(tunnel_id, wanted)
            recording = self._rings.find(tunnel_id, wanted)
            if recording is not None:
                recording.ring.remove(recording)
                recording.stored = True  # a writer that waits may have it in its batch
                self._views.forget(recording.seq)
        if not stored and recording is None:
            raise await self._missing(caller, wanted)

    async def pin(self, caller: Caller, tunnel_id: str, request_id: str, pinned: bool = True) -> Capture:
        """Keep it, whatever its age, until it is unpinned. Raises NotFound, Forbidden, Unavailable, StoreError."""
        await self.require(caller, tunnel_id)
        _require_writer(caller)
        wanted = request_uuid(request_id)
        recording = self._rings.find(tunnel_id, wanted)
        if recording is not None and not recording.stored and not await self._writer.store([recording]):
            raise StoreError("captures cannot be stored just now")
        capture = await self._captures.get(tunnel_id, wanted)
        if capture is None:
            raise await self._missing(caller, wanted)
        if pinned and not capture.pinned:
            share = await self._captures.pinned(tunnel_id)
            retention = self._writer.retention
            most = min((size for size in (retention.bytes_per_tunnel, retention.bytes) if size), default=0) // 2
            if share.rows >= PINNED_MAX or (most and share.bytes >= most):
                raise Unavailable("limit", "this tunnel has as many pinned requests as there may be")
        await self._captures.pin(tunnel_id, wanted, pinned)
        if recording is not None and pinned:
            self._views.pinned.add(capture.seq)
        else:
            self._views.pinned.discard(capture.seq)
        self._views.forget(capture.seq)
        return replace(capture, pinned=pinned)

    async def import_(self, caller: Caller, tunnel_id: str, captures: Sequence[Capture]) -> list[Capture]:
        """Keep captures from elsewhere (a HAR file), redacted, with ids of their own. Raises BadRequest, StoreError."""
        owner = await self.require(caller, tunnel_id)
        _require_writer(caller)
        if len(captures) > IMPORTED_MAX:
            raise BadRequest(f"at most {IMPORTED_MAX} requests at a time")
        ring = self._rings.by_tunnel.get(tunnel_id)
        redactor = self._rings.redactor_for(self._registry.get(tunnel_id)) if ring is None else ring.redactor
        made: list[Capture] = []
        for capture in captures:
            made.append(self._imported(tunnel_id, capture, redactor))
            await trio.lowlevel.checkpoint()
        async with self._writer.writing:
            await self._captures.write(made, {tunnel_id: owner})
        return made

    def _imported(self, tunnel_id: str, capture: Capture, redactor: Redactor) -> Capture:
        most = self._body_max
        request, response = redactor.judge(capture.request_headers), redactor.judge(capture.response_headers)
        sent = redactor.body(capture.request_body[:most], request)
        got = redactor.body(capture.response_body[:most], response)
        return replace(
            capture,
            seq=next(self._rings.numbers),
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
        mine = sum(1 for viewer in self._rings.viewers if viewer.caller.owner == caller.owner)
        if len(self._rings.viewers) >= VIEWERS_MAX or mine >= VIEWERS_OF_ONE_MAX:
            raise Unavailable("limit", "too many live views are open")
        ring = self._rings.ring_of(tunnel)
        viewer = Viewer(caller, tunnel_id)
        self._rings.viewers.add(viewer)
        ring.viewers.append(viewer)
        try:
            yield viewer
        finally:
            self._rings.viewers.discard(viewer)
            ring.viewers.remove(viewer)

    def end_views(self, token_id: str) -> None:
        """A token was revoked or has expired (`Accounts.on_ended`)."""
        for viewer in self._rings.viewers:
            if viewer.caller.token_id == token_id:
                viewer.end()

    # sending again

    async def replay(
        self,
        caller: Caller,
        tunnel_id: str,
        request_id: str,
        edit: Edit | None = None,
        times: int = 1,
    ) -> list[Replayed]:
        """Send a captured request through its tunnel, and tell what came of it, a new capture each time.

        From memory as it was, from the store with what was redacted replaced by `edit`. Raises NotFound, Forbidden,
        BadRequest (what cannot be sent, and why), Unavailable (`gone`: the tunnel has ended; `limit`), StoreError.
        """
        await self.require(caller, tunnel_id)
        _require_writer(caller)
        if not 1 <= times <= TIMES_MAX:
            raise BadRequest(f"times: 1 to {TIMES_MAX}")
        recording = self._rings.find(tunnel_id, request_uuid(request_id))
        shown = await self.get(caller, tunnel_id, request_id)
        if shown.is_open:
            raise Unavailable("open", "the request has not ended yet")
        tunnel = self._registry.get(tunnel_id)
        if tunnel is None:
            raise Unavailable("gone", "the tunnel has ended")
        return await self._replays.run(tunnel, shown, recording, edit or Edit(), times)


def _seq(capture: Capture) -> int:
    return capture.seq


def _require_writer(caller: Caller) -> None:
    if caller.role is Role.READ:
        raise Forbidden("this token may only read")
