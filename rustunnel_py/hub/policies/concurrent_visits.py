"""So many visits at a time for one tunnel."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rustunnel_py.errors import Hop, HopError
from rustunnel_py.hub.gate import PASS, Answer

if TYPE_CHECKING:
    from rustunnel_py.hub.gate import Verdict
    from rustunnel_py.hub.policies.settings import PolicySettings
    from rustunnel_py.hub.registry import Tunnel
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.wire.http1 import RequestHead

RETRY_SECONDS = 1.0  # a visit ends every moment; nobody can say when


class ConcurrentVisits:
    holds: ClassVar[bool] = True

    __slots__ = ("_limit", "now", "refused")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.now = 0
        self.refused = 0

    def judge(self, tunnel: Tunnel, visit: Visit, head: RequestHead | None) -> Verdict:
        if self.now < self._limit:
            self.now += 1
            return PASS
        self.refused += 1
        message = f"This tunnel serves at most {self._limit} visits at a time."
        return Answer(HopError(Hop.EDGE, 503, "too-many-visits", message, retry_after=RETRY_SECONDS))

    def leave(self, visit: Visit) -> None:
        self.now -= 1


def switched_on(settings: PolicySettings) -> ConcurrentVisits | None:
    return ConcurrentVisits(settings.concurrent_visits) if settings.concurrent_visits > 0 else None
