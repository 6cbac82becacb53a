"""`rustunnel-cloudflared`: what the rs-tunnel CLI starts in cloudflared's place.

    rustunnel-cloudflared --version
    rustunnel-cloudflared tunnel --no-autoupdate run --token TOKEN

All it is told is in the token (`wire/agent_token.py`): the server and its pin, one leased tunnel with its secret, and
the port on 127.0.0.1 where the CLI listens. It is our own agent, bound to that tunnel: it registers nothing new,
renews nothing and posts nothing; the CLI does.

* It prints lines to standard error, one with `location=` each time it is connected: the CLI's Region. Nobody reads
  them once the CLI was killed; it goes on all the same.
* SIGINT, SIGTERM, SIGHUP end it with 0 within a second; more of them change nothing, since a terminal and the CLI
  both send one.
* When the server says that the tunnel is gone, it ends with 3, when it finds no server for longer than a lease lasts,
  with 1; the last line says why.
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

import trio

from rustunnel_py import __version__
from rustunnel_py.client.failure import FAILED, REFUSED, USAGE
from rustunnel_py.client.news import Connected, DataLost, Disconnected, Ended, LocalTrouble, Ready, TunnelUp
from rustunnel_py.errors import RustunnelError
from rustunnel_py.wire import agent_token

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rustunnel_py.client.config import AgentConfig
    from rustunnel_py.client.news import News
    from rustunnel_py.wire.agent_token import AgentToken

PROGRAM = "rustunnel-cloudflared"
LEAVE_SECONDS = 0.8  # for a polite end; the CLI waits for it
LEASE_GRACE_SECONDS = 10.0  # a server that comes back may be a moment late itself
ENDED = "ended as asked"
REGION_MAX = 16  # a longer one would fail every upload of the CLI

# What the CLI looks for in any line, in any case.
_MARKS = re.compile(r"\b(location|region|colo)=", re.IGNORECASE)


def main() -> None:
    """Run the command of this process; never returns."""
    try:
        code = run(sys.argv[1:], os.environ)
    except KeyboardInterrupt:  # before the signals were taken over
        _write(ENDED)
        code = 0
    sys.exit(code)


def run(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    if "--version" in arguments:
        print(f"{PROGRAM} {__version__}")
        return 0
    text = _token_of(arguments)
    if text is None:
        _write(f"usage: {PROGRAM} tunnel run --token TOKEN, as the rs-tunnel CLI does it (or --version)")
        return USAGE
    try:
        token = agent_token.decode(text)
        config = configure(token, environ)
    except RustunnelError as error:
        _write(str(error))
        return USAGE
    _silence_logs()
    return trio.run(partial(serve, token, config, _write))


def _token_of(arguments: Sequence[str]) -> str | None:
    for number, argument in enumerate(arguments):
        if argument == "--token" and number + 1 < len(arguments):
            return arguments[number + 1]
        if argument.startswith("--token="):
            return argument.removeprefix("--token=")
    return None


def configure(token: AgentToken, environ: Mapping[str, str]) -> AgentConfig:
    """The agent's settings. RUSTUNNEL_CA takes the place of the token's pin. Raises ConfigError."""
    from rustunnel_py.client.config import (
        AgentConfig,
        HttpTunnel,
        LocalAddress,
        Login,
        Trust,
        parse_ca,
        parse_pin,
        parse_server,
    )
    from rustunnel_py.model.access import Secret

    ca = environ.get("RUSTUNNEL_CA")
    trust: Trust = parse_ca(ca, "RUSTUNNEL_CA") if ca else parse_pin(token.pin)
    login = Login(parse_server(token.server, "token"), Secret(token.secret), trust)
    tunnel = HttpTunnel(LocalAddress("127.0.0.1", token.port), token.name)
    return AgentConfig(login, (tunnel,))


def _silence_logs() -> None:
    """What it has to say are its own lines."""
    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _write(line: str) -> None:
    """A whole line in one piece, unbuffered; a reader that is gone is no reason to end."""
    try:
        os.write(2, f"{line}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        pass


async def serve(token: AgentToken, config: AgentConfig, write: Callable[[str], None]) -> int:
    """Serve the tunnel until a signal, its end, or the loss of the server; gives the exit code."""
    from rustunnel_py.client.agent import run_agent

    stopping = trio.Event()
    screen = Lines(token, write)
    asked = False
    code = FAILED

    async def obey_signals(scope: trio.CancelScope) -> None:
        nonlocal asked
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
        with trio.open_signal_receiver(*(getattr(signal, name) for name in names if hasattr(signal, name))) as signals:
            async for _ in signals:
                if not asked:
                    asked = True
                    stopping.set()
                    scope.deadline = trio.current_time() + LEAVE_SECONDS

    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey_signals, nursery.cancel_scope)
        nursery.start_soon(screen.give_up, stopping)
        code = await run_agent(config, screen, stopping=stopping)
        nursery.cancel_scope.cancel()
    if asked:
        write(ENDED)
        return 0
    if screen.gave_up:
        write(f"no connection to {token.server} for longer than a lease lasts; the tunnel {token.name} is gone")
        return FAILED
    if code == REFUSED and "refused the token" in screen.why:
        write(f"the tunnel {token.name} is gone: it was stopped, or its lease ran out")
        return REFUSED
    write(screen.plain(f"the tunnel {token.name} cannot be served: {screen.why}"))
    return code or FAILED


class Lines:
    """The agent's screen: a few lines, and how long there was no server."""

    def __init__(self, token: AgentToken, write: Callable[[str], None]) -> None:
        self._token = token
        self._write = write
        self._region = "default"
        self._away_since = trio.current_time()
        self._changed = trio.Event()
        self.gave_up = False
        self.why = ""

    def show(self, news: News) -> None:
        match news:
            case Connected(region=region):
                self._region = re.sub(r"[^A-Za-z0-9-]", "-", region or "")[:REGION_MAX].strip("-") or "default"
            case TunnelUp(public_url=url):
                self._write(self.plain(f"serving {url} from 127.0.0.1:{self._token.port}"))
            case Ready():
                self._away_since = math.inf
                self._changed.set()
                self._write(f"connected to {self._token.server} location={self._region}")
            case Disconnected(why=why, retry_seconds=seconds):
                if self._away_since == math.inf:
                    self._away_since = trio.current_time()
                self._changed.set()
                self._write(self.plain(f"not connected: {why}; next try in {seconds} s"))
            case DataLost(why=why):
                self._write(self.plain(f"data connection lost: {why}"))
            case LocalTrouble(local=local, message=message):
                self._write(self.plain(f"{local} cannot be reached: {message}"))
            case Ended(why=why):
                self.why = why
            case _:
                pass

    def close(self) -> None: ...

    @staticmethod
    def plain(line: str) -> str:
        """A line in which nothing looks like the region."""
        return _MARKS.sub(r"\1 =", line)

    async def give_up(self, stopping: trio.Event) -> None:
        """Stop when the lease must have run out for want of a server."""
        while True:
            self._changed = trio.Event()
            deadline = self._away_since + self._token.lease + LEASE_GRACE_SECONDS
            with trio.CancelScope(deadline=deadline):
                await self._changed.wait()
                continue
            self.gave_up = True
            stopping.set()
            return


if __name__ == "__main__":
    main()
