"""What GET /metrics shows, in Prometheus's text format.

Nothing here is told anything: whoever counts has whole numbers of its own, and a scrape reads them. So a metric
costs the hot path what its counter costs.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from rustunnel_py.hub.tally import BOUNDS_MS, Tally

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from rustunnel_py.hub.registry import Registry
    from rustunnel_py.hub.sessions import Sessions

TUNNELS_SHOWN = 500  # with series of their own, the busiest; the totals count all
BEAT_SECONDS = 0.1  # a block of the loop that is longer is seen whole
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class _Number:
    kind: Literal["counter", "gauge"]
    name: str
    meaning: str
    label: str | None
    read: Callable[[], float | Mapping[str, float]]


class Metrics(Collector):
    """Tunnels, sessions and visits by itself; everything else is `add`ed by whoever wires the server."""

    def __init__(self, registry: Registry, sessions: Sessions) -> None:
        self._registry = registry
        self._sessions = sessions
        self._numbers: list[_Number] = []
        self._lag = 0.0
        self.add("gauge", "rustunnel_loop_lag_seconds", "How late the loop ran at worst since asked last.", self._worst)

    async def run(self) -> None:
        """Measure how late the loop turns, until cancelled."""
        while True:
            due = trio.current_time() + BEAT_SECONDS
            await trio.sleep(BEAT_SECONDS)
            self._lag = max(self._lag, trio.current_time() - due)

    def _worst(self) -> float:
        lag, self._lag = self._lag, 0.0
        return lag

    def add(self, kind: Literal["counter", "gauge"], name: str, meaning: str, read: Callable[[], float]) -> None:
        self._numbers.append(_Number(kind, name, meaning, None, read))

    def add_by(
        self,
        label: str,
        kind: Literal["counter", "gauge"],
        name: str,
        meaning: str,
        read: Callable[[], Mapping[str, float]],
    ) -> None:
        """A number for each value of `label`."""
        self._numbers.append(_Number(kind, name, meaning, label, read))

    def text(self) -> bytes:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """For prometheus-client."""
        yield from self._tunnels()
        yield from self._visits()
        for number in self._numbers:
            yield _family(number)

    def _tunnels(self) -> Iterator[Metric]:
        live = Counter("http" if hasattr(tunnel.address, "host") else "tcp" for tunnel in self._registry.live())
        tunnels = GaugeMetricFamily("rustunnel_tunnels", "Tunnels that are served now.", labels=["protocol"])
        for protocol in ("http", "tcp"):
            tunnels.add_metric([protocol], live[protocol])
        yield tunnels
        yield GaugeMetricFamily("rustunnel_sessions", "Agents that are connected.", value=len(self._sessions))

    def _visits(self) -> Iterator[Metric]:
        total = Tally()
        total.add(self._registry.ended)
        tallies = [(tunnel.tally, str(tunnel.address)) for tunnel in self._registry.all()]
        for tally, _ in tallies:
            total.add(tally)
        requests = CounterMetricFamily(
            "rustunnel_requests", "HTTP requests that are over, by class of status.", labels=["status"]
        )
        for digit, count in enumerate(total.statuses):
            if count or 1 <= digit <= 5:
                requests.add_metric([_class(digit)], count)
        yield requests
        yield CounterMetricFamily("rustunnel_tcp_visits", "TCP connections that are over.", value=total.visits)
        payload = CounterMetricFamily(
            "rustunnel_bytes", "Payload carried, seen from the local services.", labels=["direction"]
        )
        payload.add_metric(["in"], total.bytes_in)
        payload.add_metric(["out"], total.bytes_out)
        yield payload
        yield _histogram(total)
        yield from _by_tunnel(heapq.nlargest(TUNNELS_SHOWN, tallies, key=lambda pair: sum(pair[0].statuses)))


def _histogram(total: Tally) -> Metric:
    counted = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip([f"{bound / 1000:g}" for bound in BOUNDS_MS] + ["+Inf"], total.buckets, strict=True):
        counted += count
        buckets.append((bound, counted))
    return HistogramMetricFamily(
        "rustunnel_request_duration_seconds",
        "From a request's head to the end of its reply; upgraded visits are not in it.",
        buckets=buckets,
        sum_value=total.milliseconds / 1000.0,
    )


def _by_tunnel(tallies: list[tuple[Tally, str]]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "rustunnel_tunnel_requests", "HTTP requests of the busiest tunnels.", labels=["tunnel", "status"]
    )
    payload = CounterMetricFamily(
        "rustunnel_tunnel_bytes", "Payload of the busiest tunnels.", labels=["tunnel", "direction"]
    )
    for tally, address in tallies:
        for digit, count in enumerate(tally.statuses):
            if count:
                requests.add_metric([address, _class(digit)], count)
        payload.add_metric([address, "in"], tally.bytes_in)
        payload.add_metric([address, "out"], tally.bytes_out)
    yield requests
    yield payload


def _class(digit: int) -> str:
    return f"{digit}xx" if digit else "none"


def _family(number: _Number) -> Metric:
    labels = None if number.label is None else [number.label]
    kind = CounterMetricFamily if number.kind == "counter" else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily = kind(number.name, number.meaning, labels=labels)
    value = number.read()
    if isinstance(value, Mapping):
        for key, one in value.items():
            family.add_metric([key], one)
    else:
        family.add_metric([], value)
    return family
