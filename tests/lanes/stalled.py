"""F07: what readers that stopped cost the others of their agent: time, throughput, memory.

    python -m tests.lanes.stalled [SECONDS]

SECONDS each (600) with 0, 1, 10 and 50 TCP visitors who ask for 1 GB and read nothing, beside 50 who fetch 300 kB
over and over by HTTP. Exit code 1 where the 99th percentile of these is above 1.2 times, or their throughput below 0.9
of what it is without the former; or where server or agent need more than a window and a bit for each of them. The
first and the last turn have nobody stalled: their mean is the measure, since machines drift.
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
TURNS = (0, 1, 10, 50, 0)
ACTIVE = 50
SIZE = 300_000
TCP_PORTS = "21000-21099"
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
        server = stack.enter_context(server_process(folder, "--tcp-ports", TCP_PORTS))
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
        for count in TURNS:
            before = {name: rss(pid) for name, pid in pids.items()}
            stalled = stall(server, tcp_port, count)
            over = {name: rss(pid) - before[name] for name, pid in pids.items()}
            turns.append((count, *turn(server, seconds), over))
            for sock in stalled:
                sock.close()
    slow = (turns[0][1] + turns[-1][1]) / 2
    rate = (turns[0][2] + turns[-1][2]) / 2
    good = True
    for count, p99, fetches, failed, over in turns:
        fine = p99 <= SLOWER_MAX * slow and fetches >= THROUGHPUT_MIN * rate and not failed
        fine = (fine or not count) and max(over.values()) <= count * ALLOWED_BYTES + ALLOWED_ONCE
        good = good and fine
        grown = ", ".join(f"{name} {size / 1048576:+.1f} MiB" for name, size in over.items())
        print(
            f"{count:3} stalled: p99 {p99 * 1000:6.1f} ms ({p99 / slow:.2f}), {fetches:6.1f} fetches/s "
            f"({fetches / rate:.2f}), {failed} failed, {grown}: {'pass' if fine else 'FAIL'}"
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))
