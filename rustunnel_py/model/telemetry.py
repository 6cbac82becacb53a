"""What is measured of a tunnel: a snapshot of nine numbers, points of its history, finished requests; the formulas.

`Samples` keeps durations for five minutes, in a bounded buffer. Times are seconds on one monotonic clock, durations
milliseconds. A window's edge is inclusive: a sample of exactly 60 s or 300 s ago still counts.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

# What JavaScript's `trim` takes away (ECMA-262, white space and line terminators); not quite what Python's does.
BLANKS = (
    "\t\n\v\f\r \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029"
    "\u202f\u205f\u3000\ufeff"
)
SHORT_SECONDS = 60.0
LONG_SECONDS = 300.0
SAMPLES_MAX = 4096  # 32 KiB a tunnel; of more requests in five minutes the newest are looked at
REGION_MAX = 16
METHOD_MAX = 16
PATH_MAX = 512


@dataclass(frozen=True, slots=True)
class Metrics:
    """`ttl`: connections since the start; `opn`: open now; means over one and five minutes, median and ninth decile
    over five, in ms or None without samples; `requests`, `errors`, `bytes`: as whoever measures counts them.
    """

    ttl: int
    opn: int
    rt1_ms: float | None
    rt5_ms: float | None
    p50_ms: float | None
    p90_ms: float | None
    requests: int
    errors: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The newest metrics of one tunnel."""

    tunnel_id: str
    received_at: datetime
    region: str | None
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class MetricsPoint:
    """A snapshot kept as history."""

    captured_at: datetime
    ttl: int
    opn: int
    rt1_ms: float | None
    p90_ms: float | None
    requests: int
    errors: int
    bytes: int


@dataclass(frozen=True, slots=True)
class RequestEvent:
    """One finished request, or WebSocket upgrade (`is_websocket`)."""

    started_at: datetime
    method: str
    path: str
    status: int
    duration_ms: float
    response_bytes: int | None
    error: bool
    is_websocket: bool


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """An event as kept: all of one upload have the same `ingested_at`."""

    ingested_at: datetime
    event: RequestEvent


class Samples:
    """Durations of the requests that started in the last five minutes, as far as SAMPLES_MAX goes."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES_MAX)

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, started: float, duration_ms: float) -> None:
        self._samples.append((started, duration_ms))

    def read(self, now: float) -> tuple[float | None, float | None, float | None, float | None]:
        """rt1, rt5, p50, p90 in ms; None without samples. Samples come in the order of their end, not start."""
        samples = [(started, ms) for started, ms in self._samples if now - started <= LONG_SECONDS]
        if len(samples) < len(self._samples):
            self._samples.clear()
            self._samples.extend(samples)
        recent = [ms for started, ms in samples if now - started <= SHORT_SECONDS]
        all_of_them = sorted(ms for _, ms in samples)
        return mean(recent), mean(all_of_them), nearest_rank(all_of_them, 0.5), nearest_rank(all_of_them, 0.9)


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def nearest_rank(ordered: Sequence[float], quantile: float) -> float | None:
    """Element number max(1, ceil(n * q)) of a sorted sequence; no interpolation."""
    if not ordered:
        return None
    # A product such as 10 * 0.9 may come out a hair above the whole number that it is.
    rank = max(1, math.ceil(round(len(ordered) * quantile, 9)))
    return ordered[rank - 1]


def clean_region(region: str | None) -> str | None:
    """Trimmed, cut to 16 characters, upper case; None where nothing is left."""
    cut = (region or "").strip(BLANKS)[:REGION_MAX].upper()
    return cut or None


def clean_path(path: str) -> str:
    """Without blanks around it, query and fragment, with a leading slash, at most 512 characters."""
    path = path.strip(BLANKS)
    for mark in "?#":
        path = path.partition(mark)[0]
    if not path.startswith("/"):
        path = "/" + path
    return path[:PATH_MAX]


def clean_method(method: str) -> str:
    return method.strip(BLANKS).upper()[:METHOD_MAX]


def whole_ms(instant: datetime) -> datetime:
    """As instants are shown."""
    return instant.replace(microsecond=instant.microsecond // 1000 * 1000)
