"""A real browser through `try`: a page, its WebSocket and its event stream, as without a tunnel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.browser import EXECUTABLE, needs_browser, require_browser

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 60.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",  # it stays after the page is there
)


@contextmanager
def program(*command: str, home: Path) -> Iterator[subprocess.Popen[str]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RUSTUNNEL_", "XDG_"))}
    environment = {**kept, "HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        killer = threading.Timer(WAIT_SECONDS, process.kill)
        killer.start()
        try:
            yield process
        finally:
            killer.cancel()
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"it ended, or said nothing for {WAIT_SECONDS:.0f} s"
    return line


def told(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    while True:
        news: dict[str, Any] = json.loads(next_line(process))
        if news["event"] == event:
            return news


@pytest.mark.slow
@needs_browser
def test_W20_a_real_browser_s_page_websocket_and_event_stream(tmp_path: Path) -> None:
    require_browser()
    assert EXECUTABLE is not None
    with program(sys.executable, "-m", "tests.support.web_page", home=tmp_path) as service:
        port = next_line(service).strip()
        command = (sys.executable, "-m", "rustunnel_py", "try", port, "--json", "--subdomain", "page")
        with program(*command, home=tmp_path) as trial:
            url = told(trial, "tunnel")["public_url"]
            told(trial, "ready")
            # Chromium puts a socket into its profile: a long path ends it at once.
            with (
                tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile,
                program(EXECUTABLE, *FLAGS, f"--user-data-dir={profile}", url, home=Path(profile)),
            ):
                report = json.loads(next_line(service))
    assert report["events"] == ["event 0", "event 1", "event 2"]
    assert report["socket"] == [5, 100_000, "binary 70000"]
    assert report["protocol"] == "chat"
    assert report["extensions"].startswith("permessage-deflate")
