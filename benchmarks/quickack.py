"""What quick acknowledgements are worth to a stock agent: one visitor connection, with and without.

`python -m benchmarks.quickack [ROUNDS]` measures this alone. Two servers, each with a played stock agent in a process
of its own; the second one's leaves delayed acknowledgements on (`without_quickack.py`).
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import load
from benchmarks.stage import backend_only, find_tools, free_port, process, wait_for, wait_for_file, wait_for_page

if TYPE_CHECKING:
    from collections.abc import Iterator

LABEL = "stock"
HOST = f"{LABEL}.localhost"
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Pair:
    """The HTTP edges of the two servers."""

    quick: int
    delayed: int


@contextlib.contextmanager
def pair(backend: int, folder: Path) -> Iterator[Pair]:
    """Both servers and their agents, ready to be measured."""
    with contextlib.ExitStack() as stack:
        ports = [
            stack.enter_context(_stock_tunnel(module, backend, folder / name))
            for module, name in (("rustunnel_py", "quick"), ("benchmarks.without_quickack", "delayed"))
        ]
        yield Pair(*ports)


@contextlib.contextmanager
def _stock_tunnel(module: str, backend: int, data: Path) -> Iterator[int]:
    ports = {name: free_port() for name in ("http", "https", "control", "dashboard")}
    environment = {f"RUSTUNNEL_SERVER__{name.upper()}_PORT": str(port) for name, port in ports.items()}
    environment |= {"RUSTUNNEL_LOGGING__LEVEL": "warning", "RUSTUNNEL_DATA": str(data)}
    with process(sys.executable, "-m", module, "serve", environment=environment):
        wait_for(ports["control"])
        wait_for_file(data / "address")  # written when the server is ready
        environment["RUSTUNNEL_TOKEN"] = (data / "admin-token").read_text().strip()
        agent = [sys.executable, "-m", "benchmarks.stock_agent", str(ports["control"]), str(data / "ca.pem")]
        with process(*agent, str(backend), LABEL, environment=environment):
            wait_for_page(ports["http"], HOST)
            yield ports["http"]


def rate(wrk: str, port: int) -> float:
    """Requests a second of one visitor connection."""
    return load(wrk, f"http://127.0.0.1:{port}/", HOST, connections=1).rate


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    tools = find_tools()
    with tempfile.TemporaryDirectory(prefix="rustunnel-bench-") as name:
        folder = Path(name)
        with backend_only(tools, folder) as backend, pair(backend, folder) as ports:
            quick, delayed = [], []
            for _ in range(rounds):
                delayed.append(rate(tools.wrk, ports.delayed))
                quick.append(rate(tools.wrk, ports.quick))
    gain = statistics.median(q / d for q, d in zip(quick, delayed, strict=True))
    print(f"stock agent, one connection, quick acknowledgements   {statistics.median(quick):9.1f} req/s")
    print(f"the same without them                                 {statistics.median(delayed):9.1f} req/s")
    print(f"gain                                                  {gain:9.1f} times")
    return 0


if __name__ == "__main__":
    sys.exit(main())
