"""F12: slow clients lose: slowhttptest's three attacks with 300 connections each, beside visitors who mean well.

    python -m tests.lanes.slowhttp [CONNECTIONS]

Each attacker must be gone within 30 s of its last connect, and the good visitors' slowest percentile must stay within
1.5 times what it was without an attack, or under 100 ms. Needs slowhttptest on the path.
"""

from __future__ import annotations

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
TEST_SECONDS = 50
GOOD_MAX = 5  # connections of the good visitor at a time
ESTABLISHED = "01"  # in /proc/net/tcp
ATTACKS = {
    "slow headers": ["-H", "-i", "3", "-x", "24"],
    "slow body": ["-B", "-t", "PUT", "-i", "3", "-s", "8192", "-x", "10"],
    "slow read": ["-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32"],
}
SETTLED_MS = 100.0  # below that a percentile of a machine that does other things says nothing


class Good(threading.Thread):
    """A visitor who asks 20 times a second, each time on a new connection, and keeps the times."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(daemon=True)
        self._server = server
        self.milliseconds: list[float] = []
        self.failed = 0
        self.stop = threading.Event()

    def run(self) -> None:
        request = b"GET /1000 HTTP/1.1\r\nHost: good.localhost\r\nConnection: close\r\n\r\n"
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


class Watch(threading.Thread):
    """How many connections the server's end has, second by second.

    The attacker's own count is no use: a reader that takes 32 bytes in 5 s sees its reset minutes later.
    """

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = f":{port:04X}"
        self.counts: list[int] = []
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(1.0):
            rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            self.counts.append(sum(row[1].endswith(self._port) and row[3] == ESTABLISHED for row in rows))

    def opened_and_gone(self, connections: int) -> tuple[int, int | None]:
        """The second of the last connect, and the one in which nobody but a good visitor was left."""
        most = max(self.counts)
        opened = self.counts.index(most) + 1
        left = [second for second, count in enumerate(self.counts, 1) if second > opened and count <= GOOD_MAX]
        return opened, left[0] if left and most >= connections * 0.9 else None


def attack(server: ServerProcess, options: list[str], connections: int) -> None:
    target = f"http://slow.localhost:{server.http_port}/20000000"
    command = [
        *("slowhttptest", *options, "-c", str(connections), "-r", "150", "-l", str(TEST_SECONDS), "-p", "5", "-v", "0"),
        *("-u", target, "-d", f"127.0.0.1:{server.http_port}"),
    ]
    subprocess.run(command, stdout=subprocess.DEVNULL, timeout=TEST_SECONDS + 60, check=False)


def main(connections: int) -> int:
    failed = False
    with (
        tempfile.TemporaryDirectory(prefix="slowhttp-") as name,
        server_process(Path(name)) as server,
        local_service("tests.lanes.endless") as (attacked, _),
        local_service("tests.lanes.endless") as (spared, _),
    ):
        agents = [AgentProcess(server, "slow", attacked), AgentProcess(server, "good", spared)]
        try:
            for agent in agents:
                agent.start()
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
                watch = Watch(server.http_port)
                watch.start()
                attack(server, options, connections)
                time.sleep(3)  # it ends with its last connection
                watch.stop.set()
                watch.join()
                good.stop.set()
                good.join()
                opened, gone = watch.opened_and_gone(connections)
                in_time = gone is not None and gone - opened <= GONE_SECONDS
                calm = good.p99() <= max(1.5 * quiet.p99(), SETTLED_MS) and good.failed == 0
                failed = failed or not in_time or not calm
                print(
                    f"{kind}: {max(watch.counts)} connected at {opened} s, all gone at {gone} s; good visitors' p99 "
                    f"{good.p99():.0f} ms of {len(good.milliseconds)}, {good.failed} failed: "
                    f"{'pass' if in_time and calm else 'FAIL'}",
                    flush=True,
                )
        finally:
            for agent in agents:
                agent.kill()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else CONNECTIONS))
