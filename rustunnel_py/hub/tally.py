"""What is counted of a tunnel's visits: whole numbers that the hot path adds to and a scrape reads."""

from __future__ import annotations

from bisect import bisect_left

BOUNDS_MS = (5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0, 30_000.0)
"""Upper bounds of the histogram of durations, inclusive; the last bucket has none."""


class Tally:
    """`statuses[n]` counts replies of n hundred and something, `statuses[0]` what ended without any.

    `buckets` are not cumulative. Bytes are payload: of HTTP bodies, and all bytes of TCP and upgraded visits.
    """

    __slots__ = ("buckets", "bytes_in", "bytes_out", "milliseconds", "statuses", "visits")

    def __init__(self) -> None:
        self.visits = 0  # of TCP, begun
        self.statuses = [0] * 10
        self.buckets = [0] * (len(BOUNDS_MS) + 1)
        self.milliseconds = 0.0
        self.bytes_in = 0
        self.bytes_out = 0

    def request(self, status: int, milliseconds: float, bytes_in: int, bytes_out: int) -> None:
        """One HTTP request is over; `status` has at most three digits."""
        self.statuses[status // 100] += 1
        if status != 101:  # how long a WebSocket was open says nothing of how quick its service is
            self.buckets[bisect_left(BOUNDS_MS, milliseconds)] += 1
            self.milliseconds += milliseconds
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out

    def add(self, other: Tally) -> None:
        self.visits += other.visits
        self.statuses = [mine + theirs for mine, theirs in zip(self.statuses, other.statuses, strict=True)]
        self.buckets = [mine + theirs for mine, theirs in zip(self.buckets, other.buckets, strict=True)]
        self.milliseconds += other.milliseconds
        self.bytes_in += other.bytes_in
        self.bytes_out += other.bytes_out
