"""What the user sees: a live screen on a terminal, plain lines elsewhere, JSON lines with `--json`.

A screen is written to by a thread of its own, through a bounded queue: a terminal that is stopped, a pipe that
nobody reads or a closed output must never stop the tunnels. What does not fit is dropped and counted.

JSON lines: one object a line, `event` is the tag of a struct in `news.py`, its fields beside it, and `at`, the
time in seconds since the Unix epoch.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol, TextIO

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rustunnel_py.client.news import (
    Connected,
    Connecting,
    DataLost,
    Disconnected,
    Ended,
    GoingAway,
    Joined,
    Latency,
    LocalTrouble,
    News,
    Note,
    Ready,
    TunnelRefused,
    TunnelUp,
    Visited,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# Between two looks for lines: nobody sees it, and of a thousand connections a second few wake the thread.
LINES_SECONDS = 0.02
QUEUE_MAX = 1024  # several seconds of the busiest screen; what a reader this slow misses, it misses
VISITS_SHOWN = 12  # fits a terminal of 24 lines beside the rest
CLOSE_SECONDS = 1.0  # a screen that cannot be written to does not keep the agent from ending


class Screen(Protocol):
    """Where the agent's news go. `show` never waits and never raises."""

    def show(self, news: News) -> None: ...

    def close(self) -> None:
        """Nothing is shown afterwards; the terminal is as it was."""


class Face(Screen, Protocol):
    """A screen as the writing thread has it: may wait, may raise OSError."""

    pause: float  # seconds between two draws, so that a flood of events is no flood of drawing

    def draw(self) -> None:
        """Nothing more is waiting just now: what was shown has to be seen."""


class SilentScreen:
    """Shows nothing: for callers that have no use for the news."""

    def show(self, news: News) -> None: ...

    def close(self) -> None: ...


def _status(code: int) -> str:
    return str(code) if code else "---"


def _sentence(news: News) -> str | None:
    """The plain line, or None for what a log has no use for."""
    match news:
        case Connecting(server, attempt):
            return f"connecting to {server}" + (f" (try {attempt})" if attempt > 1 else "")
        case Connected(server, region, _):
            return f"connected to {server}" + (f" ({region})" if region else "")
        case TunnelUp(_, _, url, local, also):
            return f"tunnel {url} -> {local}" + (f" (also {also})" if also else "")
        case TunnelRefused(local, wish, message):
            return f"tunnel for {local} refused" + (f" ({wish})" if wish else "") + f": {message}"
        case Ready():
            return "ready"
        case Latency():
            return None
        case Visited(_, method, path, status, ms, _):
            return f"{_status(status)} {method} {path} {ms:.0f} ms"
        case Joined(_, local, visitor):
            return f"connection from {visitor} to {local}"
        case LocalTrouble(local, message):
            return f"local service {local}: {message}"
        case DataLost(why):
            return f"data connection lost: {why}; opening it again"
        case GoingAway():
            return "the server is stopping; coming back"
        case Disconnected(why, retry):
            return f"disconnected: {why}; next try in {retry:.1f} s"
        case Note(message):
            return message
        case Ended(_, why):
            return f"ended: {why}"


class PlainScreen:
    """One line an event, with the time of day."""

    pause = LINES_SECONDS

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, news: News) -> None:
        line = _sentence(news)
        if line is not None:
            self._out.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    def draw(self) -> None:
        self._out.flush()

    def close(self) -> None: ...


class JsonScreen:
    """One JSON object a line."""

    pause = LINES_SECONDS

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, news: News) -> None:
        fields = msgspec.to_builtins(news)
        fields["at"] = round(time.time(), 3)
        self._out.write(msgspec.json.encode(fields).decode() + "\n")

    def draw(self) -> None:
        self._out.flush()

    def close(self) -> None: ...


class LiveScreen:
    """State, latency, public URL → local address, the last requests; redrawn in place."""

    pause = 0.1

    def __init__(self, console: Console) -> None:
        self._state = Text("starting", style="yellow")
        self._latency: float | None = None
        self._server = ""
        self._tunnels: dict[tuple[str, str], TunnelUp] = {}
        self._visits: deque[Text] = deque(maxlen=VISITS_SHOWN)
        self._trouble: str | None = None
        self._note: str | None = None
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()

    def show(self, news: News) -> None:
        match news:
            case Connecting(server, attempt):
                self._server = server
                self._state = Text("connecting" + (f", try {attempt}" if attempt > 1 else ""), style="yellow")
            case Connected(server, region, _):
                self._server = f"{server} ({region})" if region else server
                self._state = Text("registering", style="yellow")
                self._tunnels.clear()
                self._trouble = self._note = None
            case TunnelUp():
                self._tunnels[news.protocol, news.tunnel_id] = news
            case Ready():
                self._state = Text("online", style="bold green")
                self._trouble = None
            case Latency(ms):
                self._latency = ms
            case Visited():
                self._visits.append(_visit_line(news))
            case Joined():
                self._visits.append(Text(_sentence(news) or ""))
            case DataLost():
                self._state = Text("reconnecting", style="yellow")
                self._trouble = _sentence(news)
            case Disconnected():
                self._state = Text("offline", style="bold red")
                self._latency = None
                self._trouble = _sentence(news)
            case Note(message):
                self._note = message
            case TunnelRefused() | LocalTrouble() | GoingAway():
                self._trouble = _sentence(news)
            case Ended(_, why):
                self._state = Text(f"ended: {why}")

    def draw(self) -> None:
        self._live.update(self._picture(), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _picture(self) -> Group:
        facts = Table.grid(padding=(0, 2))
        facts.add_row(Text("State"), self._state)
        facts.add_row(Text("Server"), Text(self._server))
        facts.add_row(Text("Latency"), Text("-" if self._latency is None else f"{self._latency:.0f} ms"))
        for tunnel in self._tunnels.values():
            line = Text(tunnel.public_url, style="bold cyan")
            line.append(f"  ->  {tunnel.local}", style="default")
            facts.add_row(Text("Tunnel"), line)
            if tunnel.also:
                facts.add_row(Text(""), Text(tunnel.also, style="cyan"))
        if self._note:
            facts.add_row(Text(""), Text(self._note))
        if self._trouble:
            facts.add_row(Text("Note"), Text(self._trouble, style="yellow"))
        return Group(facts, Text(""), *self._visits)


def _visit_line(news: Visited) -> Text:
    style = "green" if news.status < 400 else "yellow" if news.status < 500 else "red"
    line = Text(f"{_status(news.status):>4} ", style=style, no_wrap=True, overflow="ellipsis")
    line.append(f"{news.ms:>6.0f} ms  ", style="dim")
    line.append(f"{news.method:<7} {news.path}", style="default")
    return line


class BackgroundScreen:
    """Hands every event to a face in a thread of its own. `dropped` counts what did not fit or could not be written."""

    def __init__(self, face: Face) -> None:
        self.dropped = 0
        self._face = face
        self._queue: queue.Queue[News | None] = queue.Queue(QUEUE_MAX)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name="screen", daemon=True)
        self._thread.start()

    def show(self, news: News) -> None:
        try:
            self._queue.put_nowait(news)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=CLOSE_SECONDS)
        self._thread.join(CLOSE_SECONDS)

    def _write(self) -> None:
        while (news := self._queue.get()) is not None:
            try:
                self._face.show(news)
                if self._queue.empty():
                    self._face.draw()
                    self._closing.wait(self._face.pause)
            except (OSError, ValueError):  # output closed, or a text that its encoding does not know
                self.dropped += 1
        with contextlib.suppress(OSError, ValueError):
            self._face.draw()
            self._face.close()


@contextlib.contextmanager
def open_screen(*, json: bool = False, out: TextIO | None = None) -> Iterator[Screen]:
    """The screen that fits `out` (standard output): JSON lines if asked for, live on a terminal, else plain lines."""
    stream = sys.stdout if out is None else out
    chosen: Face
    if json:
        chosen = JsonScreen(stream)
    else:
        console = Console(file=stream, highlight=False, markup=False, emoji=False)
        chosen = LiveScreen(console) if console.is_terminal and not console.is_dumb_terminal else PlainScreen(stream)
    screen = BackgroundScreen(chosen)
    try:
        yield screen
    finally:
        screen.close()
