"""P14, F19: a server and its agents under a mixed load for a long time; afterwards everything is as it was before.

    SOAK_SECONDS=1200 python -m tests.lanes.soak

A warm-up, a rest, a look: the base. Then the load for SOAK_SECONDS, a rest, a second look. The load (`load.py`):
kept-alive and new connections with tagged requests, plain and by TLS, some of which leave in the middle; WebSockets,
event streams, uploads, downloads, TCP visits; agents that are killed or ended and come back; tokens that are made, used
and revoked, also with an agent on them; the API, live views, hostile input at every port. Exit code 1 where

- memory, descriptors, threads, tasks, a gauge of /metrics, the number of objects of any class of ours, or what their
  containers hold does not return to the base, within the tolerance of its row;
- an answer was somebody else's, did not come, or failed although its agent was there all the time;
- a callback raised, or the server logged an error.
"""

from __future__ import annotations

import http.client
import json
import os
import random  # noqa: TID251  (seeded: a lane that failed can be run again)
import re
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import trio

from rustunnel_py.hub.recording import CONNECTIONS_MAX
from rustunnel_py.model.redact import REMEMBERED
from rustunnel_py.model.telemetry import SAMPLES_MAX
from rustunnel_py.wire.request import REMEMBERED as BLOCKS_REMEMBERED
from tests.lanes.counted import VARIABLE, counts_of
from tests.lanes.load import FLAPPING, MESSAGES, STEADY, Load
from tests.lanes.processes import AgentProcess, descriptors, local_service, rss
from tests.support.server_process import server_process

if TYPE_CHECKING:
    from tests.support.server_process import ServerProcess

SOAK_SECONDS = 1200.0
WARM_SHARE = 0.25  # of that, within these bounds: caches, pools and rings fill, memory takes its shape
WARM_MIN_SECONDS, WARM_MAX_SECONDS = 10.0, 120.0
BASE_REST_SECONDS = 20.0  # what ends by itself behind a load: holds, idle threads, batches of the store
REST_SECONDS = 120.0  # at most, until everything is back
LOOK_SECONDS = 3.0
SHOWN_SECONDS = 60.0
TOLD_MAX = 50  # of what went wrong
FLAP_SECONDS = 3.0
REVOKE_SECONDS = 10.0
MIB = 1048576
RING_SIZE = 50  # captures of a tunnel
RINGS = len(STEADY) + 1  # of those that are there at rest; the others are freed with their tunnels

# Short holds, so that a rest sees their end; rings that are full after the warm-up; every limit on, none of them met.
SETTINGS = {
    "RUSTUNNEL_TUNNELS__HOLD_SECONDS": "5",
    "RUSTUNNEL_INSPECT__RING_SIZE": str(RING_SIZE),
    "RUSTUNNEL_INSPECT__RING_BYTES": str(4 * MIB),
    "RUSTUNNEL_LIMITS__RATE_LIMIT_RPS": "100000",
    "RUSTUNNEL_LIMITS__IP_RATE_LIMIT_RPS": "100000",
    "RUSTUNNEL_LIMITS__IP_HANDSHAKES_PER_SECOND": "100000",
    "RUSTUNNEL_LIMITS__REQUEST_BODY_MAX_BYTES": str(64 * MIB),
}
TCP_PORTS = "21000-21099"  # below the kernel's own range

# How far above the base a row may be at the end, by how it begins; the first that fits.
TOLERANCES = {
    "memory of the server": 32.0,  # MiB; with what the allocator keeps of bodies that are long gone
    "memory of": 8.0,
    "allocated": 8.0,  # MiB; without that, and without Python's small objects, which are counted below
    "write-ahead logs": 8.0,  # MiB; SQLite's own checkpoint keeps each of the two near 4
    "descriptors of": 2.0,  # the API's or a pool's that are just being closed
    "threads": 2.0,  # trio keeps idle ones for 10 s
    "tasks": 2.0,
    "gauge captures_bytes": 4.0 * MIB,  # the rings' bound
    "gauge loop_lag": 1.0,  # s; the worst since the last look, which counts objects itself
    "gauge": 0.0,
    "objects": 16.0,
    "kept": 64.0,
}
VIEWS_MAX = 10_000.0  # captures made ready to be shown: 16 MiB of them, the smallest of 1.5 KiB
TUNNELS_MAX = 4000.0  # more than there are in 20 minutes
# What fills slowly, to a bound of its own: at most so much in all, however little it was before.
BOUNDS = {
    "objects hub.recording.Recording": float(RINGS * RING_SIZE),
    "objects model.capture.Capture": VIEWS_MAX,
    "kept hub.capture_views.CaptureViews._ready": VIEWS_MAX,
    "objects model.capture.Message": float(RINGS * RING_SIZE * 3 * MESSAGES),
    "objects model.tunnel.Peer": float(RINGS * RING_SIZE + 16),
    "kept model.telemetry.Samples._samples": float(RINGS * SAMPLES_MAX),
    "kept model.redact.Redactor.": float(REMEMBERED),
    "objects model.redact.Judged": float(REMEMBERED),
    "kept hub.recording.TunnelRing._connections": float(RINGS * CONNECTIONS_MAX),
    "objects wire.request.RequestBlock": float(2 * BLOCKS_REMEMBERED + RINGS * RING_SIZE),
    "kept wire.request.BlockMemory.": float(BLOCKS_REMEMBERED),
    # Known for as long as the store has captures of them; each return of an agent is another tunnel.
    "objects store.captures.Share": TUNNELS_MAX,
    "kept store.captures.Captures.": TUNNELS_MAX,
}

Rows: TypeAlias = dict[str, float]


def highest(row: str, base: Rows) -> float:
    """What it may be at the end."""
    before = base.get(row, 0.0)
    over = next(value for begins, value in TOLERANCES.items() if row.startswith(begins))
    bound = next((value for begins, value in BOUNDS.items() if row.startswith(begins)), 0.0)
    return max(before + over, bound)


class Bench:
    """The processes, and what can be seen of them."""

    def __init__(self, server: ServerProcess, counts: Path, service: int) -> None:
        self.server = server
        self.counts = counts
        self.service = service
        self.steady = [AgentProcess(server, name, service) for name in STEADY]
        self.tcp = AgentProcess(server, "tcp", service, tunnel=("tcp", str(service)))
        self.flapping = [AgentProcess(server, name, service) for name in FLAPPING]
        self.deaths = self.revoked = 0

    def look(self) -> Rows:
        """Everything that has to return."""
        pid = self.server.process.pid
        found = counts_of(self.server, self.counts)
        rows: Rows = {"memory of the server, MiB": rss(pid) / MIB, "descriptors of the server": descriptors(pid)}
        for name, agent in (("agent one", self.steady[0]), ("agent two", self.steady[1]), ("agent tcp", self.tcp)):
            assert agent.process is not None
            rows[f"memory of {name}, MiB"] = rss(agent.process.pid) / MIB
            rows[f"descriptors of {name}"] = descriptors(agent.process.pid)
        logs = self.server.data.glob("*.db-wal")
        rows["write-ahead logs, MiB"] = sum(log.stat().st_size for log in logs) / MIB
        rows["allocated by the server, MiB"] = found.allocated / MIB
        rows["threads"] = found.threads
        rows["tasks"] = found.tasks
        rows |= {f"gauge {name}": value for name, value in self.gauges().items()}
        rows |= {f"objects {name}": value for name, value in found.objects.items()}
        rows |= {f"kept {name}": value for name, value in found.kept.items()}
        return rows

    def gauges(self) -> Rows:
        text = self.metrics()
        names = re.findall(r"^# TYPE rustunnel_(\S+) gauge$", text, re.MULTILINE)
        lines = re.findall(r"^rustunnel_([a-z_]+)(\{\S*\})? (\S+)$", text, re.MULTILINE)
        return {name + label: float(value) for name, label, value in lines if name in names}

    def metrics(self) -> str:
        api = http.client.HTTPConnection("127.0.0.1", self.server.dashboard_port, timeout=30)
        try:
            api.request("GET", "/metrics")
            return api.getresponse().read().decode()
        finally:
            api.close()

    async def flap(self, over: trio.Event, rolls: random.Random) -> None:
        """Agents die or are ended, one after the other, and come back; then they go for good."""
        while not over.is_set():
            agent = rolls.choice(self.flapping)
            await trio.to_thread.run_sync(agent.kill, rolls.choice((signal.SIGKILL, signal.SIGTERM)))
            agent.start()
            await trio.to_thread.run_sync(agent.wait_serving)
            self.deaths += 1
            with trio.move_on_after(FLAP_SECONDS):
                await over.wait()
        for agent in self.flapping:
            await trio.to_thread.run_sync(agent.kill)

    async def revoke(self, over: trio.Event, load: Load) -> None:
        """An agent with a token of its own, which is revoked: the agent ends."""
        while not over.is_set():
            number, secret = await load.make_token()
            guest = AgentProcess(
                self.server, f"guest-{self.revoked}", self.service, variables={"RUSTUNNEL_TOKEN": secret}
            )
            guest.start()
            await trio.to_thread.run_sync(guest.wait_serving)
            await load.delete_token(number)
            assert guest.process is not None
            with trio.move_on_after(30):
                await trio.to_thread.run_sync(guest.process.wait, abandon_on_cancel=True)
            if guest.process.poll() is None:
                load.wrong.append("an agent whose token was revoked stayed")
            await trio.to_thread.run_sync(guest.kill)
            self.revoked += 1
            with trio.move_on_after(REVOKE_SECONDS):
                await over.wait()

    async def strain(self, load: Load, seconds: float, rolls: random.Random) -> list[tuple[float, float]]:
        """The load for so long; gives the server's memory (MiB) by time (s)."""
        over = trio.Event()
        memory: list[tuple[float, float]] = []
        for agent in self.flapping:
            agent.start()
        for agent in self.flapping:
            await trio.to_thread.run_sync(agent.wait_serving)
        began = shown = time.monotonic()
        told = 0  # of what went wrong
        async with trio.open_nursery() as nursery:
            for kind in load.all_kinds():
                for _ in range(kind.visitors):
                    nursery.start_soon(load.run, kind, over)
            nursery.start_soon(self.flap, over, rolls)
            nursery.start_soon(self.revoke, over, load)
            while (now := time.monotonic()) < began + seconds:
                await trio.sleep(min(LOOK_SECONDS, began + seconds - now))
                memory.append((time.monotonic() - began, rss(self.server.process.pid) / MIB))
                if time.monotonic() - shown > SHOWN_SECONDS:
                    shown = time.monotonic()
                    done = sum(counter.total() for counter in load.kinds.values())
                    print(
                        f"{shown - began:.0f} s: {done} visits, {self.deaths} deaths, {len(load.wrong)} wrong, "
                        f"{memory[-1][1]:.1f} MiB",
                        *load.wrong[told:TOLD_MAX],
                        sep="\n  ",
                        flush=True,
                    )
                    told = len(load.wrong)
            over.set()
        return memory


def slope(memory: list[tuple[float, float]]) -> float:
    """MiB an hour, over the second half."""
    half = memory[len(memory) // 2 :]
    if len(half) < 2:
        return 0.0
    middle = sum(at for at, _ in half) / len(half)
    mean = sum(size for _, size in half) / len(half)
    spread = sum((at - middle) ** 2 for at, _ in half)
    return sum((at - middle) * (size - mean) for at, size in half) / spread * 3600


def not_back(base: Rows, end: Rows) -> list[str]:
    return [row for row, value in end.items() if value > highest(row, base)]


def show(base: Rows, end: Rows, failed: list[str]) -> None:
    print(f"{'':64} {'base':>10} {'end':>10} {'at most':>10}")
    for row, value in end.items():
        before = base.get(row, 0.0)
        changed = not row.startswith(("objects", "kept")) or row in failed
        if changed:
            verdict = "DID NOT RETURN" if row in failed else ""
            print(f"{row:64} {before:10.1f} {value:10.1f} {highest(row, base):10.1f} {verdict}")
    objects = [row for row in end if row.startswith("objects")]
    kept = [row for row in end if row.startswith("kept")]
    print(f"and {len(objects)} classes of objects, {len(kept)} containers")


async def soak(bench: Bench, seconds: float) -> bool:
    """Whether all went well."""
    tcp_port = int(bench.tcp.public_url.rpartition(":")[2])
    rolls = random.Random(1)
    load = Load(bench.server, tcp_port, rolls)
    warm = min(max(seconds * WARM_SHARE, WARM_MIN_SECONDS), WARM_MAX_SECONDS)
    await bench.strain(load, warm, rolls)
    await trio.sleep(BASE_REST_SECONDS)
    base = await trio.to_thread.run_sync(bench.look)
    print(f"base after {warm:.0f} s of load: {base['memory of the server, MiB']:.1f} MiB", flush=True)
    memory = await bench.strain(load, seconds, rolls)
    rested = time.monotonic()
    while True:
        await trio.sleep(LOOK_SECONDS)
        end = await trio.to_thread.run_sync(bench.look)
        failed = not_back(base, end)
        if not failed or time.monotonic() - rested > REST_SECONDS:
            break
    rest = time.monotonic() - rested
    crashes = sum(map(float, re.findall(r"^rustunnel_(?:api_)?crashes_total (\S+)$", bench.metrics(), re.MULTILINE)))
    errors = [line for line in bench.server.log if line.get("level") in ("error", "critical")]
    show(base, end, failed)
    print(f"\n{'visits by kind':28} outcomes")
    for name, counter in sorted(load.kinds.items()):
        print(f"{name:28} {', '.join(f'{outcome} {count}' for outcome, count in counter.most_common())}")
    hangs = sum(counter["hang"] for counter in load.kinds.values())
    print(
        f"\nload of {seconds:.0f} s, back after {rest:.0f} s; {bench.deaths} deaths of agents, {bench.revoked} tokens "
        f"revoked under an agent; server's memory {slope(memory):+.1f} MiB/h over the second half\n"
        f"wrong or crossed: {len(load.wrong)}, hangs: {hangs}, crashes: {crashes:.0f}, errors logged: {len(errors)}"
    )
    for line in [*load.wrong[:20], *(json.dumps(error)[:2000] for error in errors[:5])]:
        print(" ", line)
    good = not (failed or load.wrong or hangs or crashes or errors)
    print("pass" if good else "FAIL", flush=True)
    return good


def main(seconds: float) -> int:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        counts = folder / "counts"
        logs = {
            "RUSTUNNEL_LOGGING__ACCESS_LOG_PATH": str(folder / "access.log"),
            "RUSTUNNEL_LOGGING__AUDIT_LOG_PATH": str(folder / "audit.log"),
        }
        server = stack.enter_context(
            server_process(
                folder / "data",
                *("--tcp-ports", TCP_PORTS),
                environment={**SETTINGS, **logs, VARIABLE: str(counts)},
                python=("-m", "tests.lanes.counted"),
            )
        )
        port, _ = stack.enter_context(local_service("tests.lanes.mixed"))
        bench = Bench(server, counts, port)
        for agent in (*bench.steady, bench.tcp, *bench.flapping):
            stack.callback(agent.kill)
        for agent in (*bench.steady, bench.tcp):
            agent.start()
        for agent in (*bench.steady, bench.tcp):
            agent.wait_serving()
        good = trio.run(soak, bench, seconds)
        server.signal(signal.SIGTERM)
        code = server.wait()
        if code != 0:
            print(f"FAIL: the server ended with {code}")
    return 0 if good and code == 0 else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all children are ended, too
    sys.exit(main(float(os.environ.get("SOAK_SECONDS", SOAK_SECONDS))))
