"""F09: 10 000 idle visitors, plain and by TLS: what one costs, and what they cost the others.

    python -m tests.lanes.idle [CONNECTIONS [SECONDS]]

CONNECTIONS kept-alive connections (10 000), each served once, are held for SECONDS (600); then 100 requests a second go
beside them. Exit code 1 where one costs the server more than 20 KiB, by TLS 60; where the 99th percentile of the
requests is above 1.5 times what it was without them; or where one of them was let go, or keeps a descriptor afterwards.
"""

from __future__ import annotations

import resource
import ssl
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lanes.handshakes import percentile
from tests.lanes.processes import AgentProcess, local_service, rss
from tests.support.server_process import server_process, until

if TYPE_CHECKING:
    import socket

    from tests.support.server_process import ServerProcess

CONNECTIONS = 10_000
SECONDS = 600.0
KIB_MAX = {"plain": 20.0, "TLS": 60.0}
SLOWER_MAX = 1.5
SETTLED_MS = 10.0  # below that a percentile of a machine that does other things says nothing
REQUESTS_A_SECOND = 100.0
PROBE_SECONDS = 20.0
WARM = 100  # connections before those that are counted: what is allocated once is not theirs
SPARE = 1000  # descriptors that are not the visitors'
DESCRIPTORS_LEFT = 8
SETTINGS = {
    "RUSTUNNEL_LIMITS__IDLE_SECONDS": "86400",
    "RUSTUNNEL_LIMITS__MAX_CONNECTIONS_PER_IP": "0",
    "RUSTUNNEL_LIMITS__MAX_CONNECTIONS": "0",
}
REQUEST = b"GET /tag/1/0123456789abcdef HTTP/1.1\r\nHost: idle.localhost\r\n\r\n"


def open_idle(server: ServerProcess, count: int, context: ssl.SSLContext | None) -> list[socket.socket]:
    opened: list[socket.socket] = []
    for _ in range(count):
        sock = server.connect(server.http_port if context is None else server.https_port)
        if context is not None:
            sock = context.wrap_socket(sock, server_hostname="idle.localhost")
        ask(sock)
        opened.append(sock)
    return opened


def ask(sock: socket.socket) -> None:
    sock.sendall(REQUEST)
    answer = b""
    while not answer.endswith(b"\r\n\r\n0123456789abcdef\n"):
        part = sock.recv(4096)
        if not part:
            raise RuntimeError(f"a visitor was not served: {answer!r}")
        answer += part


def probe(server: ServerProcess) -> float:
    """The 99th percentile (ms) of requests at a steady rate, each on a new connection."""
    took = []
    began = time.monotonic()
    for number in range(int(PROBE_SECONDS * REQUESTS_A_SECOND)):
        time.sleep(max(0.0, began + number / REQUESTS_A_SECOND - time.monotonic()))
        start = time.monotonic()
        with server.connect() as sock:
            ask(sock)
        took.append((time.monotonic() - start) * 1000)
    return percentile(took, 0.99)


def wait_for_descriptors(server: ServerProcess, most: int) -> None:
    until(lambda: server.descriptors() <= most)


def main(connections: int, seconds: float) -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, connections + SPARE)), hard))
    if hard < connections + SPARE:
        print(f"{connections} connections need {connections + SPARE} descriptors, this process may have {hard}")
        return 2
    insecure = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    insecure.check_hostname = False
    insecure.verify_mode = ssl.CERT_NONE
    good = True
    for kind, context in (("plain", None), ("TLS", insecure)):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="idle-")))
            server = stack.enter_context(server_process(folder, environment=SETTINGS))
            port, _ = stack.enter_context(local_service("tests.lanes.mixed"))
            agent = AgentProcess(server, "idle", port)
            stack.callback(agent.kill)
            agent.start()
            agent.wait_serving()
            quiet = probe(server)
            warm = open_idle(server, WARM, context)
            memory, descriptors = rss(server.process.pid), server.descriptors()
            began = time.monotonic()
            idle = open_idle(server, connections, context)
            opened = time.monotonic() - began
            cost = (rss(server.process.pid) - memory) / connections / 1024
            time.sleep(seconds)
            busy = probe(server)
            gone = connections - (server.descriptors() - descriptors)
            for sock in idle:
                ask(sock)  # each of them is still there, and served
            for sock in (*idle, *warm):
                sock.close()
            wait_for_descriptors(server, descriptors - WARM + DESCRIPTORS_LEFT)
            fine = cost <= KIB_MAX[kind] and busy <= max(SLOWER_MAX * quiet, SETTLED_MS) and gone <= 0
            good = good and fine
            print(
                f"{kind:5}: {connections} opened in {opened:.1f} s, {cost:.1f} KiB each, held for {seconds:.0f} s, "
                f"{max(gone, 0)} gone; p99 beside them {busy:.1f} ms, before {quiet:.1f} ms: "
                f"{'pass' if fine else 'FAIL'}",
                flush=True,
            )
    return 0 if good else 1


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main(int(words[0]) if words else CONNECTIONS, float(words[1]) if len(words) > 1 else SECONDS))
