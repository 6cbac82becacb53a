"""`python -m benchmarks [ROUNDS]`: measure the project beside a plain nginx proxy, alternating, and print one table.

How to read it: benchmarks/README.md.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import LoadFailed, bulk, load
from benchmarks.quickack import pair, rate
from benchmarks.stage import MissingTool, Stage, cpu_seconds, resident_kib, stage

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 3
RESULTS = Path(__file__).parent / "results"


@dataclass(slots=True)
class Row:
    """One line of the table: the project's figures and the reference's, round by round."""

    name: str
    unit: str
    ours: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)

    def show(self) -> str:
        if not self.ours:
            return f"{self.name:42} could not be measured"
        median = statistics.median(self.ours)
        text = f"{self.name:42} {median:9.1f} {min(self.ours):9.1f} {max(self.ours):9.1f} {self.unit:8}"
        if self.reference:
            ratio = statistics.median(o / r for o, r in zip(self.ours, self.reference, strict=True))
            text += f" {statistics.median(self.reference):9.1f} {ratio:7.2f}"
        return text


def _alternate(row: Row, rounds: int, ours: Callable[[], float], reference: Callable[[], float] | None = None) -> Row:
    for _ in range(rounds):
        try:
            beside = None if reference is None else reference()
            row.ours.append(ours())
            if beside is not None:
                row.reference.append(beside)
        except LoadFailed as error:
            print(f"{row.name}: {error}", file=sys.stderr)
    print(row.show(), flush=True)
    return row


def measure(at: Stage, folder: Path, rounds: int) -> list[Row]:
    wrk = at.tools.wrk
    ours, beside = f"http://127.0.0.1:{at.http}/", f"http://127.0.0.1:{at.reference}/"
    tcp = f"http://127.0.0.1:{at.tcp}/"
    cpu = Row("CPU, server + agent, 32 connections", "µs/req")

    def keep_alive() -> float:
        before = cpu_seconds(at.server) + cpu_seconds(at.agent)
        result = load(wrk, ours, at.host, connections=32)
        cpu.ours.append((cpu_seconds(at.server) + cpu_seconds(at.agent) - before) / result.requests * 1e6)
        return result.rate

    def reference(connections: int, new_connections: bool = False) -> Callable[[], float]:
        return lambda: load(wrk, beside, at.host, connections=connections, new_connections=new_connections).rate

    rows = [_alternate(Row("keep-alive, 32 connections", "req/s"), rounds, keep_alive, reference(32)), cpu]
    print(cpu.show(), flush=True)
    rows.append(
        _alternate(
            Row("one connection, p50", "ms"),
            rounds,
            lambda: load(wrk, ours, at.host, connections=1).p50,
            lambda: load(wrk, beside, at.host, connections=1).p50,
        )
    )
    rows.append(
        _alternate(
            Row("keep-alive, 256 connections", "req/s"),
            rounds,
            lambda: load(wrk, ours, at.host, connections=256).rate,
            reference(256),
        )
    )
    rows.append(
        _alternate(
            Row("new connection per request", "req/s"),
            rounds,
            lambda: load(wrk, ours, at.host, connections=32, new_connections=True).rate,
            reference(32, new_connections=True),
        )
    )
    rows.append(
        _alternate(
            Row("TCP tunnel, keep-alive, 32 connections", "req/s"),
            rounds,
            lambda: load(wrk, tcp, at.host, connections=32).rate,
            reference(32),
        )
    )
    before = resident_kib(at.server), resident_kib(at.agent)
    bulk_file = str(folder / "bulk")
    for name, down, up, host in (
        ("HTTP", ours, ours, at.upload_host),
        ("TCP", tcp, f"http://127.0.0.1:{at.tcp_upload}/", at.upload_host),
    ):
        rows.append(
            _alternate(
                Row(f"bulk down, {name} tunnel, one stream", "MB/s"),
                rounds,
                lambda url=down: bulk(f"{url}bulk", at.host),  # type: ignore[misc]
                lambda: bulk(f"{beside}bulk", at.host),
            )
        )
        rows.append(
            _alternate(
                Row(f"bulk up, {name} tunnel, one stream", "MB/s"),
                rounds,
                lambda url=up, host=host: bulk(url, host, upload=bulk_file),  # type: ignore[misc]
                lambda: bulk(f"http://127.0.0.1:{at.upload}/", at.host, upload=bulk_file),
            )
        )
    grown = resident_kib(at.server) - before[0], resident_kib(at.agent) - before[1]
    for name, size in (("server", grown[0]), ("agent", grown[1])):
        row = Row(f"memory growth over the bulk rounds, {name}", "KiB", [float(size)])
        print(row.show(), flush=True)
        rows.append(row)
    return rows + _stock(at, folder, rounds)


def _stock(at: Stage, folder: Path, rounds: int) -> list[Row]:
    """A stock agent, one connection, with and without quick acknowledgements of its data socket."""
    quick = Row("stock agent, one connection", "req/s")
    delayed = Row("the same, delayed acknowledgements", "req/s")
    gain = Row("gain of quick acknowledgements", "times")
    with pair(at.backend, folder) as ports:
        _alternate(delayed, rounds, lambda: rate(at.tools.wrk, ports.delayed))
        _alternate(quick, rounds, lambda: rate(at.tools.wrk, ports.quick))
    gain.ours = [q / d for q, d in zip(quick.ours, delayed.ours, strict=False)]
    print(gain.show(), flush=True)
    return [delayed, quick, gain]


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    flags = sysconfig.get_config_var("CONFIG_ARGS") or ""
    optimised = "--enable-optimizations" in flags and "--with-lto" in flags
    build = f"{platform.python_implementation()} {platform.python_version()}, {'PGO + LTO' if optimised else 'no PGO'}"
    print(
        f"{build}; {rounds} rounds; ratio is ours to the nginx proxy's of the same round (uploads: to no proxy at all)"
    )
    print(f"{'':42} {'median':>9} {'min':>9} {'max':>9} {'':8} {'nginx':>9} {'ratio':>7}")
    with tempfile.TemporaryDirectory(prefix="rustunnel-bench-") as name:
        folder = Path(name)
        try:
            with stage(folder) as at:
                rows = measure(at, folder, rounds)
        except MissingTool as error:
            print(error, file=sys.stderr)
            return 1
    RESULTS.mkdir(exist_ok=True)
    result = {
        "python": build,
        "rows": [{"name": r.name, "unit": r.unit, "ours": r.ours, "reference": r.reference} for r in rows],
    }
    (RESULTS / f"{time.strftime('%Y-%m-%dT%H%M%S')}.json").write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
