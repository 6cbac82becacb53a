"""`rustunnel-cloudflared` as the CLI starts it: its argument vector, null input, both outputs a connected socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parent.parent.parent
WAIT_SECONDS = 30.0  # a hang shows as a failure

COMMAND = (sys.executable, "-m", "rustunnel_py.client.cloudflared")


class StandIn:
    """One process and the lines that it has printed so far."""

    def __init__(self, process: trio.Process, stream: trio.SocketStream) -> None:
        self.process = process
        self.stream = stream
        self.lines: list[str] = []
        self._changed = trio.Event()
        self._over = False

    async def read(self) -> None:
        rest = b""
        async for data in self._data():
            *lines, rest = (rest + data).split(b"\n")
            self.lines += [line.decode() for line in lines]
            self._changed.set()
            self._changed = trio.Event()
        self._over = True
        self._changed.set()

    async def _data(self) -> AsyncIterator[bytes]:
        try:
            while data := await self.stream.receive_some(65536):
                yield bytes(data)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass

    async def wait_for(self, text: str, count: int = 1) -> str:
        """The `count`-th line with this text in it."""
        with trio.fail_after(WAIT_SECONDS):
            while len(found := [line for line in self.lines if text in line]) < count:
                assert not self._over, self.lines
                await self._changed.wait()
        return found[count - 1]

    async def close_reader(self) -> None:
        """Whatever it prints from now on fails."""
        await self.stream.aclose()

    async def wait(self) -> int:
        with trio.fail_after(WAIT_SECONDS):
            return await self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None


@asynccontextmanager
async def stand_in(token: str, **environment: str) -> AsyncIterator[StandIn]:
    """Killed at the end, where it still runs."""
    ours, theirs = socket.socketpair()
    argv = [*COMMAND, "tunnel", "--no-autoupdate", "run", "--token", token]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RUSTUNNEL_")}
    env = {**kept, "PYTHONPATH": str(ROOT), **environment}
    process = await trio.lowlevel.open_process(argv, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=env)
    theirs.close()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    found = StandIn(process, stream)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(found.read)
            try:
                yield found
            finally:
                if process.poll() is None:
                    process.kill()
                with trio.CancelScope(shield=True), trio.move_on_after(WAIT_SECONDS):
                    await process.wait()  # its end of the sockets is closed then, so the reader ends too
    finally:
        stream.socket.close()  # not aclose: a checkpoint here could replace what the test raised
