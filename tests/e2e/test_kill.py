"""P05, F01: the server is killed at full speed, again and again; what it acknowledged is there afterwards.

`KILLS=50 pytest tests/e2e/test_kill.py -s` is the long form; the suite does a few rounds.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random  # noqa: TID251  (when a process dies is chance on purpose; the seed is printed)
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.server_process import ROOT, ServerProcess, server_process, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROUNDS = int(os.environ.get("KILLS", "2"))
SEED = int(os.environ.get("KILL_SEED", "1"))
VISITORS = 3


class LocalService(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


class LocalServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Visitors are cut when the server dies."""


@contextlib.contextmanager
def local_service() -> Iterator[int]:
    server = LocalServer(("127.0.0.1", 0), LocalService)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def agent(server: ServerProcess, service: int) -> Iterator[None]:
    """Our agent, in a process of its own; it comes back by itself after each kill."""
    login = {
        "SERVER": f"localhost:{server.control_port}",
        "TOKEN": server.admin_token,
        "CA": str(server.data / "ca.pem"),
    }
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | {
        f"RUSTUNNEL_{name}": value for name, value in login.items()
    }
    command = [sys.executable, "-m", "rustunnel_py", "http", str(service), "--json"]
    home = {"HOME": str(server.data), "XDG_STATE_HOME": str(server.data / "state")}
    process = subprocess.Popen(command, env=environment | home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@dataclass
class Acknowledged:
    """What the server said yes to."""

    tokens: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    history: set[str] = field(default_factory=set)
    captures: set[str] = field(default_factory=set)
    label: str = ""
    visits: int = 0


class Asking:
    """One connection to the API of a server that may die at any moment."""

    def __init__(self, port: int, token: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def __call__(self, path: str, method: str = "GET", body: object = None) -> Any:
        self._connection.request(method, path, None if body is None else json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        assert answer.status < 300, content
        return json.loads(content) if content else None

    def close(self) -> None:
        self._connection.close()


def make_tokens(port: int, admin: str, known: Acknowledged) -> None:
    """One after another until the server is dead; two of three are deleted again."""
    ask = Asking(port, admin)
    try:
        for number in range(10**9):
            made = ask("/api/tokens", "POST", {"label": f"t{number}"})
            known.tokens.append(made["id"])
            if number % 3 < 2:
                known.tokens.remove(made["id"])  # until the answer comes it may be there or not
                ask(f"/api/tokens/{made['id']}", "DELETE")
                known.deleted.append(made["id"])
    except (OSError, http.client.HTTPException):
        pass
    finally:
        ask.close()


def visit(port: int, host: str, known: Acknowledged) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        while True:
            connection.request("POST", "/x", b"b" * 1000, {"Host": host})
            answer = connection.getresponse()
            if answer.status == 200 and len(answer.read()) == 1000:
                known.visits += 1
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()


def stored_captures(data: Path) -> set[str]:
    """What another process sees committed."""
    connection = sqlite3.connect(f"file:{data / 'captured.db'}?mode=ro", uri=True)
    try:
        return {str(row[0]) for row in connection.execute("SELECT id FROM captures")}
    finally:
        connection.close()


def check(ask: Asking, data: Path, known: Acknowledged) -> None:
    """Everything acknowledged is there, nothing deleted is, and both files are whole."""
    there = {token["id"] for token in ask("/api/tokens")}
    assert set(known.tokens) <= there
    assert not set(known.deleted) & there
    rows = {entry["id"]: entry for entry in ask("/api/history?limit=1000")["entries"]}
    assert known.history <= set(rows)
    assert known.captures <= stored_captures(data)
    for name in ("main.db", "captured.db"):
        connection = sqlite3.connect(f"file:{data / name}?mode=ro", uri=True)
        try:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        finally:
            connection.close()


@pytest.mark.slow
def test_P05_F01_kill_9_at_full_speed_loses_nothing_acknowledged(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    known = Acknowledged()
    ports: tuple[str, ...] = ()
    starts: list[float] = []
    with local_service() as service, contextlib.ExitStack() as stack:
        for _ in range(ROUNDS + 1):
            began = time.monotonic()
            with server_process(tmp_path / "data", *ports) as server:
                starts.append(time.monotonic() - began)
                if not ports:
                    stack.enter_context(agent(server, service))
                one_round(server, known, chance)
                ports = (
                    *("--http-port", str(server.http_port), "--https-port", str(server.https_port)),
                    *("--control-port", str(server.control_port), "--dashboard-port", str(server.dashboard_port)),
                )
    print(
        f"{ROUNDS} kills (seed {SEED}): {len(known.tokens)} tokens, {len(known.history)} registrations, "
        f"{known.visits} visits, {len(known.captures)} captures in the last round; "
        f"start at most {max(starts[1:]):.2f} s"
    )
    assert known.tokens
    assert known.deleted
    assert known.visits


def one_round(server: ServerProcess, known: Acknowledged, chance: random.Random) -> None:
    """Look for what was acknowledged, then load the server and kill it in the middle of that."""
    ask = Asking(server.dashboard_port, server.admin_token)
    try:
        check(ask, server.data, known)
        until(lambda: ask("/api/tunnels"))
        label = ask("/api/tunnels")[0]["label"]
        assert known.label in ("", label)  # the agent asked for no name: it got the one of before
        known.label = label
        registered = ask("/api/history?limit=1")["entries"][0]["id"]
    finally:
        ask.close()
    threads = [threading.Thread(target=make_tokens, args=(server.dashboard_port, server.admin_token, known))]
    threads += [threading.Thread(target=visit, args=(server.http_port, label, known)) for _ in range(VISITORS)]
    for thread in threads:
        thread.start()
    time.sleep(1.1 + chance.random())  # past the first batch, at any point of the next
    known.captures = stored_captures(server.data)
    server.process.kill()
    for thread in threads:
        thread.join()
    known.history.add(registered)
