"""The policies that a tunnel can have, in the order in which they are asked.

One feature, one file, one line in the list. Each entry makes its policy from the settings, or None where
they switch nothing on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rustunnel_py.hub.gate import Gate
from rustunnel_py.hub.policies import concurrent_visits, requests_per_second

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.hub.gate import Policy
    from rustunnel_py.hub.policies.settings import PolicySettings

ORDER: tuple[Callable[[PolicySettings], Policy | None], ...] = (
    requests_per_second.switched_on,  # before what takes a slot: a refusal is to cost nothing
    concurrent_visits.switched_on,
)


def gate_for(settings: PolicySettings) -> Gate | None:
    """A new tunnel's gate, or None where nothing is switched on for it."""
    made = [policy for switched_on in ORDER if (policy := switched_on(settings)) is not None]
    return Gate(made) if made else None
