"""`rustunnel-py serve` as a process of its own, on ports that the kernel chooses.

with server_process(tmp_path) as server:
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent.parent
START_SECONDS = 30.0  # a hang shows as a failure
ANSWER_SECONDS = 20.0

PORT_FLAGS = ("--http-port", "--https-port", "--control-port", "--dashboard-port")


class ServerProcess:
    """A started server: its ports, its log so far, its process."""

    def __init__(self, data: Path, process: subprocess.Popen[bytes]) -> None:
        self.data = data
        self.process = process
        self.greeting: list[str] = []
        self.log: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self.http_port = self.https_port = self.control_port = self.dashboard_port = 0

    # what it says

    def read_greeting(self) -> None:
        """Standard output until the last line of the greeting."""
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            self.greeting.append(raw.decode().rstrip("\n"))
            if self.greeting[-1].startswith("In another shell"):
                break
        text = "\n".join(self.greeting)
        found = re.search(r"http://NAME\.\S+:(\d+) +https://NAME\.\S+:(\d+)\nagents +\S+:(\d+)\nAPI +\S+:(\d+)/", text)
        assert found is not None, text
        self.http_port, self.https_port, self.control_port, self.dashboard_port = map(int, found.groups())

    def follow_log(self, output: IO[bytes]) -> None:
        for raw in output:
            try:
                line = json.loads(raw)
            except ValueError:
                line = {"event": raw.decode("utf-8", "replace").rstrip("\n")}
            with self._changed:
                self.log.append(line)
                self._changed.notify_all()

    def wait_logged(self, event: str, count: int = 1) -> dict[str, Any]:
        """The `count`-th log line of an event."""

        def said() -> list[dict[str, Any]]:
            return [line for line in self.log if line["event"] == event]

        with self._changed:
            assert self._changed.wait_for(lambda: len(said()) >= count, ANSWER_SECONDS), self.log
        return said()[count - 1]

    @property
    def admin_token(self) -> str:
        return (self.data / "admin-token").read_text().strip()

    # how it lives

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(ANSWER_SECONDS)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # whom it answers

    def connect(self, port: int | None = None) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port or self.http_port), ANSWER_SECONDS)

    def ask(self, raw: bytes, port: int | None = None) -> bytes:
        """Send, and read to the end."""
        with self.connect(port) as sock:
            sock.sendall(raw)
            return read_to_end(sock)

    def is_alive(self) -> bool:
        """It answers on its API."""
        answer = self.ask(
            b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", self.dashboard_port
        )
        return answer.startswith(b"HTTP/1.1 200 ")

    def shown_certificate(self, name: str | None, port: int | None = None) -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with self.connect(port or self.https_port) as raw, context.wrap_socket(raw, server_hostname=name) as sock:
            return sock.getpeercert(True) or b""


def read_to_end(sock: socket.socket) -> bytes:
    received = b""
    try:
        while part := sock.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


def until(condition: Callable[[], object], seconds: float = ANSWER_SECONDS) -> None:
    """Poll another process."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


@contextmanager
def server_process(
    data: Path,
    *flags: str,
    wrap: tuple[str, ...] = (),
    stderr: int | IO[bytes] | None = None,
    environment: dict[str, str] | None = None,
    python: tuple[str, ...] = ("-m", "rustunnel_py"),
) -> Iterator[ServerProcess]:
    """A server with the data folder `data`, listening on loopback; `wrap` goes before its command line.

    Its log is followed, unless `stderr` says where it goes.
    """
    ports = [word for flag in PORT_FLAGS if flag not in flags for word in (flag, "0")]
    command = [*wrap, sys.executable, *python, "serve", "--data", str(data), *ports, "--tcp-ports", "0-0"]
    command += ["--log-format", "json"]
    if "--host" not in flags:
        command += ["--host", "127.0.0.1"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUSTUNNEL_")}
    process = subprocess.Popen(
        [*command, *flags],
        env={**kept, "PYTHONPATH": str(ROOT), **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if stderr is None else stderr,
    )
    server = ServerProcess(data, process)
    follower = None
    if process.stderr is not None:
        follower = threading.Thread(target=server.follow_log, args=(process.stderr,), daemon=True)
        follower.start()
    killer = threading.Timer(START_SECONDS, process.kill)
    killer.start()
    try:
        server.read_greeting()
        killer.cancel()
        yield server
    finally:
        killer.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()
        if follower is not None:
            follower.join()
        for output in (process.stdout, process.stderr):
            if output is not None:
                output.close()
