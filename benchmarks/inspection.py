"""`python -m benchmarks.inspection [ROUNDS]`: what the inspector costs at full load: two servers, alternating.

Prints requests a second and the server's CPU a request with inspection on and off, and the medians of the ratios.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.measure import load
from benchmarks.stage import Stage, cpu_seconds, stage

VARIABLE = "RUSTUNNEL_INSPECT__ENABLED"


def _round(at: Stage) -> tuple[float, float]:
    """Requests a second, and microseconds of the server's CPU each."""
    before = cpu_seconds(at.server)
    result = load(at.tools.wrk, f"http://127.0.0.1:{at.http}/", at.host, connections=32)
    return result.rate, (cpu_seconds(at.server) - before) / result.requests * 1e6


def main(rounds: int) -> None:
    with ExitStack() as stack:
        stages = []
        for enabled in ("true", "false"):
            os.environ[VARIABLE] = enabled
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stages.append(stack.enter_context(stage(folder)))
        rates, costs = [], []
        for number in range(rounds):
            pairs = [_round(at) for at in (stages if number % 2 else stages[::-1])]
            on, off = pairs if number % 2 else pairs[::-1]
            rates.append(on[0] / off[0])
            costs.append(on[1] / off[1])
            print(f"on {on[0]:8.0f} req/s {on[1]:6.1f} µs   off {off[0]:8.0f} req/s {off[1]:6.1f} µs", flush=True)
    print(f"median of {rounds}: requests/s on / off {statistics.median(rates):.3f} (>= 0.90)")
    print(f"median of {rounds}: server CPU a request on / off {statistics.median(costs):.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
