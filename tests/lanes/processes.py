"""Agents and local services as processes of their own, for the lanes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.server_process import ServerProcess

ROOT = Path(__file__).parent.parent.parent


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUSTUNNEL_")}
    return {**kept, "PYTHONPATH": str(ROOT)}


class AgentProcess:
    """`rustunnel-py http PORT --subdomain NAME` against a server process; `kill` and `start` as often as one likes.

    `tunnel` replaces the first words: `("tcp", "PORT")`; `tunnels` are so many. `variables` go to its environment.
    """

    def __init__(
        self,
        server: ServerProcess,
        name: str,
        port: int,
        *,
        tunnel: tuple[str, ...] = (),
        tunnels: int = 1,
        variables: dict[str, str] | None = None,
    ) -> None:
        self._command = [
            *(sys.executable, "-m", "rustunnel_py", *(tunnel or ("http", str(port), "--subdomain", name)), "--json"),
            *("--server", f"localhost:{server.control_port}", "--ca", str(server.data / "ca.pem")),
        ]
        self._environment = {
            **_environment(),
            "RUSTUNNEL_TOKEN": server.admin_token,
            "XDG_CONFIG_HOME": str(server.data / f"agent-{name}"),
            "XDG_STATE_HOME": str(server.data / f"agent-{name}"),
            "HOME": str(server.data / f"agent-{name}"),
            **(variables or {}),
        }
        self.process: subprocess.Popen[str] | None = None
        self.public_urls: list[str] = []
        self._up = threading.Event()
        self._tunnels = tunnels
        self._follower: threading.Thread | None = None

    def start(self) -> None:
        self.public_urls = []
        self._up = threading.Event()
        self.process = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        self._follower = threading.Thread(target=self._follow, args=(self.process,), daemon=True)
        self._follower.start()

    def _follow(self, process: subprocess.Popen[str]) -> None:
        """Read what it says until its end: an output that nobody reads would fill."""
        assert process.stdout is not None
        for line in process.stdout:
            url = json.loads(line).get("public_url")
            if url is not None and url not in self.public_urls:
                self.public_urls.append(url)
                if len(self.public_urls) >= self._tunnels:
                    self._up.set()
        self._up.set()

    @property
    def public_url(self) -> str:
        """Of its first tunnel; empty until that serves."""
        return self.public_urls[0] if self.public_urls else ""

    def wait_serving(self) -> None:
        assert self.process is not None
        self._up.wait()
        if len(self.public_urls) < self._tunnels:
            raise RuntimeError(f"the agent ended with {self.process.wait()}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            if self._follower is not None:
                self._follower.join()
            if self.process.stdout is not None:
                self.process.stdout.close()


@contextmanager
def local_service(module: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A module that prints its port first."""
    with subprocess.Popen(
        [sys.executable, "-m", module], cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process
        finally:
            process.kill()


def rss(pid: int) -> int:
    """Bytes of memory that a process has in use."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
