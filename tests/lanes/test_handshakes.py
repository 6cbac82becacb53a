"""S09: what a flood of TLS handshakes from one address costs a visitor from another (`make lane-handshakes`)."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.server_process import read_to_end, server_process
from tests.support.tls_hello import hello

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.lane, pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2")]

FLOOD_SECONDS = 10.0
FLOODERS = 4
NO_TUNNEL = b"GET / HTTP/1.1\r\nHost: nobody.localhost\r\nConnection: close\r\n\r\n"


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@pytest.mark.parametrize("limit", ["0", "50"])
def test_S09_a_thousand_handshakes_a_second(tmp_path: Path, limit: str) -> None:
    environment = {"RUSTUNNEL_LIMITS__IP_HANDSHAKES_PER_SECOND": limit}
    with server_process(tmp_path, environment=environment) as server:
        first = hello()
        begun = [0] * FLOODERS
        over = threading.Event()

        def flood(number: int) -> None:
            while not over.is_set():
                with contextlib.suppress(OSError), socket.socket() as sock:
                    sock.settimeout(2)
                    sock.bind(("127.0.0.2", 0))
                    sock.connect(("127.0.0.1", server.https_port))
                    sock.sendall(first)
                    begun[number] += 1
                    sock.recv(100)

        flooders = [threading.Thread(target=flood, args=(number,), daemon=True) for number in range(FLOODERS)]
        for flooder in flooders:
            flooder.start()
        took: list[float] = []
        end = time.monotonic() + FLOOD_SECONDS
        while time.monotonic() < end:
            start = time.monotonic()
            with server.connect() as sock:
                sock.sendall(NO_TUNNEL)
                assert read_to_end(sock).startswith(b"HTTP/1.1 404 ")
            took.append(time.monotonic() - start)
            time.sleep(0.01)
        over.set()
        for flooder in flooders:
            flooder.join()
    p99 = percentile(took, 0.99)
    print(
        f"\nlimit {limit}: {sum(begun) / FLOOD_SECONDS:.0f} handshakes/s begun; "
        f"{len(took)} other visits: p50 {percentile(took, 0.5) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms"
    )
    assert p99 < 1.0
