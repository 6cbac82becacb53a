"""From the rings to the store: once a second, newest first, shared evenly over tunnels; and pruning in small steps.

The rings are the queue: what is overwritten before its turn is counted. Trouble of the store stops nothing here: it
is told once, and tried again the next second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

import structlog
import trio

from rustunnel_py.errors import StoreError
from rustunnel_py.store.captures import ROWS_A_TRANSACTION, Captures, Retention

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rustunnel_py.config import InspectConfig
    from rustunnel_py.hub.capture_views import CaptureViews
    from rustunnel_py.hub.recording import Recording, TunnelRing
    from rustunnel_py.hub.registry import Registry
    from rustunnel_py.hub.rings import Rings

WRITE_SECONDS = 1.0
AGE_EVERY = timedelta(minutes=1)
PRUNE_STEPS = 24  # a second; each is PRUNED_AT_ONCE rows
GOODBYE_SECONDS = 10.0  # what is not stored by then when the server stops is lost, and said so

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


class CaptureWriter:
    """`writing` is held while rows are on their way, and by whoever changes rows otherwise."""

    def __init__(
        self,
        config: InspectConfig,
        registry: Registry,
        rings: Rings,
        views: CaptureViews,
        captures: Captures,
        wall: Callable[[], datetime],
    ) -> None:
        self._rows_per_second = config.rows_per_second
        self._registry = registry
        self._rings = rings
        self._views = views
        self._captures = captures
        self._wall = wall
        self._stored = 0
        self._failing = False
        self._aged = datetime.fromtimestamp(0, UTC)  # when age was last looked at, to the end
        self.writing = trio.Lock()
        self.retention = Retention(
            seconds=config.keep_days * 86400.0,
            rows_per_tunnel=config.keep_per_tunnel,
            bytes_per_tunnel=config.keep_bytes_per_tunnel,
            rows=config.keep_in_all,
            bytes=config.keep_bytes,
        )

    async def start(self) -> None:
        """Before anything is captured: numbers go on where the store ends."""
        await self.count_anew()
        self._rings.number_from(self._captures.last_seq + 1)

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
            lost = self._rings.waiting
            if lost:
                log.warning("captures were not stored before the end", captures=lost)

    async def write(self) -> None:
        """What waits, newest first, at most `rows_per_second` shared evenly; and what ended tunnels left."""
        self._views.set_clock()
        rings = self._rings.by_tunnel.values()
        ended = [ring for ring in rings if self._registry.get(ring.tunnel_id) is None]
        live = [ring for ring in rings if self._registry.get(ring.tunnel_id) is not None]
        taken, settled = _shared_evenly(live, self._rows_per_second)
        if await self.store(taken):
            for ring, number in settled.items():
                ring.settled = number
        for ring in ended:
            if not self._rows_per_second or (await self.store(list(ring.waiting())) and not any(ring.waiting())):
                self._rings.let_go(ring)

    async def flush(self) -> None:
        """All that waits, whatever the rate; nothing where memory is all there shall be."""
        if not self._rows_per_second:
            return
        for ring in list(self._rings.by_tunnel.values()):
            await self.store(list(ring.waiting()))

    async def prune(self) -> None:
        """Some steps towards what may be kept. Age is looked at now and then: that reads rows, the rest only counts."""
        now = self._wall()
        by_age = abs(now - self._aged) >= AGE_EVERY
        retention = self.retention if by_age else replace(self.retention, seconds=0.0)
        try:
            for _ in range(PRUNE_STEPS):
                if not await self._captures.prune(retention, now):
                    if by_age:
                        self._aged = now
                    return
        except StoreError as error:
            self.note_trouble(error)

    async def store(self, recordings: Sequence[Recording]) -> bool:
        """Redact in slices, write in batches. False: the store does not take it; it stays in the rings."""
        async with self.writing:
            for at in range(0, len(recordings), ROWS_A_TRANSACTION):
                batch = [recording for recording in recordings[at : at + ROWS_A_TRANSACTION] if not recording.stored]
                captures = await self._views.ready(batch, keep=False)
                batch = [recording for recording in batch if not recording.stored]
                owners = {recording.ring.tunnel_id: recording.ring.owner for recording in batch}
                try:
                    await self._captures.write(captures, owners)
                except StoreError as error:
                    self.note_trouble(error)
                    return False
                for recording in batch:
                    recording.stored = True
                self._stored += len(batch)
        if recordings and self._failing:
            self._failing = False
            log.info("captures are stored again", not_stored=self.status().not_stored)
            await self.count_anew()
        return True

    async def count_anew(self) -> None:
        """At the start, and after trouble: a batch that failed may be there all the same."""
        try:
            await self._captures.load()
        except StoreError as error:
            self.note_trouble(error)

    def note_trouble(self, error: StoreError) -> None:
        if not self._failing:
            log.error("captures cannot be stored; the newest stay in memory", error=str(error))
        self._failing = True

    def status(self) -> InspectorStatus:
        """Counts; costs a look at every recording in memory."""
        shares = self._captures.shares.values()
        return InspectorStatus(
            in_memory=self._rings.captures,
            bytes_in_memory=self._rings.bytes,
            waiting=self._rings.waiting,
            stored=self._stored,
            not_stored=self._rings.overwritten + self._views.unreadable,
            in_store=sum(share.rows for share in shares),
            bytes_in_store=sum(share.bytes for share in shares),
            lossy=self._failing,
        )


def _shared_evenly(rings: Sequence[TunnelRing], rows: int) -> tuple[list[Recording], dict[TunnelRing, int]]:
    """The newest that wait, as many of each ring as of any other, where it has so many; and the rings that then have
    nothing left, by the number of their newest.
    """
    taken: list[Recording] = []
    settled: dict[TunnelRing, int] = {}
    sources = [(ring, ring.waiting()) for ring in rings]
    while sources and len(taken) < rows:
        share = max(1, (rows - len(taken)) // len(sources))
        more = []
        for ring, source in sources:
            wanted = min(share, rows - len(taken))
            some = list(islice(source, wanted))
            taken += some
            if len(some) == wanted:
                more.append((ring, source))
            elif ring:
                settled[ring] = ring.newest.seq
        sources = more
    return taken, settled
