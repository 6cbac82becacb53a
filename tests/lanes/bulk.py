"""F11: any size in constant memory: 10 GB up and down, with a length and in chunks, content compared by hash.

Then a hundredth of that down to a visitor that reads 8 MB/s, in pieces. The inspector is on, as by default.

    python -m tests.lanes.bulk [MEGABYTES]

Exit code 1 if a hash differs, or if server or agent needed more than 16 MiB over what it had after a small request.
"""

from __future__ import annotations

import hashlib
import io
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lanes.endless import BLOCK
from tests.lanes.processes import AgentProcess, local_service, rss
from tests.support.server_process import ServerProcess, server_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

MEGABYTES = 10_000
ALLOWED_BYTES = 16 * 1024 * 1024
SLOW_PIECE = 1 << 20
SLOW_BYTES_A_SECOND = 8_000_000
SLOW_SHARE = 100
HOST = "bulk.localhost"


class Peak(threading.Thread):
    """The highest memory of some processes, looked at ten times a second."""

    def __init__(self, pids: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self._pids = pids
        self.highest = dict.fromkeys(pids, 0)
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.1):
            for name, pid in self._pids.items():
                self.highest[name] = max(self.highest[name], rss(pid))


def blocks(size: int) -> Iterator[bytes]:
    while size:
        part = BLOCK[: min(size, len(BLOCK))]
        yield part
        size -= len(part)


def digest_of(size: int) -> str:
    digest = hashlib.sha256()
    for part in blocks(size):
        digest.update(part)
    return digest.hexdigest()


def upload(server: ServerProcess, size: int, *, chunked: bool) -> str:
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    with server.connect() as sock, sock.makefile("rb") as answer:
        sock.sendall(f"PUT / HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n\r\n".encode())
        for part in blocks(size):
            sock.sendall(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        if chunked:
            sock.sendall(b"0\r\n\r\n")
        sock.settimeout(60)
        headers = _headers(answer)
        return answer.read(int(headers["content-length"])).decode()


def slow_download(server: ServerProcess, size: int, *, chunked: bool) -> str:
    return download(server, size, chunked=chunked, pause=SLOW_PIECE / SLOW_BYTES_A_SECOND)


def download(server: ServerProcess, size: int, *, chunked: bool, pause: float = 0.0) -> str:
    """With a `pause` (s) before each SLOW_PIECE: the server's buffers for this visitor are full all the time."""
    digest = hashlib.sha256()
    with server.connect() as sock, io.BufferedReader(socket.SocketIO(sock, "r"), 1 << 20) as answer:
        sock.sendall(f"GET /{size}{'/chunked' if chunked else ''} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        headers = _headers(answer)
        if chunked:
            while length := int(answer.readline(), 16):
                digest.update(answer.read(length))
                answer.readline()
                time.sleep(pause * length / SLOW_PIECE)
        else:
            left = int(headers["content-length"])
            while part := answer.read(min(left, SLOW_PIECE)):
                digest.update(part)
                left -= len(part)
                time.sleep(pause)
    return digest.hexdigest()


def _headers(answer: IO[bytes]) -> dict[str, str]:
    status = answer.readline()
    assert b" 200 " in status, status
    headers: dict[str, str] = {}
    while (line := answer.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return headers


def main(megabytes: int) -> int:
    size = megabytes * 1_000_000
    failed = False
    with (
        tempfile.TemporaryDirectory(prefix="bulk-") as folder,
        server_process(Path(folder)) as server,
        local_service("tests.lanes.endless") as (port, _),
    ):
        agent = AgentProcess(server, "bulk", port)
        agent.start()
        try:
            agent.wait_serving()
            assert agent.process is not None
            pids = {"server": server.process.pid, "agent": agent.process.pid}
            wanted = {amount: digest_of(amount) for amount in (size, size // SLOW_SHARE)}
            for form in (False, True):
                upload(server, 1_000_000, chunked=form)  # warm: buffers that every transfer has
                download(server, 1_000_000, chunked=form)
            base = {name: rss(pid) for name, pid in pids.items()}
            for kind, move, amount in (
                ("up", upload, size),
                ("down", download, size),
                ("slow", slow_download, size // SLOW_SHARE),
            ):
                for chunked in (False, True):
                    peak = Peak(pids)
                    peak.start()
                    began = time.monotonic()
                    got = move(server, amount, chunked=chunked)
                    lasted = time.monotonic() - began
                    peak.stop.set()
                    peak.join()
                    over = {name: peak.highest[name] - base[name] for name in pids}
                    good = got == wanted[amount] and max(over.values()) <= ALLOWED_BYTES
                    failed = failed or not good
                    grown = ", ".join(f"{name} {bytes_ / 1048576:+.1f} MiB" for name, bytes_ in over.items())
                    print(
                        f"{kind:4} {'chunked' if chunked else 'length':7} {amount / 1e6:.0f} MB in {lasted:.1f} s "
                        f"({amount / 1e6 / lasted:.0f} MB/s), {grown}, "
                        f"hash {'equal' if got == wanted[amount] else 'DIFFERS'}",
                        flush=True,
                    )
        finally:
            agent.kill()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else MEGABYTES))
