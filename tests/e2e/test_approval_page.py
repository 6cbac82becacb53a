"""The approval page in a real browser, as wide as a phone."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import trio

from tests.support.browser import Page, browser, require_browser
from tests.support.rs_tunnel_cli import PlayedCli, played_cli
from tests.support.running_server import RunningServer, running_server
from tests.support.services import tcp_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.peer, pytest.mark.slow]

FINGER = 44  # CSS pixels, what fits a fingertip (WCAG 2.5.5)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[RunningServer, PlayedCli]]:
    require_browser()
    async with running_server(tmp_path) as server, played_cli(server.ready.dashboard_url) as cli:
        yield server, cli


def check_quiet(page: Page, origin: str) -> None:
    """Nothing from elsewhere, nothing that the policy or the browser complains of."""
    assert page.requests
    assert all(url.startswith(f"{origin}/") for url in page.requests), page.requests
    assert page.complaints == []


async def check_fits(page: Page) -> None:
    assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert (
        await page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") == "480px"
    )  # the style is on
    for selector in ("#token", "button[value=approve]", "button[value=refuse]"):
        box = await page.box(selector)
        assert box["height"] >= FINGER
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
    assert await page.evaluate("parseFloat(getComputedStyle(document.querySelector('#token')).fontSize)") >= 16


async def test_approving_on_a_phone(served: tuple[RunningServer, PlayedCli], tmp_path: Path) -> None:
    server, cli = served
    async with browser() as chromium:
        page = await chromium.page(width=360, height=640)

        async def approve(url: str) -> None:
            await page.open(url)
            assert "dev@example.com" in await page.text()
            await check_fits(page)
            await page.screenshot(tmp_path / "approval.png")
            await page.type("#token", "not a token")
            await page.submit("button[value=approve]")
            assert "not valid here" in await page.text()
            page.complaints.clear()  # the browser notes the 403
            await page.type("#token", server.admin_token)
            assert await page.evaluate("document.querySelector('#token').type") == "password"
            await page.submit("button[value=approve]")
            assert "Login approved" in await page.text()

        await cli.login("dev@example.com", approve)
        check_quiet(page, server.ready.dashboard_url)
        assert await cli.list() == []


async def test_the_enter_key_approves(served: tuple[RunningServer, PlayedCli]) -> None:
    server, cli = served
    async with browser() as chromium:
        page = await chromium.page(width=1200, height=800, mobile=False, dark=True)

        async def approve(url: str) -> None:
            await page.open(url)
            await page.type("#token", server.admin_token)
            before = page.loads
            for kind in ("keyDown", "keyUp"):
                await page.call(
                    "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
                )
            await page.loaded(before)
            assert "Login approved" in await page.text()

        await cli.login("dev@example.com", approve)
        check_quiet(page, server.ready.dashboard_url)


async def test_refusing(served: tuple[RunningServer, PlayedCli]) -> None:
    server, cli = served
    started = await cli.call("POST", "/v1/auth/slack/start", None, {"email": "a@b.cd", "codeChallenge": "x" * 43})
    async with browser() as chromium:
        page = await chromium.page(width=360, height=640)
        await page.open(started.json["authorizeUrl"])
        await page.submit("button[value=refuse]")
        assert "Login refused" in await page.text()
        check_quiet(page, server.ready.dashboard_url)
    status = await cli.call("POST", "/v1/auth/slack/status", None, {"state": started.json["state"]})
    assert status.json == {"status": "expired"}


async def test_a_waiting_older_client_is_called_back(served: tuple[RunningServer, PlayedCli]) -> None:
    server, cli = served
    asked: list[bytes] = []
    called = trio.Event()

    async def listen(stream: trio.SocketStream) -> None:
        asked.append(await stream.receive_some(4096))
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        called.set()

    async with tcp_service(listen) as port, browser() as chromium:
        body = {
            "email": "a@b.cd",
            "codeChallenge": "x" * 43,
            "cliCallbackUrl": f"http://127.0.0.1:{port}/callback",
        }
        started = await cli.call("POST", "/v1/auth/slack/start", None, body)
        page = await chromium.page(width=360, height=640)
        await page.open(started.json["authorizeUrl"])
        await page.type("#token", server.admin_token)
        await page.click("button[value=approve]")
        with trio.fail_after(20):
            await called.wait()
        assert asked[0].startswith(b"GET /callback?code=")
        assert b"Referer" not in asked[0] or urlsplit(server.ready.dashboard_url).netloc.encode() not in asked[0]


async def test_a_form_of_another_site_goes_nowhere(served: tuple[RunningServer, PlayedCli]) -> None:
    """Another origin's page posts the form with the right state; the cookie stays behind and the browser says so."""
    server, cli = served
    started = await cli.call("POST", "/v1/auth/slack/start", None, {"email": "a@b.cd", "codeChallenge": "x" * 43})
    form = (
        f'<form method="post" action="{server.ready.dashboard_url}/v1/auth/approve">'
        f'<input name="state" value="{started.json["state"]}"><input name="answer" value="refuse"></form>'
        "<script>document.forms[0].submit()</script>"
    ).encode()

    async def evil(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(form)}\r\nConnection: close\r\n\r\n"
        await stream.send_all(head.encode() + form)

    async with tcp_service(evil) as port, browser() as chromium:
        page = await chromium.page(width=360, height=640)
        await page.open(started.json["authorizeUrl"])  # so that the browser has the cookie
        await page.call("Page.navigate", url=f"http://localhost:{port}/")
        await chromium.wait_until(lambda: any(url.endswith("/v1/auth/approve") for url in page.requests))
        status = await cli.call("POST", "/v1/auth/slack/status", None, {"state": started.json["state"]})
        assert status.json == {"status": "pending"}
