"""What can be switched on for a tunnel."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """0 is off. `requests_per_second` has a burst of one second's worth."""

    requests_per_second: float = 0.0
    concurrent_visits: int = 5000  # what one address may open: a load test over all its connections is served
