"""The page that describes the API in a real browser, as wide as a phone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.browser import browser, require_browser
from tests.support.running_server import running_server

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.peer, pytest.mark.slow]

CONTRAST = """
(() => {
  const linear = c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const light = (selector, what) => getComputedStyle(document.querySelector(selector))[what].match(/[0-9.]+/g)
    .reduce((sum, c, at) => sum + linear(c / 255) * [.2126, .7152, .0722][at], 0);
  const [low, high] = [light("main a", "color"), light("body", "backgroundColor")].sort((a, b) => a - b);
  return (high + .05) / (low + .05);
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_the_page_fits_a_phone_and_can_be_read(tmp_path: Path, dark: bool) -> None:
    require_browser()
    async with running_server(tmp_path) as server, browser() as chromium:
        page = await chromium.page(width=390, height=844, dark=dark)
        await page.open(f"{server.ready.dashboard_url}/api/docs")
        assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert await page.evaluate(CONTRAST) >= 4.5  # WCAG 1.4.3
        wide = (
            "[...document.querySelectorAll('h2, h3, p, table')].filter(one => one.getBoundingClientRect().right > 390)"
        )
        assert await page.evaluate(f"{wide}.map(one => one.textContent)") == []
        assert page.complaints == []
