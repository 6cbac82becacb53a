"""What browsers, strangers and odd bytes may not do to the API: the A rows that concern every route."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rustunnel_py.errors import StoreError
from tests.api.test_authorisation import TABLE
from tests.api.test_captures import path_of, post
from tests.api.test_rustunnel import call, error_of, the_admin, value_of
from tests.support.api import ADMIN_TOKEN, ApiBench, api_bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

UNKNOWN = "00000000-0000-4000-8000-000000000000"
VECTORS = [
    b"<script>alert(1)</script>",
    b'"><img src=x onerror=alert(1)>',
    b"javascript:alert(1)",
    b"{{7*7}}",
    b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[ApiBench]:
    async with api_bench(tmp_path) as bench:
        yield bench


@pytest.mark.parametrize("vector", VECTORS)
async def test_A15_what_was_captured_is_never_a_page(bench: ApiBench, vector: bytes) -> None:
    tunnel = bench.http("app", the_admin(bench))
    reply = b"HTTP/1.1 200 %b\r\nContent-Type: text/html\r\nX-V: %b\r\nContent-Length: %d\r\n\r\n"
    head = b"POST /%b HTTP/1.1\r\nHost: app.t.example.com\r\nX-V: %b\r\nContent-Length: %d\r\n\r\n"
    target = vector.replace(b" ", b"%20").replace(b"#", b"%23")
    request_id = bench.capture(
        tunnel, head % (target, vector, len(vector)), reply % (b"OK", vector, len(vector)), vector, vector
    )
    for rest in ("", "/search", f"/{request_id}", f"/{request_id}/curl", f"/{request_id}/response-body", "/export"):
        response = await call(bench, "GET", path_of(tunnel, rest))  # nosniff and no frame: `call` looks
        assert response.status_code == 200
        assert response.content_type.partition(";")[0] in ("application/json", "text/plain", "application/octet-stream")
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    shown = await value_of(await call(bench, "GET", path_of(tunnel, f"/{request_id}")))
    assert shown["response_body"] == vector.decode()


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/%5c..%5capp.py",
        "/static//etc/passwd",
        "/static/look.css%00",
        "/static/",
        "/static",
        "//etc/passwd",
        "/api/docs/..%2f..%2fetc/passwd",
    ],
)
async def test_A20_no_path_leads_out(bench: ApiBench, path: str) -> None:
    response = await bench.app.test_client().get(path, headers={"Host": "localhost"})
    assert response.status_code == 404
    assert b"root:" not in await response.get_data(as_text=False)


async def test_A21_every_answer_has_the_headers(bench: ApiBench) -> None:
    for key in TABLE:
        method, _, path = key.partition(" ")
        for name in ("tunnel_id", "request_id", "token_id", "name"):
            path = path.replace(f"<{name}>", UNKNOWN)
        if not path.startswith("/static"):
            for token in (None, ADMIN_TOKEN):
                response = await bench.app.test_client().open(  # type: ignore[call-arg]
                    path,
                    method=method,
                    headers={"Host": "localhost"} | ({"Authorization": f"Bearer {token}"} if token else {}),
                )
                headers = response.headers
                assert headers["Cache-Control"] == "no-store", key
                assert headers["X-Content-Type-Options"] == "nosniff"
                assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
                assert headers["Referrer-Policy"] in ("no-referrer", "same-origin")


async def test_A25_a_cookie_is_no_credential(bench: ApiBench) -> None:
    for name in ("rustunnel", "__Host-rustunnel", "token", "Authorization"):
        response = await call(bench, "GET", "/api/tunnels", None, headers={"Cookie": f"{name}={ADMIN_TOKEN}"})
        assert (response.status_code, await error_of(response)) == (401, "missing token")
        assert "Set-Cookie" not in response.headers


async def test_A01_a_token_in_the_query_is_no_credential(bench: ApiBench) -> None:
    for name in ("token", "access_token", "api_key", "Authorization"):
        response = await call(bench, "GET", f"/api/tunnels?{name}={ADMIN_TOKEN}", None)
        assert response.status_code == 401


async def test_A26_a_flood_of_wrong_tokens_keeps_nobody_out(bench: ApiBench) -> None:
    token, _ = await bench.token("agent")
    for _ in range(20):
        assert (await call(bench, "GET", "/api/tunnels", "wrong")).status_code == 401
    for right in (token, ADMIN_TOKEN):
        assert (await call(bench, "GET", "/api/tunnels", right)).status_code == 200


async def test_A28_log_lines_show_little_of_what_was_sent(
    bench: ApiBench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_: object) -> None:
        raise StoreError("no disk")

    monkeypatch.setattr(bench.inspector, "recent", fail)
    capsys.readouterr()
    response = await call(bench, "GET", "/api/tunnels/%1b[2J%0aforged" + "x" * 7000 + "/requests")
    assert response.status_code == 503
    logged = capsys.readouterr().out
    assert "an API call failed in the store" in logged
    assert "\x1b[2J" not in logged
    assert "forged" not in [line[:6] for line in logged.splitlines()]
    assert len(logged) < 1000


async def test_A22_views_are_bounded(bench: ApiBench, monkeypatch: pytest.MonkeyPatch) -> None:
    from rustunnel_py.hub import inspector

    monkeypatch.setattr(inspector, "VIEWERS_OF_ONE_MAX", 0)
    tunnel = bench.http("app", the_admin(bench))
    post(bench, tunnel)
    response = await call(bench, "GET", path_of(tunnel, "/live"))
    assert response.status_code == 409
    assert "live views" in await error_of(response)
