"""Calls a minute and user (or address, before a user is known), told in headers and refused with 429."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio
from quart import g

from rustunnel_py.errors import Denied
from rustunnel_py.model.window import Windows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quart import Response

    from rustunnel_py.model.window import Allowance

WINDOW_SECONDS = 60.0


class LimitReached(Denied):
    """Too many calls; `seconds` until the next one is taken."""

    status = 429

    def __init__(self, limit: int, seconds: int) -> None:
        super().__init__(f"Too many requests: {limit} a minute are allowed.")
        self.seconds = seconds


class CallLimits:
    """`per_route` are routes with a counter of their own; all the others share one."""

    def __init__(self, shared: int, per_route: Mapping[str, int]) -> None:
        self._shared = Windows(shared, WINDOW_SECONDS)
        self._per_route = {route: Windows(limit, WINDOW_SECONDS) for route, limit in per_route.items()}

    def take(self, route: str, source: str) -> None:
        """Count a call of the current request. Raises LimitReached."""
        allowance = self._per_route.get(route, self._shared).take(source, trio.current_time())
        g.allowance = allowance
        if not allowance.allowed:
            raise LimitReached(allowance.limit, _whole(allowance.reset_seconds))


def tell_allowance(response: Response) -> None:
    """Add what is left to the answer, where the call was counted."""
    allowance: Allowance | None = g.get("allowance")
    if allowance is None:
        return
    response.headers["x-ratelimit-limit"] = str(allowance.limit)
    response.headers["x-ratelimit-remaining"] = str(allowance.remaining)
    response.headers["x-ratelimit-reset"] = str(_whole(allowance.reset_seconds))
    if not allowance.allowed:
        response.headers["Retry-After"] = str(_whole(allowance.reset_seconds))


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))
