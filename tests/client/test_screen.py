"""Three faces of the same news; none of them can hold the tunnels up."""

from __future__ import annotations

import io
import json
import threading
from typing import TYPE_CHECKING

from rich.console import Console

from rustunnel_py.client import news, screen
from rustunnel_py.client.screen import BackgroundScreen, JsonScreen, LiveScreen, PlainScreen, open_screen

if TYPE_CHECKING:
    import pytest

EVERYTHING: list[news.News] = [
    news.Connecting("t:4040", 1),
    news.Connecting("t:4040", 2),
    news.Connected("t:4040", "eu", True),
    news.TunnelUp("t1", "https", "https://[abc].t", "localhost:3000", "http://abc.t"),
    news.TunnelRefused("localhost:3000", "abc", "in use"),
    news.Ready(),
    news.Latency(12.3),
    news.Visited("t1", "GET", "/[red]x[/red]", 200, 4.2, "c1"),
    news.Visited(None, "GET", "/", 502, 4.2, None),
    news.Joined("t2", "localhost:22", "203.0.113.9:1"),
    news.LocalTrouble("localhost:3000", "Connection refused"),
    news.DataLost("cut"),
    news.GoingAway(),
    news.Disconnected("lost", 1.5),
    news.Note("a note"),
    news.Ended(0, "as asked"),
]


def test_plain_lines_say_what_a_person_needs() -> None:
    out = io.StringIO()
    face = PlainScreen(out)
    for event in EVERYTHING:
        face.show(event)
    lines = [line.split(" ", 1)[1] for line in out.getvalue().splitlines()]
    assert "tunnel https://[abc].t -> localhost:3000 (also http://abc.t)" in lines
    assert "200 GET /[red]x[/red] 4 ms" in lines
    assert "disconnected: lost; next try in 1.5 s" in lines
    assert len(lines) == len(EVERYTHING) - 1  # the latency is no line


def test_json_lines_have_a_name_and_a_time_each() -> None:
    out = io.StringIO()
    face = JsonScreen(out)
    for event in EVERYTHING:
        face.show(event)
    read = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(read) == len(EVERYTHING)
    assert all(isinstance(line["at"], float) for line in read)
    assert {line["event"] for line in read} == {
        "connecting",
        "connected",
        "tunnel",
        "tunnel_refused",
        "ready",
        "latency",
        "visit",
        "connection",
        "local_trouble",
        "data_lost",
        "going_away",
        "disconnected",
        "note",
        "ended",
    }
    visit = next(line for line in read if line["event"] == "visit")
    assert (visit["method"], visit["status"], visit["ms"]) == ("GET", 200, 4.2)


def test_live_screen_shows_addresses_state_and_the_last_requests() -> None:
    out = io.StringIO()
    face = LiveScreen(Console(file=out, force_terminal=True, width=100, highlight=False, markup=False, emoji=False))
    for event in EVERYTHING[:9]:
        face.show(event)
    face.draw()
    face.close()
    text = out.getvalue()
    for expected in ("online", "https://[abc].t", "localhost:3000", "12 ms", "/[red]x[/red]", " 502 ", "http://abc.t"):
        assert expected in text


def test_live_screen_keeps_a_note_beside_what_happens() -> None:
    out = io.StringIO()
    face = LiveScreen(Console(file=out, force_terminal=True, width=100, highlight=False, markup=False, emoji=False))
    face.show(news.Note("or: curl -H 'Host: x' http://127.0.0.1:8080/"))
    face.show(news.LocalTrouble("localhost:3000", "refused"))
    face.show(news.Ready())
    face.draw()
    face.close()
    assert "or: curl" in out.getvalue()
    assert "refused" not in out.getvalue()


class Stuck:
    pause = 0.0

    def __init__(self) -> None:
        self.release = threading.Event()

    def show(self, event: news.News) -> None:
        self.release.wait()

    def draw(self) -> None: ...

    def close(self) -> None: ...


def test_P11_output_that_nobody_reads_costs_lines_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "CLOSE_SECONDS", 0.01)
    face = Stuck()
    background = BackgroundScreen(face)
    for _ in range(screen.QUEUE_MAX + 500):
        background.show(news.Ready())
    assert background.dropped >= 499
    background.close()
    face.release.set()


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_P11_output_that_was_closed_costs_lines_and_nothing_else() -> None:
    background = BackgroundScreen(PlainScreen(Closed()))
    background.show(news.Ready())
    background.show(news.Ready())
    background.close()
    assert background.dropped == 2


def test_screen_that_fits_the_output() -> None:
    out = io.StringIO()
    with open_screen(out=out) as shown:
        shown.show(news.Ready())
    assert out.getvalue().endswith(" ready\n")
    out = io.StringIO()
    with open_screen(json=True, out=out) as shown:
        shown.show(news.Ready())
    assert json.loads(out.getvalue())["event"] == "ready"
