"""Requests and bulk through the tunnels, beside the reference."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import LoadFailed, bulk, load
from benchmarks.stage import BULK_BYTES, Stage, cpu_seconds, resident_kib
from benchmarks.table import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A browser's page load: with wrk's Host 12 header lines and 564 bytes.
BROWSER = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language: en-GB,en;q=0.9,de;q=0.8",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Cache-Control: no-cache",
    "Upgrade-Insecure-Requests: 1",
    "Sec-Fetch-Dest: document",
    "Sec-Fetch-Mode: navigate",
    "Sec-Fetch-Site: none",
    "Sec-Fetch-User: ?1",
    "Cookie: session=0123456789abcdef; theme=dark",
)
VARYING = Path(__file__).with_name("varying.lua")
GROWTH_BULKS = 20  # of 100 MB: the 2 GB over which memory may not grow


def alternate(row: Row, rounds: int, ours: Callable[[], float], reference: Callable[[], float] | None = None) -> Row:
    """Both, `rounds` times in turn. A round that fails is told and left out."""
    for _ in range(rounds):
        try:
            beside = None if reference is None else reference()
            row.ours.append(ours())
            if beside is not None:
                row.reference.append(beside)
        except LoadFailed as error:
            print(f"{row.name}: {error}", file=sys.stderr)
    return row


def _cpu(at: Stage) -> float:
    return cpu_seconds(at.server) + cpu_seconds(at.agent)


def requests(at: Stage, rounds: int) -> Iterator[Row]:
    wrk = at.tools.wrk
    ours, beside = f"http://127.0.0.1:{at.http}/", f"http://127.0.0.1:{at.reference}/"
    cpu = Row("CPU, server + agent, 32 connections", "µs/req", 85, less_is_better=True)

    def keep_alive() -> float:
        before = _cpu(at)
        result = load(wrk, ours, at.host, connections=32)
        cpu.ours.append((_cpu(at) - before) / result.requests * 1e6)
        return result.rate

    def rate(
        url: str,
        connections: int = 32,
        *,
        headers: tuple[str, ...] = (),
        script: str | None = None,
        new_connections: bool = False,
    ) -> Callable[[], float]:
        return lambda: (
            load(
                wrk,
                url,
                at.host,
                connections=connections,
                headers=headers,
                script=script,
                new_connections=new_connections,
            ).rate
        )

    yield alternate(Row("keep-alive, 32 connections", "req/s", 0.42), rounds, keep_alive, rate(beside))
    yield cpu
    for how, script, at_latest in (("repeated", None, 0.38), ("varying", str(VARYING), 0.32)):
        yield alternate(
            Row(f"browser's head, {how}", "req/s", at_latest),
            rounds,
            rate(ours, headers=BROWSER, script=script),
            rate(beside, headers=BROWSER, script=script),
        )
    yield alternate(
        Row("HTTPS edge, keep-alive, 32 connections", "req/s", 0.36),
        rounds,
        rate(f"https://127.0.0.1:{at.https}/"),
        rate(f"https://127.0.0.1:{at.reference_tls}/"),
    )
    yield alternate(
        Row("one connection, p50", "ms", 5.0, less_is_better=True),
        rounds,
        lambda: load(wrk, ours, at.host, connections=1).p50,
        lambda: load(wrk, beside, at.host, connections=1).p50,
    )
    yield alternate(
        Row("new connection per request", "req/s", 0.50),
        rounds,
        rate(ours, new_connections=True),
        rate(beside, new_connections=True),
    )
    for connections in (256, 1024):
        name = f"keep-alive, {connections} connections, to 32 connections"
        yield alternate(Row(name, "req/s", 0.8), rounds, rate(ours, connections), rate(ours))
    yield alternate(
        Row("TCP tunnel, keep-alive, 32 connections", "req/s", 0.45),
        rounds,
        rate(f"http://127.0.0.1:{at.tcp}/"),
        rate(beside),
    )
    yield alternate(
        Row("TCP tunnel, new connection per request", "req/s"),
        rounds,
        rate(f"http://127.0.0.1:{at.tcp}/", new_connections=True),
        rate(beside, new_connections=True),
    )
    if at.stock_label:
        stock = f"{at.stock_label}.localhost"
        yield alternate(
            Row("stock agent, keep-alive, 32 connections", "req/s", 0.28),
            rounds,
            lambda: load(wrk, ours, stock, connections=32).rate,
            rate(beside),
        )


def bulks(at: Stage, folder: Path, rounds: int) -> Iterator[Row]:
    """One stream each way through both kinds of tunnel, and CPU seconds a GB over all of them."""
    ours, tcp = f"http://127.0.0.1:{at.http}/", f"http://127.0.0.1:{at.tcp}/"
    upload_file = str(folder / "bulk")
    cpu = Row("CPU, server + agent, bulk", "s/GB", 4.5, less_is_better=True)

    def counted(transfer: Callable[[], float]) -> Callable[[], float]:
        def run() -> float:
            before = _cpu(at)
            speed = transfer()
            cpu.ours.append((_cpu(at) - before) / (BULK_BYTES / 1e9))
            return speed

        return run

    def down(url: str) -> Callable[[], float]:
        return lambda: bulk(f"{url}bulk", at.host)

    def up(url: str) -> Callable[[], float]:
        return lambda: bulk(url, at.upload_host, upload=upload_file)

    beside = down(f"http://127.0.0.1:{at.reference}/")
    nothing_beside = up(f"http://127.0.0.1:{at.upload}/")
    for kind, url, upload_url in (("HTTP", ours, ours), ("TCP", tcp, f"http://127.0.0.1:{at.tcp_upload}/")):
        row = alternate(Row(f"bulk down, {kind} tunnel, one stream", "MB/s"), rounds, counted(down(url)), beside)
        yield row
        yield Row(f"  the same, without the reference ({kind})", "MB/s", 280, ours=row.ours)
        row = alternate(
            Row(f"bulk up, {kind} tunnel, one stream", "MB/s"), rounds, counted(up(upload_url)), nothing_beside
        )
        yield row
        yield Row(f"  the same, without the reference ({kind}, up)", "MB/s", 240, ours=row.ours)
    yield cpu
    before = resident_kib(at.server), resident_kib(at.agent)
    for number in range(GROWTH_BULKS):
        (down(ours) if number % 2 else up(ours))()
    grown = (resident_kib(at.server) - before[0]) / 1024, (resident_kib(at.agent) - before[1]) / 1024
    yield Row("server's growth while 2 GB pass", "MiB", 16, less_is_better=True, ours=[grown[0]])
    yield Row("agent's growth while 2 GB pass", "MiB", ours=[grown[1]])
