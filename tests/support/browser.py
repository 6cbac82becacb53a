"""Debian's Chromium, driven by its own debugging protocol over one WebSocket.

async with browser() as chromium:
    page = await chromium.page(width=360, height=640)
    await page.open(url)
    await page.type("#token", "secret")
    await page.click("button[value=approve]")
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_SECONDS = 60.0  # a hang shows as a failure; a cold start on a busy machine takes seconds
MESSAGE_MAX = 64 * 1024 * 1024  # a screenshot is one message

needs_browser = pytest.mark.peer


def require_browser() -> None:
    """Skips where there is no Chromium; fails there on CI, which can install it (apt-get install chromium)."""
    if EXECUTABLE is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing: apt-get install chromium")
        pytest.skip("chromium is missing: apt-get install chromium")


@dataclass
class Page:
    """One tab. `requests` are the URLs that it asked for, `complaints` what the browser said against it."""

    chromium: Chromium
    session: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    loads: int = 0

    async def call(self, method: str, **parameters: object) -> Any:
        return await self.chromium.call(method, session=self.session, **parameters)

    def heard(self, method: str, parameters: Any) -> None:
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Log.entryAdded":
                entry = parameters["entry"]
                self.complaints.append(f"{entry['source']} {entry['level']}: {entry['text']}")
            case "Runtime.exceptionThrown":
                self.complaints.append(str(parameters["exceptionDetails"]))
            case "Page.loadEventFired":
                self.loads += 1

    async def open(self, url: str) -> None:
        before = self.loads
        await self.call("Page.navigate", url=url)
        await self.loaded(before)

    async def loaded(self, before: int) -> None:
        await self.chromium.wait_until(lambda: self.loads > before)

    async def evaluate(self, expression: str) -> Any:
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def text(self) -> str:
        return str(await self.evaluate("document.body.innerText"))

    async def box(self, selector: str) -> dict[str, float]:
        """The element's place on the screen, scrolled to where it can be seen."""
        found = await self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            " return {x: b.x, y: b.y, width: b.width, height: b.height}; })()"
        )
        assert isinstance(found, dict)
        return found

    async def click(self, selector: str) -> None:
        """As a mouse or a finger does it, in the middle of the element."""
        box = await self.box(selector)
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def submit(self, selector: str) -> None:
        """Click what leads to another page, and wait for that."""
        before = self.loads
        await self.click(selector)
        await self.loaded(before)

    async def type(self, selector: str, text: str) -> None:
        await self.click(selector)
        await self.call("Input.insertText", text=text)

    async def screenshot(self, path: Path) -> None:
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))


class Chromium:
    def __init__(self, socket: WebSocketConnection) -> None:
        self._socket = socket
        self._number = 0
        self._answers: dict[int, Any] = {}
        self._changed = trio.Event()
        self._pages: dict[str, Page] = {}

    async def listen(self) -> None:
        try:
            while True:
                message = json.loads(await self._socket.get_message())
                if "id" in message:
                    self._answers[message["id"]] = message
                else:
                    page = self._pages.get(message.get("sessionId", ""))
                    if page is not None:
                        page.heard(message["method"], message["params"])
                self._changed.set()
                self._changed = trio.Event()
        except ConnectionClosed:
            pass

    async def wait_until(self, holds: Any) -> None:
        with trio.fail_after(WAIT_SECONDS):
            while not holds():
                await self._changed.wait()

    async def call(self, method: str, *, session: str | None = None, **parameters: object) -> Any:
        self._number += 1
        number = self._number
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        await self._socket.send_message(json.dumps(message))
        await self.wait_until(lambda: number in self._answers)
        answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    async def page(self, *, width: int, height: int, mobile: bool = True, dark: bool = False) -> Page:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"])
        self._pages[page.session] = page
        for domain in ("Page", "Network", "Log", "Runtime"):
            await page.call(f"{domain}.enable")
        await page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=mobile
        )
        await page.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        return page


@asynccontextmanager
async def browser() -> AsyncIterator[Chromium]:
    """A fresh Chromium with an empty profile; it ends with the context."""
    assert EXECUTABLE is not None
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        arguments = [
            EXECUTABLE,
            "--headless=new",
            "--no-sandbox",  # it refuses to start as root otherwise; it opens our own pages only
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-extensions",
            "--no-first-run",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        process = await trio.lowlevel.open_process(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            url = await _debugger_url(Path(profile))
            async with open_websocket_url(url, max_message_size=MESSAGE_MAX) as socket, trio.open_nursery() as nursery:
                chromium = Chromium(socket)
                nursery.start_soon(chromium.listen)
                try:
                    yield chromium
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


async def _debugger_url(profile: Path) -> str:
    """Chromium writes its port and path to a file when it listens."""
    file = profile / "DevToolsActivePort"
    with trio.fail_after(WAIT_SECONDS):
        while True:
            if file.exists() and (found := re.fullmatch(r"(\d+)\n(/\S+)\s*", file.read_text())):
                return f"ws://127.0.0.1:{found[1]}{found[2]}"
            await trio.sleep(0.05)
