"""So many requests (or TCP connections) a second for one tunnel."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rustunnel_py.errors import Hop, HopError
from rustunnel_py.hub.gate import PASS, Answer
from rustunnel_py.model.bucket import Bucket

if TYPE_CHECKING:
    from rustunnel_py.hub.gate import Verdict
    from rustunnel_py.hub.policies.settings import PolicySettings
    from rustunnel_py.hub.registry import Tunnel
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.wire.http1 import RequestHead


class RequestsPerSecond:
    holds: ClassVar[bool] = False

    __slots__ = ("_bucket", "_rate", "refused")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._bucket: Bucket | None = None
        self.refused = 0

    def judge(self, tunnel: Tunnel, visit: Visit, head: RequestHead | None) -> Verdict:
        bucket = self._bucket
        if bucket is None:
            bucket = self._bucket = Bucket(self._rate, visit.arrived)
        wait = bucket.take(visit.arrived)
        if wait == 0.0:
            return PASS
        self.refused += 1
        message = f"This tunnel takes at most {self._rate:g} requests a second."
        return Answer(HopError(Hop.EDGE, 429, "too-many-requests", message, retry_after=wait))

    def leave(self, visit: Visit) -> None: ...


def switched_on(settings: PolicySettings) -> RequestsPerSecond | None:
    return RequestsPerSecond(settings.requests_per_second) if settings.requests_per_second > 0 else None
