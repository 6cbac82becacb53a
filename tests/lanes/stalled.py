"""F07: what readers that stopped cost the others of their agent: time, throughput, memory.

    python -m tests.lanes.stalled [SECONDS]

SECONDS each (600) with 1, 10 and 50 TCP visitors who ask for 1 GB and read nothing, beside 50 who fetch 300 kB over and
over by HTTP; before and after each turn, for a fifth of the time, nobody is stalled: the mean of both is the measure,
since machines drift. Exit code 1 where the 99th percentile of the active ones is above 1.2 times, or their throughput
below 0.9 of the measure; or where server or agent need more than a window and a bit for each stalled one.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rustunnel_py.wire.yamux import INITIAL_WINDOW
from tests.lanes.handshakes import percentile
from tests.lanes.processes import AgentProcess, local_service, rss
from tests.support.server_process import server_process

if TYPE_CHECKING:
    import socket

    from tests.support.server_process import ServerProcess

SECONDS = 600.0
STALLED = (1, 10, 50)
MEASURE_SHARE = 0.2  # of SECONDS, for a turn with nobody stalled
ACTIVE = 50
SIZE = 300_000
TCP_PORTS = "21000-21099"
SETTINGS = {"RUSTUNNEL_INSPECT__BODY_MAX_BYTES": "1024"}  # else captures of 300 kB come and go in the same memory
SETTLE_SECONDS = 2.0  # until every window and buffer of those who stall is full
SLOWER_MAX = 1.2
THROUGHPUT_MIN = 0.9
# On either side at most: the stream's window, twice where it is buffered for TLS or the visitor, and 1 MiB in all.
ALLOWED_BYTES = 2 * INITIAL_WINDOW
ALLOWED_ONCE = 1024 * 1024


class Fetcher(threading.Thread):
    """One active visitor on one connection; keeps how long each fetch took, in seconds."""

    def __init__(self, server: ServerProcess, until: float) -> None:
        super().__init__(daemon=True)
        self._sock = server.connect()
        self._until = until
        self.took: list[float] = []
        self.failed = 0

    def run(self) -> None:
        buffer = bytearray(65536)
        with self._sock as sock:
            while (began := time.monotonic()) < self._until:
                sock.sendall(b"GET /size/%d HTTP/1.1\r\nHost: web.localhost\r\n\r\n" % SIZE)
                left: int | None = None
                while left is None or left > 0:
                    size = sock.recv_into(buffer)
                    if size == 0:
                        self.failed += 1
                        return
                    if left is None:
                        left = SIZE + buffer.index(b"\r\n\r\n") + 4
                    left -= size
                self.took.append(time.monotonic() - began)


def turn(server: ServerProcess, seconds: float) -> tuple[float, float, int]:
    """The 99th percentile (s), fetches a second, failures."""
    until = time.monotonic() + seconds
    fetchers = [Fetcher(server, until) for _ in range(ACTIVE)]
    for fetcher in fetchers:
        fetcher.start()
    for fetcher in fetchers:
        fetcher.join()
    took = [one for fetcher in fetchers for one in fetcher.took]
    return percentile(took, 0.99), len(took) / seconds, sum(fetcher.failed for fetcher in fetchers)


def stall(server: ServerProcess, port: int, count: int) -> list[socket.socket]:
    """Visitors of the TCP tunnel: nobody minds how slow those are. Of HTTP, who reads nothing is cut off."""
    stalled = []
    for _ in range(count):
        sock = server.connect(port)
        sock.sendall(b"GET /size/1000000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        stalled.append(sock)
    time.sleep(SETTLE_SECONDS if count else 0)
    return stalled


def main(seconds: float) -> int:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stalled-")))
        server = stack.enter_context(server_process(folder, "--tcp-ports", TCP_PORTS, environment=SETTINGS))
        port, _ = stack.enter_context(local_service("tests.lanes.mixed"))
        # One agent with both tunnels: its streams share one connection to the server.
        file = folder / "agent.toml"
        file.write_text(
            f'[tunnels.web]\nprotocol = "http"\nlocal = "127.0.0.1:{port}"\nsubdomain = "web"\n'
            f'[tunnels.raw]\nprotocol = "tcp"\nlocal = "127.0.0.1:{port}"\n'
        )
        agent = AgentProcess(server, "web", port, tunnel=("start", str(file)), tunnels=2)
        stack.callback(agent.kill)
        agent.start()
        agent.wait_serving()
        tcp_port = next(int(url.rpartition(":")[2]) for url in agent.public_urls if url.startswith("tcp:"))
        assert agent.process is not None
        pids = {"server": server.process.pid, "agent": agent.process.pid}
        turn(server, min(seconds, 5.0))  # warm: buffers and pools that active visitors have
        turns = []
        for count in (0, *(one for stalled in STALLED for one in (stalled, 0))):
            before = {name: rss(pid) for name, pid in pids.items()}
            stalled = stall(server, tcp_port, count)
            over = {name: rss(pid) - before[name] for name, pid in pids.items()}
            turns.append((count, *turn(server, seconds if count else seconds * MEASURE_SHARE), over))
            for sock in stalled:
                sock.close()
    good = True
    for at in range(1, len(turns), 2):
        count, p99, fetches, failed, over = turns[at]
        slow = (turns[at - 1][1] + turns[at + 1][1]) / 2
        rate = (turns[at - 1][2] + turns[at + 1][2]) / 2
        fine = p99 <= SLOWER_MAX * slow and fetches >= THROUGHPUT_MIN * rate and not failed
        fine = fine and max(over.values()) <= count * ALLOWED_BYTES + ALLOWED_ONCE
        good = good and fine
        grown = ", ".join(f"{name} {size / 1048576:+.1f} MiB" for name, size in over.items())
        print(
            f"{count:3} stalled: p99 {p99 * 1000:.1f} ms (without {slow * 1000:.1f}), {fetches:.1f} fetches/s (without "
            f"{rate:.1f}), {failed} failed, {grown}: {'pass' if fine else 'FAIL'}"
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))
