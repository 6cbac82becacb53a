"""What can be switched on for a tunnel."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """0 is off. `requests_per_second` has a burst of one second's worth."""

    requests_per_second: float = 0.0
    concurrent_visits: int = 1000  # as many as two of the stock agents' sessions carry streams (400 each), and some
