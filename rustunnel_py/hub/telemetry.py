"""Telemetry of tunnels: what agents post, what the server measures itself, and the history of both.

* Once something was posted for a tunnel, that counts, as posted. Else, once it has carried its first visit, what
  the server measures: totals since the tunnel was made, durations from a request's head to the last byte of its reply.
* History has one point each POINT_SECONDS and tunnel. The request log is what was posted; of a tunnel whose agent
  posts nothing, the visits since its first one came, as an upload that the server makes to itself: when they are
  written, and when somebody asks, the new ones get one instant, the cursor of whoever asks for more. They are written
  once a second from when it is clear that nobody posts (POST_SECONDS), at most ROWS_PER_SECOND; what is more than that
  is dropped and counted.
* A visit costs one call and two appends; everything else is done when somebody asks, or once a second, with a turn for
  others after each millisecond or so.

Instants are whole milliseconds, as they are shown: who sends one back as a cursor must not get the same rows again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
import trio

from rustunnel_py.errors import StoreError
from rustunnel_py.model.telemetry import (
    LoggedRequest,
    Metrics,
    MetricsPoint,
    RequestEvent,
    Samples,
    Snapshot,
    clean_method,
    clean_path,
    clean_region,
    whole_ms,
)
from rustunnel_py.store.instants import utc_now
from rustunnel_py.store.telemetry import REQUESTS_MAX, TelemetryBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from rustunnel_py.hub.registry import Registry, TellVisit, Tunnel
    from rustunnel_py.store.telemetry import TelemetryBook

POINT_SECONDS = 10.0
WRITE_SECONDS = 1.0
PRUNE_SECONDS = 600.0
REQUESTS_KEPT = timedelta(hours=24)
POINTS_KEPT = timedelta(days=7)
LATE_SECONDS = 2.0  # visits that end with their tunnel end a moment later
POINTS_AT_LEAST = 16  # in one second; of many tunnels a fifth, so that those that came together are soon spread
LOGS_A_TURN = 100  # of which each has few rows
POST_SECONDS = 10.0  # the CLI's first upload comes 2 s after its agent
MEASURED_EVENTS_MAX = 500  # of one tunnel in memory, and in one second; as many as the inspector keeps
UPLOAD_EVENTS = 200  # that get one instant: as many as the CLI sends at a time, and as a page of the log has
ROWS_PER_SECOND = 1000  # of measured visits, over all tunnels: about 1 % of a core
PENDING_MAX = 50_000  # rows that wait for a disk that does not answer; past that new ones are dropped and counted
ERROR_STATUS = 500
STATUS_MAX = 599  # the contract knows no higher one; a service may send any three digits
VISITOR_LEFT = 499  # what the edge notes for a visitor who did not wait
SWITCHED = 101
MILLISECOND = timedelta(milliseconds=1)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Telemetry:
    """`clock` is monotonic seconds, `now` the wall clock; `region` is this server's, None where it has no name."""

    def __init__(
        self,
        book: TelemetryBook,
        registry: Registry,
        *,
        region: str | None,
        clock: Callable[[], float] = trio.current_time,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._book = book
        self._registry = registry
        self._region = clean_region(region)
        self._clock = clock
        self._now = now
        self._posted: dict[str, Snapshot] = {}
        self._points: dict[str, float] = {}  # when the last one of a tunnel was taken
        self._measured: dict[str, Measured] = {}
        self._ended: dict[str, float] = {}  # when it was seen that a tunnel is gone
        self._pending = TelemetryBatch()
        self._writing = trio.Lock()
        self._pruned: float | None = None
        self.dropped = 0

    # what comes in

    def post(self, tunnel_id: str, region: str | None, metrics: Metrics, events: Iterable[RequestEvent]) -> None:
        """An upload of the tunnel's agent; the tunnel is active and the caller may."""
        snapshot = Snapshot(tunnel_id, whole_ms(self._now()), clean_region(region), metrics)
        self._posted[tunnel_id] = snapshot
        measured = self._measured.get(tunnel_id)
        if measured is not None:
            measured.drop_log()  # what it posts has them, too
        self._take_point(snapshot)
        for event in events:
            cleaned = replace(event, method=clean_method(event.method), path=clean_path(event.path))
            if self._has_room():
                self._pending.requests.append((tunnel_id, LoggedRequest(snapshot.received_at, cleaned)))

    def watch(self, tunnel: Tunnel) -> TellVisit:
        """Measure a tunnel from now on: `tell` of `hub.registry.Tunnel`."""
        before = self._measured.get(tunnel.id)
        if before is not None and before.is_of(tunnel):
            return before.visited
        measured = Measured(tunnel, self._clock, self._now)
        if before is not None:  # another tunnel with its id came in its place
            self._drop(tunnel.id)
            measured.instant = before.instant
        self._measured[tunnel.id] = measured
        return measured.visited

    def forget(self, tunnel_id: str) -> None:
        """The tunnel has ended; its history stays, and what its last visits still tell comes into it."""
        self._ended.setdefault(tunnel_id, self._clock())

    def _drop(self, tunnel_id: str) -> None:
        self._ended.pop(tunnel_id, None)
        self._points.pop(tunnel_id, None)
        posted = self._posted.pop(tunnel_id, None)
        measured = self._measured.pop(tunnel_id, None)
        if measured is not None and posted is None:
            self._store(tunnel_id, measured, MEASURED_EVENTS_MAX)

    # what is asked

    def live(self, tunnel_ids: Iterable[str]) -> list[Snapshot]:
        """The newest snapshot of each tunnel that has one."""
        return [found for tunnel_id in tunnel_ids if (found := self._snapshot(tunnel_id)) is not None]

    def _snapshot(self, tunnel_id: str) -> Snapshot | None:
        posted = self._posted.get(tunnel_id)
        if posted is not None:
            return posted
        measured = self._measured.get(tunnel_id)
        return None if measured is None else measured.snapshot(self._region)

    async def points(self, tunnel_id: str, first: datetime, last: datetime) -> list[MetricsPoint]:
        """Oldest first. Raises StoreError."""
        await self.flush()
        return await self._book.points(tunnel_id, first, last)

    async def requests(self, tunnel_id: str, after: datetime | None, limit: int) -> list[LoggedRequest]:
        """After an instant: oldest first; without one: newest first. Raises StoreError."""
        measured = self._measured.get(tunnel_id)
        waiting = [] if measured is None or tunnel_id in self._posted else list(measured.collect())
        await self.flush()
        if after is None:
            stored = await self._book.newest_requests(tunnel_id, limit)
            if stored:  # some may have been written meanwhile
                waiting = [logged for logged in waiting if logged.ingested_at > stored[0].ingested_at]
            return (waiting[::-1] + stored)[:limit]
        stored = await self._book.requests_after(tunnel_id, after, limit + 1)
        known = stored[-1].ingested_at if stored else after
        found = stored + [logged for logged in waiting if logged.ingested_at > known]
        return found if len(found) <= limit else _whole_uploads(found, limit)

    # housekeeping

    async def run(self) -> None:
        """Take points of what is measured here, write, prune, and forget tunnels that ended."""
        try:
            while True:
                await self._look_around()
                await self.flush()
                await self._prune()
                await trio.sleep(WRITE_SECONDS)
        finally:
            for tunnel_id, measured in self._measured.items():
                if tunnel_id not in self._posted and measured.is_unposted:
                    self._store(tunnel_id, measured, MEASURED_EVENTS_MAX)
            await self.flush()

    async def _look_around(self) -> None:
        """Points that are due, and what is to be written of logs."""
        logs: dict[str, Measured] = {}
        known = list(self._measured.keys() | self._posted.keys())
        points_left = max(POINTS_AT_LEAST, len(known) * 2 // int(POINT_SECONDS))
        for tunnel_id in known:
            tunnel = self._registry.get(tunnel_id)
            if tunnel is None:
                self.forget(tunnel_id)
                if self._clock() - self._ended[tunnel_id] >= LATE_SECONDS:
                    self._drop(tunnel_id)
            elif tunnel_id not in self._posted:
                measured = self._measured.get(tunnel_id)
                if measured is None:
                    continue
                if not tunnel.links:
                    measured.snapshot(self._region)  # it stays as it is now; a point would be the same again
                elif points_left and self._is_due(tunnel_id):
                    snapshot = measured.snapshot(self._region)
                    if snapshot is not None:
                        points_left -= 1
                        self._take_point(snapshot)
                        await trio.lowlevel.checkpoint()
                if measured.has_log and measured.is_unposted:
                    logs[tunnel_id] = measured
        for number, (tunnel_id, measured) in enumerate(logs.items()):
            if tunnel_id not in self._posted:
                self._store(tunnel_id, measured, max(1, ROWS_PER_SECOND // len(logs)))
            if number % LOGS_A_TURN == LOGS_A_TURN - 1:
                await trio.lowlevel.checkpoint()

    def _store(self, tunnel_id: str, measured: Measured, most: int) -> None:
        """The newest `most` of a measured log are to be written."""
        self.dropped += measured.trim(most)
        logged = measured.collect()
        for one in logged:
            if self._has_room():
                self._pending.requests.append((tunnel_id, one))
        logged.clear()

    def _is_due(self, tunnel_id: str) -> bool:
        """Its next point."""
        last = self._points.get(tunnel_id)
        return last is None or self._clock() - last >= POINT_SECONDS

    def _take_point(self, snapshot: Snapshot) -> None:
        if not self._is_due(snapshot.tunnel_id) or not self._has_room():
            return
        self._points[snapshot.tunnel_id] = self._clock()
        metrics = snapshot.metrics
        point = MetricsPoint(
            snapshot.received_at,
            metrics.ttl,
            metrics.opn,
            metrics.rt1_ms,
            metrics.p90_ms,
            metrics.requests,
            metrics.errors,
            metrics.bytes,
        )
        self._pending.points.append((snapshot.tunnel_id, point))

    def _has_room(self) -> bool:
        if len(self._pending.points) + len(self._pending.requests) < PENDING_MAX:
            return True
        self.dropped += 1
        return False

    async def flush(self) -> None:
        """Write what came together; what cannot be written is tried again, within PENDING_MAX."""
        with trio.CancelScope(shield=True):
            async with self._writing:
                batch, self._pending = self._pending, TelemetryBatch()
                if not (batch.points or batch.requests):
                    return
                try:
                    await self._book.write(batch)
                except StoreError as error:
                    log.warning("telemetry could not be written", error=str(error))
                    self._put_back(batch)

    def _put_back(self, batch: TelemetryBatch) -> None:
        self._pending.points[:0] = batch.points
        self._pending.requests[:0] = batch.requests
        excess = len(self._pending.points) + len(self._pending.requests) - PENDING_MAX
        if excess > 0:
            self.dropped += min(excess, len(self._pending.requests))
            del self._pending.requests[:excess]

    async def _prune(self) -> None:
        now = self._clock()
        if self._pruned is not None and now - self._pruned < PRUNE_SECONDS:
            return
        self._pruned = now
        wall = self._now()
        try:
            await self._book.prune(wall - REQUESTS_KEPT, wall - POINTS_KEPT, REQUESTS_MAX)
        except StoreError as error:
            log.warning("old telemetry could not be forgotten", error=str(error))


class Measured:
    """What the server sees of one tunnel's visits by itself."""

    __slots__ = (
        "_body_bytes",
        "_clock",
        "_events",
        "_frozen",
        "_log",
        "_now",
        "_passed",
        "_quiet_since",
        "_samples",
        "_tunnel",
        "_unfinished",
        "instant",
    )

    def __init__(self, tunnel: Tunnel, clock: Callable[[], float], now: Callable[[], datetime]) -> None:
        self._tunnel = tunnel
        self._clock = clock
        self._now = now
        self._quiet_since = clock()
        self._samples = Samples()
        self._events: deque[tuple[float, bytes, bytes, int, float, int, bool]] = deque(maxlen=MEASURED_EVENTS_MAX)
        self._log: deque[LoggedRequest] = deque(maxlen=MEASURED_EVENTS_MAX)  # with their instant, not written yet
        self.instant: datetime | None = None  # of the newest in the log, ever
        self._frozen: Snapshot | None = None  # as it was when the agent left, until it is back
        self._unfinished = 0  # errors that the tally does not count as such: by their status they are none
        self._passed = tunnel.tally.bytes_out  # when the last visit had ended
        self._body_bytes = 0  # of replies; what passed after an upgrade is none

    def is_of(self, tunnel: Tunnel) -> bool:
        return self._tunnel is tunnel

    def visited(self, method: bytes, target: bytes, status: int, milliseconds: float, visit_id: str, cut: bool) -> None:
        """One visit has ended: what `Tunnel.tell` calls, right after the tally, so the size of its reply is what that
        has gained."""
        ended = self._clock()
        passed = self._tunnel.tally.bytes_out
        size = passed - self._passed
        self._passed = passed
        if cut or status == VISITOR_LEFT:
            self._unfinished += status < ERROR_STATUS and _is_error(status, cut)
        if status != SWITCHED:  # how long a WebSocket was open says nothing of how quick its service is
            self._samples.add(ended - milliseconds / 1000.0, milliseconds)
            self._body_bytes += size
        self._events.append((ended, method, target, status, milliseconds, size, cut))

    def snapshot(self, region: str | None) -> Snapshot | None:
        """None before the first visit; frozen while no agent is attached."""
        tunnel = self._tunnel
        if not tunnel.requests:
            return None
        if tunnel.links:
            self._frozen = None
        elif self._frozen is not None:
            return self._frozen
        now = self._clock()
        at = now if tunnel.links.away_since is None else min(now, tunnel.links.away_since)
        rt1, rt5, p50, p90 = self._samples.read(at)
        tally = tunnel.tally
        ended = sum(tally.statuses)
        metrics = Metrics(
            ttl=tunnel.requests,
            opn=max(0, tunnel.requests - ended),
            rt1_ms=rt1,
            rt5_ms=rt5,
            p50_ms=p50,
            p90_ms=p90,
            requests=ended,
            errors=tally.statuses[0] + sum(tally.statuses[5:]) + self._unfinished,
            bytes=self._body_bytes,
        )
        snapshot = Snapshot(tunnel.id, whole_ms(self._now() - timedelta(seconds=now - at)), region, metrics)
        if not tunnel.links:
            self._frozen = snapshot
        return snapshot

    # the log

    @property
    def is_unposted(self) -> bool:
        """Its agent would have posted something by now."""
        return self._clock() - self._quiet_since >= POST_SECONDS

    def drop_log(self) -> None:
        self._events.clear()
        self._log.clear()
        self._quiet_since = self._clock()

    @property
    def has_log(self) -> bool:
        """Some visits are not written."""
        return bool(self._log or self._events)

    def trim(self, most: int) -> int:
        """Leave the newest `most` of the log; gives how many were left out."""
        excess = max(0, len(self._log) + len(self._events) - most)
        for _ in range(excess):
            (self._log or self._events).popleft()
        return excess

    def collect(self) -> deque[LoggedRequest]:
        """The log as far as it is not written; visits that ended since the last call get their instant."""
        if self._events:
            now = self._now()
            noon = now - timedelta(seconds=self._clock())  # where the monotonic clock is 0, on the wall
            at = whole_ms(now)
            for number, (ended, method, target, status, milliseconds, size, cut) in enumerate(self._events):
                if number % UPLOAD_EVENTS == 0:
                    at = at if self.instant is None or at > self.instant else self.instant + MILLISECOND
                    self.instant = at
                wall = noon + timedelta(seconds=ended)
                self._log.append(_logged(at, wall, method, target, status, milliseconds, size, cut))
            self._events.clear()
        return self._log


def _logged(
    at: datetime, ended: datetime, method: bytes, target: bytes, status: int, milliseconds: float, size: int, cut: bool
) -> LoggedRequest:
    event = RequestEvent(
        started_at=ended - timedelta(milliseconds=milliseconds),
        method=clean_method(method.decode("latin-1")),
        path=clean_path(target.decode("latin-1")),
        status=min(status, STATUS_MAX) if status >= 100 else VISITOR_LEFT,
        duration_ms=milliseconds,
        response_bytes=None if status == SWITCHED else size,  # the contract counts none of a WebSocket
        error=_is_error(status, cut),
        is_websocket=status == SWITCHED,
    )
    return LoggedRequest(at, event)


def _is_error(status: int, cut: bool) -> bool:
    """As the CLI counts: failed, not waited for, or not whole; a WebSocket has worked once it was opened."""
    return status >= ERROR_STATUS or status < 100 or status == VISITOR_LEFT or (cut and status != SWITCHED)


def _whole_uploads(found: list[LoggedRequest], limit: int) -> list[LoggedRequest]:
    """At most `limit`, and no upload in parts where that can be: its events have one instant, which is the cursor of
    whoever asks for more."""
    page = found[:limit]
    cut_off = found[limit].ingested_at
    whole = [logged for logged in page if logged.ingested_at != cut_off]
    return whole or page
