"""Whether anybody suffers: a busy stream beside stalled ones, a visitor beside slow ones, trio under full load."""

from __future__ import annotations

import http.client
import socket
import statistics
import threading
import time
from typing import TYPE_CHECKING

from benchmarks.measure import bulk, load
from benchmarks.table import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.stage import Stage

STALLED = 50
SLOW = 1000
DRIP_SECONDS = 1.0  # between two bytes of a slow visitor's head
POLL_SECONDS = 0.02  # between two questions to the API
POLL_LIMIT = 2000  # as many as fit into any measurement


def stalled_streams(at: Stage, rounds: int) -> Iterator[Row]:
    """One download beside downloads that nobody reads."""
    url = f"http://127.0.0.1:{at.http}/bulk"
    row = Row(f"bulk down beside {STALLED} stalled streams, to none", "MB/s", 0.9)
    for _ in range(rounds):
        row.reference.append(bulk(url, at.host))
        stalled = []
        for _ in range(STALLED):
            connection = socket.create_connection(("127.0.0.1", at.http))
            connection.sendall(f"GET /bulk HTTP/1.1\r\nHost: {at.host}\r\n\r\n".encode())
            stalled.append(connection)
        time.sleep(1)  # until every window and buffer of theirs is full
        bulk(url, at.host)  # not counted: the first one after so many new buffers is often far slower, here
        row.ours.append(bulk(url, at.host))
        for connection in stalled:
            connection.close()
    yield row


def slow_visitors(at: Stage, rounds: int) -> Iterator[Row]:
    """The latency of one visitor beside many whose requests come byte by byte."""
    url = f"http://127.0.0.1:{at.http}/"
    row = Row(f"p99 beside {SLOW} slow visitors, to none", "ms", 1.5, less_is_better=True)
    for _ in range(rounds):
        row.reference.append(load(at.tools.wrk, url, at.host, connections=1).p99)
        slow = [socket.create_connection(("127.0.0.1", at.http)) for _ in range(SLOW)]
        over = threading.Event()

        def drip(slow: list[socket.socket] = slow, over: threading.Event = over) -> None:
            while True:
                for connection in slow:
                    if over.wait(DRIP_SECONDS / SLOW):  # one after another: a thousand at once would be a flood
                        return
                    try:
                        connection.send(b"G")
                    except OSError:
                        pass  # swept: its head took too long

        thread = threading.Thread(target=drip)
        thread.start()
        row.ours.append(load(at.tools.wrk, url, at.host, connections=1).p99)
        over.set()
        thread.join()
        for connection in slow:
            connection.close()
    yield row


def lateness(at: Stage, rounds: int) -> Iterator[Row]:
    """How long the API takes to answer while the machine is full: what trio is late, and more."""
    url = f"http://127.0.0.1:{at.http}/"
    for name, work in (
        ("API answers under full load, p99", lambda: load(at.tools.wrk, url, at.host, connections=32)),
        ("API answers beside a bulk stream, p99", lambda: [bulk(f"{url}bulk", at.host) for _ in range(4)]),
    ):
        row = Row(name, "ms", 20, less_is_better=True)
        for _ in range(rounds):
            row.ours.append(_while_asking(at, work))
        yield row


def _while_asking(at: Stage, work: Callable[[], object]) -> float:
    """The p99 of the API's answers, in milliseconds, for as long as `work` takes."""
    port = int(at.api.rpartition(":")[2])
    waits: list[float] = []
    over = threading.Event()

    def ask() -> None:
        api = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while not over.wait(POLL_SECONDS) and len(waits) < POLL_LIMIT:
            begun = time.perf_counter()
            api.request("GET", "/api/health/ready")
            api.getresponse().read()
            waits.append((time.perf_counter() - begun) * 1000)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        work()
    finally:
        over.set()
        thread.join()
    return statistics.quantiles(waits, n=100)[98]
