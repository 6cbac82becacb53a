"""`python -m benchmarks.inspection [ROUNDS]`: what the inspector costs at full load: two servers, alternating.

Prints requests a second, and the processor time a request of the server alone and of server and agent together, with
inspection on and off; then the medians of the rounds, and of their ratios.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.measure import load
from benchmarks.stage import Stage, cpu_seconds, stage

VARIABLE = "RUSTUNNEL_INSPECT__ENABLED"
# Of what `_round` gives: name, unit, and the bound of on / off where there is one.
FIGURES = (
    ("requests a second", "req/s", ">= 0.90"),
    ("CPU a request, server", "µs", ""),
    ("CPU a request, server + agent", "µs", ""),
)


def _round(at: Stage) -> tuple[float, ...]:
    server, agent = cpu_seconds(at.server), cpu_seconds(at.agent)
    result = load(at.tools.wrk, f"http://127.0.0.1:{at.http}/", at.host, connections=32)
    server, agent = cpu_seconds(at.server) - server, cpu_seconds(at.agent) - agent
    return result.rate, server / result.requests * 1e6, (server + agent) / result.requests * 1e6


def _show(figures: tuple[float, ...]) -> str:
    return "  ".join(f"{figure:8.1f} {unit}" for figure, (_, unit, _) in zip(figures, FIGURES, strict=True))


def main(rounds: int) -> None:
    with ExitStack() as stack:
        stages = []
        for enabled in ("true", "false"):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rustunnel-bench-")))
            stages.append(stack.enter_context(stage(folder, {VARIABLE: enabled})))
        on, off = [], []
        for number in range(rounds):
            pair = [_round(at) for at in (stages if number % 2 else stages[::-1])]
            on.append(pair[0 if number % 2 else 1])
            off.append(pair[1 if number % 2 else 0])
            print(f"on {_show(on[-1])}   off {_show(off[-1])}", flush=True)
    print(f"medians of {rounds}:")
    for (name, unit, bound), with_it, without in zip(
        FIGURES, zip(*on, strict=True), zip(*off, strict=True), strict=True
    ):
        ratio = statistics.median(one / other for one, other in zip(with_it, without, strict=True))
        text = f"{name:30} on {statistics.median(with_it):8.1f} {unit:6} off {statistics.median(without):8.1f} {unit:6}"
        print(f"{text} on / off {ratio:.3f} {bound}".rstrip())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
