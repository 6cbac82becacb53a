"""What agents, tunnels and visitors cost in memory, and how long starts take."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

from benchmarks.stage import START_SECONDS, free_port, process, resident_kib, wait_for, wait_for_page
from benchmarks.table import Row

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.stage import Served, Stage

AGENTS = 100
TUNNELS = 20  # of each of MANY agents, so that no limit of one session is met
MANY = 10
VISITORS = 1000
TLS_VISITORS = 300
WARM = 50  # visitors before those that are measured
SETTLE_SECONDS = 1.5  # for the server's own housekeeping after a wave


@contextlib.contextmanager
def many_agents(at: Served, backend: int, agents: int, tunnels: int) -> Iterator[str]:
    """So many agents with so many tunnels each, from when all of them serve; gives `many-PID`, how their labels begin.

    Raises RuntimeError.
    """
    argv = [sys.executable, "-m", "benchmarks.many_agents", str(at.control), at.environment["RUSTUNNEL_CA"]]
    with process(
        *argv, str(backend), str(agents), str(tunnels), environment=at.environment, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        with child.stdout:
            if child.stdout.readline() != b"ready\n":
                raise RuntimeError("the agents did not come up")
        time.sleep(SETTLE_SECONDS)
        yield f"many-{child.pid}"


def _visitors(at: Stage, count: int, context: ssl.SSLContext | None) -> list[socket.socket]:
    """Idle kept connections, each of which has been served once."""
    port = at.http if context is None else at.https
    request = f"GET / HTTP/1.1\r\nHost: {at.host}\r\n\r\n".encode()
    opened = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port))
        if context is not None:
            connection = context.wrap_socket(connection, server_hostname=at.host)
        connection.sendall(request)
        if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
            raise RuntimeError("a visitor was not served")
        opened.append(connection)
    return opened


def memory(at: Stage) -> Iterator[Row]:
    """Of the server; run before anything else has made it large.

    Nobody leaves in between, so nothing that was freed is used again.
    """
    time.sleep(SETTLE_SECONDS)
    rest = resident_kib(at.server)
    yield Row("server at rest, one agent", "MiB", 80, less_is_better=True, ours=[rest / 1024])
    with contextlib.ExitStack() as stack:
        stack.enter_context(many_agents(at, at.backend, MANY, 1))  # what is allocated once is not theirs
        before = resident_kib(at.server)
        stack.enter_context(many_agents(at, at.backend, AGENTS, 1))
        agent = (resident_kib(at.server) - before) / AGENTS
        yield Row("an idle agent with one tunnel", "KiB", 150, less_is_better=True, ours=[agent])
        before = resident_kib(at.server)
        stack.enter_context(many_agents(at, at.backend, MANY, 1 + TUNNELS))
        tunnel = (resident_kib(at.server) - before - MANY * agent) / (MANY * TUNNELS)
        yield Row("a further idle tunnel", "KiB", 20, less_is_better=True, ours=[tunnel])
        insecure = ssl.create_default_context()
        insecure.check_hostname = False
        insecure.verify_mode = ssl.CERT_NONE
        for kind, count, context, most in (("plain", VISITORS, None, 12), ("TLS", TLS_VISITORS, insecure, 60)):
            for connection in _visitors(at, WARM, context):
                stack.callback(connection.close)
            before = resident_kib(at.server)
            for connection in _visitors(at, count, context):
                stack.callback(connection.close)
            grown = resident_kib(at.server) - before
            yield Row(f"an idle visitor, {kind}", "KiB", most, less_is_better=True, ours=[grown / count])
    time.sleep(SETTLE_SECONDS)


def starts(at: Stage, folder: Path, rounds: int) -> Iterator[Row]:
    command = [sys.executable, "-m", "rustunnel_py"]
    agent = Row("agent's start to the first 200", "s", 0.5, less_is_better=True)
    server = Row("import to `serve` answering", "s", 1.2, less_is_better=True)
    for number in range(rounds):
        label = f"start-{number}"
        begun = time.perf_counter()
        with process(*command, "http", str(at.backend), "--subdomain", label, environment=at.environment):
            wait_for_page(at.http, f"{label}.localhost")
            agent.ours.append(time.perf_counter() - begun)
        ports = {name: free_port() for name in ("http", "https", "control", "dashboard")}
        environment = {f"RUSTUNNEL_SERVER__{name.upper()}_PORT": str(port) for name, port in ports.items()}
        environment["RUSTUNNEL_DATA"] = str(folder / "again")
        if number == 0:  # the first start makes keys and tables
            with process(*command, "serve", environment=environment):
                wait_for(ports["http"])
        begun = time.perf_counter()
        with process(*command, "serve", environment=environment):
            _wait_for_health(ports["dashboard"])
            server.ours.append(time.perf_counter() - begun)
    yield agent
    yield server


def _wait_for_health(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health/ready", timeout=START_SECONDS).close()
            return
        except OSError:
            time.sleep(0.01)
    raise TimeoutError("the server does not become ready")
