"""Token buckets: so many a second, in bursts of one second's worth; and a bounded map of them by source.

Time comes in: seconds on any clock that does not run backwards.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

BUCKETS_MAX = 65_536  # sources remembered at a time: some 10 MiB; who is pushed out starts with a full bucket


class Bucket:
    """`rate` tokens a second, at most `burst` at once (by default one second's worth, at least one)."""

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, rate: float, now: float, burst: float | None = None) -> None:
        if rate <= 0:
            raise ValueError("a bucket without a rate never fills")
        self._rate = rate
        self._burst = max(1.0, rate if burst is None else burst)
        self._level = self._burst
        self._at = now

    def __repr__(self) -> str:
        return f"<Bucket {self._level:.1f} of {self._burst:g}, {self._rate:g}/s>"

    def take(self, now: float) -> float:
        """Take one token: 0.0 where there was one, else the seconds until there is, and nothing is taken."""
        level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if level >= 1.0:
            self._level = level - 1.0
            return 0.0
        self._level = level
        return (1.0 - level) / self._rate


class Buckets:
    """One bucket a source, for the sources that came last."""

    __slots__ = ("_buckets", "_most", "_rate")

    def __init__(self, rate: float, most: int = BUCKETS_MAX) -> None:
        self._rate = rate
        self._most = most
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, source: str, now: float) -> float:
        """As `Bucket.take`, for this source."""
        bucket = self._buckets.get(source)
        if bucket is None:
            if len(self._buckets) >= self._most:
                self._buckets.popitem(last=False)
            bucket = self._buckets[source] = Bucket(self._rate, now)
        else:
            self._buckets.move_to_end(source)
        return bucket.take(now)


def source_of(ip: str) -> str:
    """What counts as one source: an IPv4 address, or the /64 of an IPv6 one, which is one subscriber's."""
    if ":" not in ip:
        return ip
    address = ipaddress.IPv6Address(ip.partition("%")[0])
    mapped = address.ipv4_mapped
    return str(mapped) if mapped is not None else f"{int(address) >> 64:016x}/64"
