"""`try`, as somebody does it who has just installed this."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from rustunnel_py.store.folder import DataFolder
from rustunnel_py.trial import start_on_free_ports
from tests.support.running_server import test_config

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
END_SECONDS = 60


@contextmanager
def trial(home: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RUSTUNNEL_", "XDG_"))}
    environment = {**kept, "HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rustunnel_py", "try", "--json", *words]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def told(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    """The next event of that kind."""
    assert process.stdout is not None
    for line in process.stdout:
        news: dict[str, Any] = json.loads(line)
        if news["event"] == event:
            return news
    raise AssertionError(process.stderr and process.stderr.read())


def fetched(public_url: str) -> tuple[int, bytes]:
    host = public_url.partition("://")[2].strip("/")
    connection = http.client.HTTPConnection("127.0.0.1", int(host.partition(":")[2] or 80), timeout=END_SECONDS)
    connection.request("GET", "/", headers={"Host": host})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def test_demo_page_at_a_url_that_works_and_nothing_left_behind(tmp_path: Path) -> None:
    with trial(tmp_path, "--subdomain", "demo") as process:
        url = told(process, "tunnel")["public_url"]
        hint = told(process, "note")["message"]
        told(process, "ready")
        assert url.startswith("http://demo.localhost:")
        assert url.partition("://")[2].strip("/") in hint
        status, content = fetched(url)
        assert (status, b"<html" in content.lower()) == (200, True)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=END_SECONDS)
        assert (process.returncode, errors) == (0, "")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("rustunnel")] == []


def test_two_at_once_have_ports_of_their_own(tmp_path: Path) -> None:
    with trial(tmp_path) as first, trial(tmp_path) as second:
        urls = [told(process, "tunnel")["public_url"] for process in (first, second)]
        for process in (first, second):
            told(process, "ready")
        assert [fetched(url)[0] for url in urls] == [200, 200]


async def test_taken_ports_are_replaced(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        taken = {"http_port": one.getsockname()[1], "dashboard_port": other.getsockname()[1]}
        config = test_config(tmp_path, server=taken)
        stopping, stopped = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            ready = await start_on_free_ports(nursery, config, DataFolder(tmp_path), stopping, stopped)
            assert ready.http_port not in (0, taken["http_port"])
            stopping.set()
            await stopped.wait()
