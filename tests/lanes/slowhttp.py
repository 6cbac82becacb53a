"""Slow clients lose: slowhttptest's three attacks with 300 connections each, beside visitors who mean well.

    python -m tests.lanes.slowhttp [CONNECTIONS]

Each attacker must be gone within 30 s of its last connect, and the good visitors' slowest percentile must stay within
1.5 times what it was without an attack, or under 50 ms. Needs slowhttptest on the path.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lanes.processes import AgentProcess, local_service
from tests.support.server_process import read_to_end, server_process

if TYPE_CHECKING:
    from tests.support.server_process import ServerProcess

CONNECTIONS = 300
GONE_SECONDS = 30
ATTACKS = {
    "slow headers": ["-H", "-i", "3", "-x", "24"],
    "slow body": ["-B", "-i", "3", "-s", "8192", "-x", "10"],
    "slow read": ["-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32"],
}
SETTLED_MS = 50.0  # below that a percentile of a busy machine says nothing


class Good(threading.Thread):
    """A visitor who asks 20 times a second, each time on a new connection, and keeps the times."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(daemon=True)
        self._server = server
        self.milliseconds: list[float] = []
        self.failed = 0
        self.stop = threading.Event()

    def run(self) -> None:
        request = b"GET /1000 HTTP/1.1\r\nHost: slow.localhost\r\nConnection: close\r\n\r\n"
        while not self.stop.wait(0.05):
            began = time.monotonic()
            try:
                with self._server.connect() as sock:
                    sock.sendall(request)
                    good = read_to_end(sock).startswith(b"HTTP/1.1 200 ")
            except OSError:
                good = False
            self.failed += not good
            self.milliseconds.append((time.monotonic() - began) * 1000)

    def p99(self) -> float:
        times = sorted(self.milliseconds)
        return times[int(len(times) * 0.99)] if times else 0.0


def attack(
    server: ServerProcess, options: list[str], connections: int, folder: Path
) -> tuple[int, list[dict[str, str]]]:
    """Run it; its exit code and what it noted each second."""
    target = f"http://slow.localhost:{server.http_port}/20000000"
    command = [
        *("slowhttptest", *options, "-c", str(connections), "-r", "150", "-l", "60", "-p", "5", "-v", "1"),
        *("-g", "-o", str(folder / "notes"), "-u", target, "-d", f"127.0.0.1:{server.http_port}"),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    with (folder / "notes.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    if not rows:
        print(ran.stdout[-2000:], ran.stderr[-2000:])
    return ran.returncode, rows


def main(connections: int) -> int:
    failed = False
    with (
        tempfile.TemporaryDirectory(prefix="slowhttp-") as name,
        server_process(Path(name)) as server,
        local_service("tests.lanes.endless") as (port, _),
    ):
        agent = AgentProcess(server, "slow", port)
        agent.start()
        try:
            agent.wait_serving()
            quiet = Good(server)
            quiet.start()
            time.sleep(8)
            quiet.stop.set()
            quiet.join()
            print(f"without an attack: p99 {quiet.p99():.0f} ms of {len(quiet.milliseconds)} requests")
            for kind, options in ATTACKS.items():
                good = Good(server)
                good.start()
                _, rows = attack(server, options, connections, Path(name))
                good.stop.set()
                good.join()
                most = max(int(row["Connected"]) for row in rows)
                opened = next(int(row["Seconds"]) for row in rows if int(row["Connected"]) == most)
                gone = next(
                    (
                        int(row["Seconds"])
                        for row in rows[1:]
                        if row["Connected"] == row["Pending"] == "0" and int(row["Closed"])
                    ),
                    None,
                )
                in_time = gone is not None and gone - opened <= GONE_SECONDS
                calm = good.p99() <= max(1.5 * quiet.p99(), SETTLED_MS) and good.failed == 0
                failed = failed or not in_time or not calm
                print(
                    f"{kind}: {most} connected at {opened} s, all gone at {gone} s; good visitors' p99 "
                    f"{good.p99():.0f} ms of {len(good.milliseconds)}, {good.failed} failed: "
                    f"{'pass' if in_time and calm else 'FAIL'}",
                    flush=True,
                )
        finally:
            agent.kill()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else CONNECTIONS))
