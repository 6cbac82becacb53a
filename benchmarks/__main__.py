"""`python -m benchmarks [ROUNDS] [GROUP …]`: measure the project beside a plain nginx proxy, alternating.

Prints one table and leaves a JSON and a plot in `benchmarks/results`. How to read it: benchmarks/README.md.
"""

from __future__ import annotations

import dataclasses
import platform
import resource
import sys
import sysconfig
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import growth, room, strain, traffic
from benchmarks.stage import MissingTool, Stage, process, stage, wait_for_page
from benchmarks.table import Row, header, last_result, plot, save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS = 3
RESULTS = Path(__file__).parent / "results"
DESCRIPTORS = 8192  # visitors of this process at once, with room to spare

# In the order in which they run: memory first, before the server has grown by its work.
GROUPS: dict[str, Callable[[Stage, Path, int], Iterator[Row]]] = {
    "memory": lambda at, folder, rounds: room.memory(at),
    "starts": room.starts,
    "requests": lambda at, folder, rounds: traffic.requests(at, rounds),
    "bulk": traffic.bulks,
    "stalled": lambda at, folder, rounds: strain.stalled_streams(at, rounds),
    "slow": lambda at, folder, rounds: strain.slow_visitors(at, rounds),
    "lateness": lambda at, folder, rounds: strain.lateness(at, rounds),
    "growth": growth.growth,
}


@contextmanager
def _with_stock_agent(at: Stage) -> Iterator[Stage]:
    label = "stock"
    argv = [sys.executable, "-m", "benchmarks.stock_agent", str(at.control), at.environment["RUSTUNNEL_CA"]]
    with process(*argv, str(at.backend), label, environment=at.environment):
        wait_for_page(at.http, f"{label}.localhost")
        yield dataclasses.replace(at, stock_label=label)


def _run(at: Stage, folder: Path, rounds: int, groups: list[str], before: dict[str, Row]) -> list[Row]:
    rows: list[Row] = []

    def measure(name: str, at: Stage) -> None:
        for row in GROUPS[name](at, folder, rounds):
            print(row.show(before.get(row.name)), flush=True)
            rows.append(row)

    for name in groups:
        if name == "requests":
            with _with_stock_agent(at) as both:
                measure(name, both)
        else:
            measure(name, at)
    return rows


def _build() -> str:
    """How this Python was compiled: PGO and LTO are worth a third of the speed."""
    flags = sysconfig.get_config_var("CONFIG_ARGS") or ""
    if "--enable-optimizations" in flags and "--with-lto" in flags:
        return "PGO + LTO"
    if sys.base_prefix == "/usr":
        return "the distribution's (Debian's has PGO + LTO)"  # its flags are not in what it says of itself
    return "no PGO"


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdecimal() else ROUNDS
    groups = [word for word in sys.argv[1:] if word in GROUPS] or list(GROUPS)
    build = f"{platform.python_implementation()} {platform.python_version()}, {_build()}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    before = last_result(RESULTS)
    print(f"{build}; {rounds} rounds; the ratio is the median over the rounds of ours to the reference's")
    print(header())
    with tempfile.TemporaryDirectory(prefix="rustunnel-bench-") as name:
        folder = Path(name)
        try:
            with stage(folder) as at:
                rows = _run(at, folder, rounds, groups, before)
        except MissingTool as error:
            print(error, file=sys.stderr)
            return 1
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y-%m-%dT%H%M%S')}.json"
    save(rows, build, path)
    path.with_suffix(".svg").write_text(plot(rows, f"Ours to the reference; {build}; red: at the latest"))
    print(f"written to {path} and .svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
