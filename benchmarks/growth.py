"""How cost grows: with the tunnels and agents that requests are spread over, with those that only stand there, and with
the limits that are configured.

Every line compares two loads, by turns: with many or all of it, and with one or none.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import LoadFailed, load
from benchmarks.room import many_agents
from benchmarks.stage import cpu_seconds, http_tunnel, served
from benchmarks.table import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.stage import Served, Stage

CONNECTIONS = 32
SECONDS = 2  # of one load: some ten thousand requests, so that a hundred and more are behind the p99
WARM_SECONDS = 1  # before a load that goes over many tunnels: their streams are opened first
FLAT = 0.9  # the least ratio of requests a second
FLAT_COST = 1.1  # the most of latency and processor time

SESSION = 50  # tunnels that one agent may have as the server is configured
TUNNELS = (10, 100, 1000)  # of one agent, over which requests are spread
AGENTS = (10, 100)  # over which they are spread, with a tunnel each
IDLE = ((10, 1), (100, 1), (500, 1), (20, SESSION))  # agents, and tunnels of each, that only stand there

ROUND_ROBIN = Path(__file__).with_name("round_robin.lua")
# All that looks at a request, and so much of it that none is refused.
LIMITS = {
    "RUSTUNNEL_LIMITS__RATE_LIMIT_RPS": "1000000",
    "RUSTUNNEL_LIMITS__IP_RATE_LIMIT_RPS": "1000000",
    "RUSTUNNEL_LIMITS__REQUEST_BODY_MAX_BYTES": "1000000000",
    "RUSTUNNEL_LIMITS__MAX_CONNECTIONS_PER_TUNNEL": "100000",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """Of one load: requests a second, p99 in milliseconds, the server's processor time a request in microseconds."""

    rate: float
    p99: float
    cpu: float


def _look(
    at: Served, wrk: str, host: str, *, seconds: int = SECONDS, spread: tuple[str, int, int] | None = None
) -> Seen:
    """`spread`: instead of `host` how the labels begin, agents, tunnels of each (see `round_robin.lua`).

    Raises LoadFailed.
    """
    before = cpu_seconds(at.server)
    result = load(
        wrk,
        f"http://127.0.0.1:{at.http}/",
        host,
        connections=CONNECTIONS,
        seconds=seconds,
        script=None if spread is None else str(ROUND_ROBIN),
        arguments=() if spread is None else tuple(map(str, spread)),
    )
    return Seen(result.rate, result.p99, (cpu_seconds(at.server) - before) / result.requests * 1e6)


@dataclass(slots=True)
class Comparison:
    """Two conditions, round by round. `flat`: which of `Seen` must not differ."""

    name: str
    flat: tuple[str, ...] = ("rate", "p99")
    reference: list[Seen] = field(default_factory=list)
    ours: list[Seen] = field(default_factory=list)

    @contextlib.contextmanager
    def round(self) -> Iterator[None]:
        """Around what measures and adds; a round that fails is told and left out."""
        try:
            yield
        except LoadFailed as error:
            print(f"{self.name}: {error}", file=sys.stderr)

    def add(self, reference: Seen, ours: Seen) -> None:
        self.reference.append(reference)
        self.ours.append(ours)

    def rows(self) -> Iterator[Row]:
        for figure, before, unit in (("rate", "", "req/s"), ("p99", "  p99 ", "ms"), ("cpu", "  CPU ", "µs/req")):
            bound = FLAT if figure == "rate" else FLAT_COST
            yield Row(
                before + self.name,
                unit,
                bound if figure in self.flat else None,
                less_is_better=figure != "rate",
                ours=[getattr(seen, figure) for seen in self.ours],
                reference=[getattr(seen, figure) for seen in self.reference],
            )


def growth(at: Stage, folder: Path, rounds: int) -> Iterator[Row]:
    for part in (
        _over_tunnels(at, folder / "roomy", rounds),
        _over_agents(at, rounds),
        _beside_idle(at, rounds),
        _with_limits(at, folder, rounds),
    ):
        for comparison in part:
            yield from comparison.rows()


def _spread(
    at: Served, wrk: str, label: str, comparisons: dict[tuple[int, int], Comparison], rounds: int
) -> Iterator[Comparison]:
    """Requests over so many agents, and tunnels of each, beside those over one tunnel of them."""
    for _ in range(rounds):
        for (agents, tunnels), comparison in comparisons.items():
            with comparison.round():
                _look(at, wrk, "", seconds=WARM_SECONDS, spread=(label, agents, tunnels))
                many = _look(at, wrk, "", spread=(label, agents, tunnels))
                comparison.add(_look(at, wrk, "", spread=(label, 1, 1)), many)
    yield from comparisons.values()


def _over_tunnels(at: Stage, folder: Path, rounds: int) -> Iterator[Comparison]:
    """On a server of its own, which lets one agent have so many; all of them stand there all the time."""
    folder.mkdir()
    settings = {"RUSTUNNEL_LIMITS__MAX_TUNNELS_PER_SESSION": str(max(TUNNELS))}
    page = http_tunnel("page", "bench", at.backend)
    comparisons = {(1, count): Comparison(f"over {count} tunnels of one agent, to one") for count in TUNNELS}
    with (
        served(folder, page, 1, settings=settings, module="benchmarks.roomy_server") as roomy,
        many_agents(roomy, at.backend, 1, max(TUNNELS)) as label,
    ):
        yield from _spread(roomy, at.tools.wrk, label, comparisons, rounds)


def _over_agents(at: Stage, rounds: int) -> Iterator[Comparison]:
    """With a trunk for each agent less is joined in one send and one record: what it costs the server is looked at.

    All agents are in one process, and that one is slower for the same reason.
    """
    comparisons = {(count, 1): Comparison(f"over {count} agents, to one", flat=("cpu",)) for count in AGENTS}
    with many_agents(at, at.backend, max(AGENTS), 1) as label:
        yield from _spread(at, at.tools.wrk, label, comparisons, rounds)


def _beside_idle(at: Stage, rounds: int) -> Iterator[Comparison]:
    comparisons = {
        (agents, tunnels): Comparison(f"beside {agents} agents, {agents * tunnels} tunnels, to none")
        for agents, tunnels in IDLE
    }
    for _ in range(rounds):
        for (agents, tunnels), comparison in comparisons.items():
            with comparison.round():
                alone = _look(at, at.tools.wrk, at.host)
                with many_agents(at, at.backend, agents, tunnels):
                    comparison.add(alone, _look(at, at.tools.wrk, at.host))
    yield from comparisons.values()


def _with_limits(at: Stage, folder: Path, rounds: int) -> Iterator[Comparison]:
    """Two new servers with an agent each; which one is first changes from round to round."""
    comparison = Comparison("with limits configured, to none", flat=("rate", "p99", "cpu"))
    page = http_tunnel("page", "bench", at.backend)
    with contextlib.ExitStack() as stack:
        pair = []
        for name, settings in (("limited", LIMITS), ("unlimited", {})):
            (folder / name).mkdir()
            pair.append(stack.enter_context(served(folder / name, page, 1, settings=settings)))
        limited, unlimited = pair
        for at_server in pair:
            with comparison.round():
                _look(at_server, at.tools.wrk, at.host, seconds=WARM_SECONDS)
        for number in range(2 * rounds):
            with comparison.round():
                if number % 2:
                    without = _look(unlimited, at.tools.wrk, at.host)
                    comparison.add(without, _look(limited, at.tools.wrk, at.host))
                else:
                    ours = _look(limited, at.tools.wrk, at.host)
                    comparison.add(_look(unlimited, at.tools.wrk, at.host), ours)
    yield comparison
