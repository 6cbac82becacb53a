"""S09: what a flood of TLS handshakes from one address costs visitors from another.

    python -m tests.lanes.handshakes [SECONDS]

First without a limit, then with `limits.ip_handshakes_per_second` at 50. Exit code 1 if the 99th percentile of the
others' visits, each on a connection of its own, is above a second. Linux: the flood comes from 127.0.0.2.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.server_process import ServerProcess, read_to_end, server_process
from tests.support.tls_hello import hello

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOODERS = 4
P99_SECONDS = 1.0
PAUSE_SECONDS = 0.01  # between two visits of the others
NO_TUNNEL = b"GET / HTTP/1.1\r\nHost: nobody.localhost\r\nConnection: close\r\n\r\n"


def main(seconds: float) -> int:
    worst = 0.0
    for limit in (0, 50):
        environment = {"RUSTUNNEL_LIMITS__IP_HANDSHAKES_PER_SECOND": str(limit)}
        with (
            tempfile.TemporaryDirectory() as data,
            server_process(Path(data), environment=environment) as server,
            flood(server) as begun,
        ):
            took = visit_for(server, seconds)
            rate = sum(begun) / seconds
        p99 = percentile(took, 0.99)
        worst = max(worst, p99)
        print(
            f"limit {limit}: {rate:.0f} handshakes/s begun; {len(took)} other visits: "
            f"p50 {percentile(took, 0.5) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms"
        )
    return int(worst > P99_SECONDS)


@contextlib.contextmanager
def flood(server: ServerProcess) -> Iterator[list[int]]:
    """Hellos as fast as they go, each on a connection of its own; counts them by thread."""
    first = hello()
    begun = [0] * FLOODERS
    over = threading.Event()

    def run(number: int) -> None:
        while not over.is_set():
            with contextlib.suppress(OSError), socket.socket() as sock:
                sock.settimeout(2)
                sock.bind(("127.0.0.2", 0))
                sock.connect(("127.0.0.1", server.https_port))
                sock.sendall(first)
                begun[number] += 1
                sock.recv(100)

    flooders = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(FLOODERS)]
    for flooder in flooders:
        flooder.start()
    try:
        yield begun
    finally:
        over.set()
        for flooder in flooders:
            flooder.join()


def visit_for(server: ServerProcess, seconds: float) -> list[float]:
    """Visits of somebody else; how long each took, in seconds."""
    took: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        with server.connect() as sock:
            sock.sendall(NO_TUNNEL)
            assert read_to_end(sock).startswith(b"HTTP/1.1 404 ")
        took.append(time.monotonic() - start)
        time.sleep(PAUSE_SECONDS)
    return took


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0))
