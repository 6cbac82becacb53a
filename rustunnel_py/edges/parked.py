"""Visitors that wait: for a link that comes back, for a policy's delay, for a slow function. The trio side of an edge.

A parked visitor is a trio task with a cancel scope. The visitor cancels it when its connection is lost; else
the task touches the visitor through `pump.call` with what it waited for, and the visitor takes its request up again.
What a parked visitor sent meanwhile is its connection's unpaid input, so the bound on their number bounds bytes, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

from rustunnel_py.errors import Hop, HopError
from rustunnel_py.hub.gate import Answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rustunnel_py.edges.limits import Census
    from rustunnel_py.hub.gate import Verdict
    from rustunnel_py.hub.link import Link
    from rustunnel_py.hub.registry import Tunnel
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.wire.sink import Crashable

SLOW_THREADS = 2  # slow functions (password hashes) at a time: they must not take the processor from the traffic
RETRY_AWAY_SECONDS = 5.0  # an agent's own pauses between tries are up to 15 s, and mostly about 1 s

Outcome = TypeVar("Outcome")


class Parking:
    """Where an edge's visitors wait, as many as `census` lets. `owns(tunnel)`: the tunnel still has its address."""

    def __init__(
        self,
        pump: Pump,
        nursery: trio.Nursery,
        owns: Callable[[Tunnel], bool],
        census: Census,
    ) -> None:
        self._pump = pump
        self._nursery = nursery
        self._owns = owns
        self._census = census
        self._threads = trio.CapacityLimiter(SLOW_THREADS)

    def __repr__(self) -> str:
        return f"<Parking {self._census!r}>"

    def for_link(
        self, by: Crashable, tunnel: Tunnel, visit: Visit, resume: Callable[[Link | HopError], None]
    ) -> trio.CancelScope:
        """Wait until the tunnel is served again; `resume` hears the link, or the 503 or 404 that it came to.

        Raises HopError where nobody may wait (any more).
        """
        seconds = self._census.parking.wait_seconds
        if seconds <= 0:
            raise agent_away(tunnel, self._pump.now)

        async def wait() -> Link | HopError:
            with trio.move_on_after(seconds):
                while self._owns(tunnel):
                    link = tunnel.links.pick(visit)
                    if link is not None:
                        return link
                    await tunnel.links.changed()
                return no_such_tunnel()
            return agent_away(tunnel, trio.current_time())

        return self._park(by, tunnel, wait, resume)

    def for_seconds(
        self, by: Crashable, tunnel: Tunnel, seconds: float, resume: Callable[[None], None]
    ) -> trio.CancelScope:
        """A policy's delay. Raises HopError where nobody may wait."""

        async def wait() -> None:
            await trio.sleep(seconds)

        return self._park(by, tunnel, wait, resume)

    def for_slow(
        self,
        by: Crashable,
        tunnel: Tunnel,
        function: Callable[[], Verdict],
        resume: Callable[[Verdict], None],
    ) -> trio.CancelScope:
        """A function that takes long, in a thread. If it raises, the visit is refused. Raises HopError."""

        async def wait() -> Verdict:
            try:
                return await trio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=self._threads)
            except Exception as error:
                self._pump.crash(None, error)
                return _failed_closed()

        return self._park(by, tunnel, wait, resume)

    def _park(
        self,
        by: Crashable,
        tunnel: Tunnel,
        wait: Callable[[], Awaitable[Outcome]],
        resume: Callable[[Outcome], None],
    ) -> trio.CancelScope:
        if not self._census.park(tunnel.id):
            message = "Too many visitors are waiting already."
            raise HopError(Hop.EDGE, 503, "too-many-waiting", message, retry_after=RETRY_AWAY_SECONDS)
        scope = trio.CancelScope()

        async def task() -> None:
            try:
                with scope:
                    outcome = await wait()
            finally:
                self._census.unpark(tunnel.id)
            if not scope.cancel_called:
                self._pump.call(by, lambda: resume(outcome))

        self._nursery.start_soon(task)
        return scope


def no_such_tunnel() -> HopError:
    return HopError(Hop.EDGE, 404, "no-such-tunnel", "There is no tunnel at this address.")


def agent_away(tunnel: Tunnel, now: float) -> HopError:
    """The 503 of a tunnel that nobody serves, and for how long already; `now` on trio's clock."""
    since = tunnel.links.away_since
    seconds = 0 if since is None else max(0, round(now - since))
    message = f"The agent of this tunnel has been away for {seconds} s."
    return HopError(Hop.AGENT, 503, "agent-away", message, retry_after=RETRY_AWAY_SECONDS)


def _failed_closed() -> Answer:
    return Answer(HopError(Hop.EDGE, 500, "policy-failed", "A policy of this tunnel failed."))
