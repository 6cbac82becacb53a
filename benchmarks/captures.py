"""`python -m benchmarks.captures [ROWS]`: what captures cost, and how fast they are found. ROWS are for the listing.

Prints one figure a line, each beside its target. Needs some hundred MB of disk and a minute.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from rustunnel_py.config import InspectConfig
from rustunnel_py.hub.inspector import Inspector
from rustunnel_py.hub.registry import Registry, Tunnel
from rustunnel_py.model.access import Caller, Role
from rustunnel_py.model.capture import Capture
from rustunnel_py.model.tunnel import HttpHost, Peer, Protocol
from rustunnel_py.model.visit import Visit, VisitKind
from rustunnel_py.store.captures import ROWS_A_TRANSACTION, Captures, Filter
from rustunnel_py.store.store import open_store
from rustunnel_py.transport.pump import open_pump
from rustunnel_py.wire.http1 import REPLY_LIMITS, REQUEST_LIMITS, judge_reply, judge_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.wire.http1 import ReplyHead, RequestHead

BODY = b'{"id": 4711, "label": "something to look at", "items": [' + b'{"a": 1, "b": "hello world"}, ' * 31 + b"{}]}"
ADMIN = Caller("u", Role.ADMIN)
PEER = Peer("203.0.113.7", 50000)


class _NoPorts:
    def open(self, tunnel: Tunnel, port: int) -> None: ...

    def close(self, port: int) -> None: ...


@dataclass
class Bench:
    inspector: Inspector
    captures: Captures
    tunnels: list[Tunnel]
    request: RequestHead
    reply: ReplyHead

    def exchange(self, number: int, body: bytes, tunnel: Tunnel | None = None) -> None:
        """One, as the edge would have it watched; what the hot path pays."""
        tunnel = tunnel or self.tunnels[number % len(self.tunnels)]
        visit = Visit(IDS[number % len(IDS)], tunnel.id, VisitKind.HTTP, PEER, PEER)
        view = memoryview(body)
        tap = self.inspector.watch(tunnel, visit, self.request)
        tap.begun()
        tap.head(self.reply)
        tap.data(view)
        tap.over(200, 1.5)


IDS = [os.urandom(16).hex() for _ in range(4096)]


def _heads() -> tuple[RequestHead, ReplyHead]:
    request = judge_request(
        b"GET /api/items?page=1 HTTP/1.1\r\nHost: app.example.test\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n"
        b"Authorization: Bearer abcdefghijklmnop\r\n\r\n",
        REQUEST_LIMITS,
    )
    reply = judge_reply(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Tue, 24 Nov 2026 21:00:00 GMT\r\nServer: b\r\n"
        b"Content-Length: %d\r\n\r\n" % len(BODY),
        b"GET",
        REPLY_LIMITS,
    )
    return request, reply


async def _bench(captures: Captures, pump: Pump, tunnels: int, config: InspectConfig) -> Bench:
    registry = Registry(_NoPorts(), (0, 0), trio.current_time)
    inspector = Inspector(config, registry, pump, captures)
    await inspector.start()
    made = [registry.create(HttpHost(f"t{n}.example.test"), "u", Protocol.HTTP) for n in range(tunnels)]
    return Bench(inspector, captures, made, *_heads())


def _best(function: Callable[[], None], rounds: int = 5) -> float:
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return min(times)


class Watchdog:
    """The longest time that trio's loop did not come round."""

    def __init__(self) -> None:
        self.worst = 0.0

    async def run(self) -> None:
        while True:
            begun = time.perf_counter()
            await trio.sleep(0.001)
            self.worst = max(self.worst, time.perf_counter() - begun - 0.001)


def show(name: str, value: float, unit: str, target: str) -> None:
    print(f"{name:58} {value:10.2f} {unit:6} ({target})", flush=True)


async def hot_path(bench: Bench) -> None:
    body = b"Hello, world!"

    def some() -> None:
        for number in range(20_000):
            bench.exchange(number, body)

    def empty() -> None:
        for number in range(20_000):
            Visit(IDS[number % len(IDS)], "t", VisitKind.HTTP, PEER, PEER)
            memoryview(body)
            bench.tunnels[number % len(bench.tunnels)]

    show("hot path, a small exchange", (_best(some) - _best(empty)) / 20_000 * 1e6, "µs", "<= 3")


async def sustained(bench: Bench, seconds: int, rate: int) -> None:
    """`rate` different captures a second for some seconds, while the writer runs as it does in the server."""
    watchdog = Watchdog()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.inspector.run)
        nursery.start_soon(watchdog.run)
        cpu = time.process_time()
        begun = trio.current_time()
        made = 0
        while trio.current_time() < begun + seconds:
            until = int((trio.current_time() - begun) * rate)
            for number in range(made, until):
                bench.exchange(number, b"%08d" % number + BODY)
            made = until
            await trio.sleep(0.005)
        spent = time.process_time() - cpu
        await trio.sleep(1.2)
        status = bench.inspector.status()
        nursery.cancel_scope.cancel()
    show("captures a second that were stored, 1 KB each", status.stored / seconds, "1/s", ">= 5000")
    show("of these overwritten before their turn", status.not_stored, "", "0")
    show("CPU for making and storing one", spent / max(1, made) * 1e6, "µs", "")
    show("longest silence of the loop", watchdog.worst * 1e3, "ms", "<= 50")


def _capture(seq: int, tunnel_id: str, body: bytes) -> Capture:
    return Capture(
        seq=seq,
        id=str(uuid.uuid4()),
        tunnel_id=tunnel_id,
        connection_id="c",
        captured_at=datetime.now(UTC),
        visitor=PEER,
        method="GET",
        path=f"/api/items?page={seq}",
        request_headers=((b"Host", b"app.example.test"), (b"User-Agent", b"bench/1.0")),
        status=200,
        response_headers=((b"Content-Type", b"application/json"),),
        response_body=body,
        response_bytes=len(body),
    )


async def fill(captures: Captures, tunnels: list[Tunnel], rows: int, body: bytes) -> None:
    owners = {tunnel.id: "u" for tunnel in tunnels}
    at = captures.last_seq + 1
    for start in range(at, at + rows, ROWS_A_TRANSACTION):
        numbers = range(start, min(start + ROWS_A_TRANSACTION, at + rows))
        await captures.write([_capture(seq, tunnels[seq % len(tunnels)].id, body) for seq in numbers], owners)


async def reading(bench: Bench, rows: int) -> None:
    await fill(bench.captures, bench.tunnels[1:], rows, b"x" * 200)
    await fill(bench.captures, bench.tunnels[:1], 10_000, BODY)
    inspector, tunnel = bench.inspector, bench.tunnels[0]

    async def best(question: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            await question()  # type: ignore[misc]
            times.append(time.perf_counter() - begun)
        return sorted(times)[2] * 1e3

    other = bench.tunnels[1]
    show(
        f"50 of {rows + 10_000} captures", await best(lambda: inspector.page(ADMIN, other.id, None, 50)), "ms", "<= 20"
    )
    deep = bench.captures.last_seq // 2
    show("50 of them from the middle", await best(lambda: inspector.page(ADMIN, other.id, deep, 50)), "ms", "<= 20")
    nothing = Filter(body=b"nowhere to be found")
    took = await best(lambda: inspector.search(ADMIN, tunnel.id, nothing, None, 50))
    show("a search in 10 000 bodies of 1 KiB that finds nothing", took, "ms", "<= 200")
    took = await best(lambda: inspector.search(ADMIN, tunnel.id, Filter(path="page=77"), None, 50))
    show("a search by path in 10 000", took, "ms", "")


async def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        async with open_store(path / "main.db", path / "captured.db") as store, open_pump() as pump:
            config = InspectConfig(rows_per_second=20_000, keep_per_tunnel=2000, ring_bytes=256 * 2**20)
            bench = await _bench(Captures(store.captured), pump, 40, config)
            await hot_path(bench)
            bench = await _bench(Captures(store.captured), pump, 40, config)
            await sustained(bench, 10, 6000)
        async with open_store(path / "main2.db", path / "captured2.db") as store, open_pump() as pump:
            bench = await _bench(Captures(store.captured), pump, 100, InspectConfig())
            await reading(bench, rows)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 990_000)
