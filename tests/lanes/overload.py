"""F13: more visits than a tunnel can serve are refused early and cheaply; those who are let in are served in time.

    python -m tests.lanes.overload [SECONDS]

The local service takes WORK_SECONDS for each of at most WORKERS requests at a time, so its capacity is known, and
`limits.max_connections_per_tunnel` bounds who waits for it. Visitors come at 0.5, 1, 2 and 5 times the capacity whether
or not earlier ones have been answered (open loop), each on a new connection. Exit code 1 where

- at 2 or 5 times fewer are served than 0.8 of the most that were;
- the 99th percentile of the served is above 2 s;
- one that was refused got something else than 503 with Retry-After, or its p99 is above 1 s;
- 5 s after the last turn a visitor is not served as in the first.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.lanes.handshakes import percentile
from tests.lanes.mixed import Cut, Reader, read_body, read_head
from tests.lanes.processes import AgentProcess
from tests.support.server_process import server_process

if TYPE_CHECKING:
    from tests.support.server_process import ServerProcess

SECONDS = 20.0
WORKERS = 8
WORK_SECONDS = 0.05
CAPACITY = WORKERS / WORK_SECONDS  # requests a second
LET_IN = 64  # visits at a time: 8 served, 56 waiting, 0.4 s
LOADS = (0.5, 1.0, 2.0, 5.0)
GOODPUT_MIN = 0.8
SERVED_SECONDS = 2.0
REFUSED_SECONDS = 1.0
RECOVER_SECONDS = 5.0
GIVE_UP_SECONDS = 30.0
REQUEST = b"GET / HTTP/1.1\r\nHost: busy.localhost\r\nConnection: close\r\n\r\n"


@dataclass
class Turn:
    served: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


async def service(stream: trio.SocketStream, workers: trio.CapacityLimiter) -> None:
    reader = Reader(stream)
    try:
        async with stream:
            while True:
                await read_head(reader)
                async with workers:
                    await trio.sleep(WORK_SECONDS)
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    except (Cut, trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def visit(server: ServerProcess, turn: Turn) -> None:
    began = trio.current_time()
    outcome = "hang"
    with trio.move_on_after(GIVE_UP_SECONDS):
        try:
            async with await trio.open_tcp_stream("127.0.0.1", server.http_port) as stream:
                await stream.send_all(REQUEST)
                reader = Reader(stream)
                head = await read_head(reader)
                await read_body(reader, head)
                outcome = str(head.status)
                if head.status == 503 and b"retry-after" not in head.headers:
                    outcome = "503 without Retry-After"
        except (Cut, OSError, trio.BrokenResourceError):
            outcome = "cut"
    took = trio.current_time() - began
    if outcome == "200":
        turn.served.append(took)
    elif outcome == "503":
        turn.refused.append(took)
    else:
        turn.others[outcome] += 1


async def at_rate(server: ServerProcess, rate: float, seconds: float) -> Turn:
    turn = Turn()
    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        for number in range(int(rate * seconds)):
            await trio.sleep(max(0.0, began + number / rate - trio.current_time()))
            nursery.start_soon(visit, server, turn)
    return turn


async def run(server: ServerProcess, seconds: float) -> bool:
    workers = trio.CapacityLimiter(WORKERS)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1024)  # noqa: TID251  (a lane's service)
        nursery.start_soon(trio.serve_listeners, lambda stream: service(stream, workers), listeners)
        agent = AgentProcess(server, "busy", listeners[0].socket.getsockname()[1])
        agent.start()
        try:
            await trio.to_thread.run_sync(agent.wait_serving)
            turns = [await at_rate(server, load * CAPACITY, seconds) for load in LOADS]
            await trio.sleep(RECOVER_SECONDS)
            after = await at_rate(server, LOADS[0] * CAPACITY, min(seconds, 5.0))
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(agent.kill)
        nursery.cancel_scope.cancel()
    most = max(len(turn.served) for turn in turns)
    good = True
    for load, turn in (*zip(LOADS, turns, strict=True), (LOADS[0], after)):
        p99 = percentile(turn.served, 0.99) if turn.served else GIVE_UP_SECONDS
        refused = percentile(turn.refused, 0.99) if turn.refused else 0.0
        fine = not turn.others and p99 <= SERVED_SECONDS and refused <= REFUSED_SECONDS
        fine = fine and (load <= 1 or len(turn.served) >= GOODPUT_MIN * most)
        fine = fine and (turn is not after or not turn.refused)
        good = good and fine
        print(
            f"{load:3} x {CAPACITY:.0f}/s{' again' if turn is after else '':6}: {len(turn.served)} served, p99 "
            f"{p99 * 1000:.0f} ms; {len(turn.refused)} refused, p99 {refused * 1000:.0f} ms; "
            f"others {dict(turn.others)}: {'pass' if fine else 'FAIL'}"
        )
    return good


def main(seconds: float) -> int:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overload-")))
        environment = {"RUSTUNNEL_LIMITS__MAX_CONNECTIONS_PER_TUNNEL": str(LET_IN)}
        server = stack.enter_context(server_process(folder, environment=environment))
        return 0 if trio.run(run, server, seconds) else 1


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))
