"""Whether anybody suffers: a busy stream beside stalled ones, a visitor beside slow ones, trio under full load."""

from __future__ import annotations

import contextlib
import re
import socket
import statistics
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from benchmarks.measure import LoadFailed, bulk, load
from benchmarks.stage import BULK_BYTES, cpu_seconds, queue_seconds
from benchmarks.table import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.stage import Stage

STALLED = 50
STALLED_TURNS = 3  # with and without them, a round: single downloads of 0.3 s differ by a factor of two
STALLED_BULKS = 3
STALLED_SECONDS = 1.0  # until every window and buffer of theirs is full, or given back
SLOW = 1000
DRIP_SECONDS = 1.0  # between two bytes of a slow visitor's head
POLL_SECONDS = 0.01  # between two questions to the API
ANSWER_SECONDS = 30.0  # longer than any answer takes
# A thousand answers and a hundred timers a round: ten answers are behind the p99, and one timer.
LATENESS_SECONDS = 5
LATENESS_LOADS = 2

_ANSWER = re.compile(rb"HTTP/1\.1 .*?\r\ncontent-length: (\d+)\r\n(?:.*?\r\n)??\r\n", re.IGNORECASE | re.DOTALL)


def stalled_streams(at: Stage, rounds: int) -> Iterator[Row]:
    """Downloads beside downloads that nobody reads, several turns a round; what is shown are medians of a turn."""
    speed = Row(f"bulk down beside {STALLED} stalled streams, to none", "MB/s", 0.9)
    cpu = Row("  CPU, server + agent, to none", "s/GB")
    for _ in range(rounds * STALLED_TURNS):
        for stalled, speeds, costs in ((0, speed.reference, cpu.reference), (STALLED, speed.ours, cpu.ours)):
            with _stalled(at, stalled):
                got, cost = _downloads(at)
            speeds.append(got)
            costs.append(cost)
    yield speed
    yield cpu


@contextlib.contextmanager
def _stalled(at: Stage, count: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", at.http)))
            connection.sendall(f"GET /bulk HTTP/1.1\r\nHost: {at.host}\r\n\r\n".encode())
        time.sleep(STALLED_SECONDS)
        yield
    time.sleep(STALLED_SECONDS)


def _downloads(at: Stage) -> tuple[float, float]:
    """The median speed of a few (MB/s), and what they cost (s/GB). The first one does not count.

    It is often far slower, with or without others: what was opened or ended just before is still being cleared away.
    """
    url = f"http://127.0.0.1:{at.http}/bulk"
    bulk(url, at.host)
    before = cpu_seconds(at.server) + cpu_seconds(at.agent)
    speeds = [bulk(url, at.host) for _ in range(STALLED_BULKS)]
    cost = cpu_seconds(at.server) + cpu_seconds(at.agent) - before
    return statistics.median(speeds), cost / (STALLED_BULKS * BULK_BYTES / 1e9)


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
    """What is late while the machine is full: answers of the API, timers of trio, and anything at all.

    The last is seen in two ways: by the answers, at the same times, of a web server that has nothing else to do; and by
    how long the server could have run, but had to wait until others had.
    """
    url = f"http://127.0.0.1:{at.http}/"
    for name, work in (
        ("under full load", lambda: load(at.tools.wrk, url, at.host, connections=32, seconds=LATENESS_SECONDS)),
        ("beside a bulk stream", lambda: _for_seconds(LATENESS_SECONDS, lambda: bulk(f"{url}bulk", at.host))),
    ):
        answers = Row(f"API answers {name}, p99", "ms", 20, less_is_better=True)
        timers = Row(f"trio's timers {name}, worst of 100", "ms", 20, less_is_better=True)
        machine = Row(f"  idle nginx {name}, p99", "ms")
        queued = Row(f"  waits for a processor {name}", "%")
        for _ in range(rounds):
            api, idle = _Asking(at.api, "/api/health/ready"), _Asking(f"http://127.0.0.1:{at.reference}", "/idle")
            with api.connection, idle.connection:
                _loop_lag(at.api)  # begins anew
                begun, waited = time.monotonic(), queue_seconds(at.server)
                for _ in range(LATENESS_LOADS):
                    _while_asking((api, idle), work)
                queued.ours.append((queue_seconds(at.server) - waited) / (time.monotonic() - begun) * 100)
                timers.ours.append(_loop_lag(at.api))
            answers.ours.append(api.p99)
            machine.ours.append(idle.p99)
        yield answers
        yield timers
        yield machine
        yield queued


def _for_seconds(seconds: float, work: Callable[[], object]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        work()


def _loop_lag(api: str) -> float:
    """How late the worst of trio's timers was since this was asked last, in ms; the server sets ten a second."""
    with urllib.request.urlopen(f"{api}/metrics", timeout=ANSWER_SECONDS) as answer:
        found = re.search(rb"^rustunnel_loop_lag_seconds (\S+)", answer.read(), re.MULTILINE)
    if found is None:
        raise LoadFailed("the server does not tell how late its loop is")
    return float(found[1]) * 1000


class _Asking:
    """One kept connection, one question again and again, and how long each answer took, in ms."""

    def __init__(self, url: str, path: str) -> None:
        port = int(url.rpartition(":")[2])
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        self._waits: list[float] = []

    def ask(self) -> None:
        """Raises LoadFailed for any answer but 200."""
        begun = time.perf_counter()
        self.connection.sendall(self._request)
        answer = b""
        while (match := _ANSWER.match(answer)) is None or len(answer) < match.end() + int(match[1]):
            more = self.connection.recv(65536)
            if not more:
                raise LoadFailed(f"no whole answer: {answer!r}")
            answer += more
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise LoadFailed(repr(answer))
        self._waits.append((time.perf_counter() - begun) * 1000)

    @property
    def p99(self) -> float:
        return statistics.quantiles(self._waits, n=100)[98]


def _while_asking(questions: tuple[_Asking, ...], work: Callable[[], object]) -> None:
    """Each of them every POLL_SECONDS, for as long as `work` takes."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(POLL_SECONDS):
            for question in questions:
                question.ask()

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            work()
        finally:
            over.set()
        asking.result()
