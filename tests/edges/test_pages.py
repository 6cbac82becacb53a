"""Pages of the edge's own: three forms of the same facts, nothing loaded from outside, nothing unescaped."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import UTC, datetime

import pytest

from rustunnel_py.edges.pages import Problem, form_of, front_page, own_reply, problem_page
from rustunnel_py.errors import Hop, HopError, HttpError

NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
BROWSER = b"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
ID = "0123456789abcdef0123456789abcdef"
HOPS = [
    HopError(Hop.EDGE, 404, "no-such-tunnel", "There is no tunnel at this address."),
    HopError(Hop.AGENT, 503, "agent-away", "Away.", retry_after=5.0),
    HopError(Hop.LOCAL_SERVICE, 502, "local-service-refused", "Refused."),
    HopError(Hop.LOCAL_SERVICE, 504, "too-slow", "Slow."),
    HopError(Hop.EDGE, 413, "body-too-large", "Large."),
    HopError(Hop.EDGE, 429, "too-many-requests", "Many.", retry_after=0.2),
    HopError(Hop.EDGE, 500, "crash", "Crash."),
]


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (b"", "text"),
        (b"*/*", "text"),
        (BROWSER, "html"),
        (b"application/json", "json"),
        (b"application/json, text/plain, */*", "json"),
        (b"application/vnd.api+json", "json"),
        (b"application/problem+json;q=0.9, text/html;q=0.5", "json"),
        (b"text/html;q=0, application/json;q=0.1", "json"),
        (b"text/plain", "text"),
        (b"text/html;q=nonsense", "text"),
        (b"TEXT/HTML", "html"),
        (b"text/html," + b"x/y," * 1000, "text"),
        (b"\xff\xfe;;;,,,=", "text"),
    ],
)
def test_the_form_follows_what_accept_names(accept: bytes, form: str) -> None:
    assert form_of(accept) == form


@pytest.mark.parametrize("error", HOPS, ids=lambda error: error.code)
def test_every_form_has_code_hop_request_id_and_since(error: HopError) -> None:
    problem = Problem.of_hop(error, NOW)
    shown = json.loads(problem_page(problem, b"application/json", ID).body)["error"]
    assert (shown["status"], shown["code"], shown["hop"]) == (error.status, error.code, error.hop.value)
    assert (shown["since"], shown["request_id"]) == ("2024-05-06T07:08:09+00:00", ID)
    assert shown["advice"]
    for accept in (BROWSER, b""):
        text = problem_page(problem, accept, ID).body.decode()
        for fact in (str(error.status), error.code, error.hop.value, error.message, ID, "2024-05-06 07:08:09 UTC"):
            assert fact in text


def test_a_bad_request_is_nobody_s_hop() -> None:
    page = problem_page(Problem.of_request(HttpError(400, "bare-lf", "A line.")), b"application/json", ID)
    assert "hop" not in json.loads(page.body)["error"]
    assert page.status == 400


def test_everything_is_escaped() -> None:
    evil = '<script>alert("x")</script>&\u202e'
    page = problem_page(Problem(400, evil, evil, evil), BROWSER, ID)
    assert b"<script" not in page.body
    assert b"&lt;script&gt;" in page.body
    json.loads(problem_page(Problem(400, evil, evil, evil), b"application/json", ID).body)


def test_nothing_is_loaded_and_the_policy_allows_its_own_style_only() -> None:
    page = problem_page(Problem.of_hop(HOPS[0]), BROWSER, ID)
    html = page.body.decode()
    assert not re.search(r"https?://|src=|href=|url\(|@import|<script|style=", html)
    styles = re.findall(r"<style>(.*?)</style>", html)
    assert len(styles) == 1
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    policy = re.search(rb"Content-Security-Policy: ([^\r]*)\r\n", page.lines)
    assert policy is not None
    assert policy[1].decode() == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert b"X-Content-Type-Options: nosniff\r\n" in page.lines
    assert b"Cache-Control: no-store\r\n" in page.lines


def test_retry_after_is_whole_seconds_and_never_none_at_all() -> None:
    assert b"Retry-After: 5\r\n" in problem_page(Problem.of_hop(HOPS[1]), b"", ID).lines
    assert b"Retry-After: 1\r\n" in problem_page(Problem.of_hop(HOPS[5]), b"", ID).lines
    assert b"Retry-After" not in problem_page(Problem.of_hop(HOPS[0]), b"", ID).lines


@pytest.mark.parametrize(
    ("status", "line"), [(426, b"Sec-WebSocket-Version: 13\r\n"), (405, b"Allow: GET, HEAD, POST")]
)
def test_what_a_status_demands_is_there(status: int, line: bytes) -> None:
    assert line in problem_page(Problem.of_request(HttpError(status, "x", "x")), b"", ID).lines


@pytest.mark.parametrize("accept", [b"", BROWSER, b"application/json"])
def test_a_page_is_a_whole_reply(accept: bytes) -> None:
    page = problem_page(Problem.of_hop(HOPS[0]), accept, ID)
    head, _, body = page.render(head_only=False, close=True, minor=1, now=NOW).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 Not Found\r\nDate: Mon, 06 May 2024 07:08:09 GMT\r\n")
    assert b"\r\nContent-Length: %d" % len(body) in head
    assert b"\r\nX-Request-Id: " + ID.encode() in head
    assert head.endswith(b"\r\nConnection: close")
    assert page.render(head_only=True, close=False, minor=1, now=NOW).endswith(b"\r\n\r\n")
    assert b"\r\nConnection: keep-alive\r\n" in page.render(head_only=False, close=False, minor=0, now=NOW)


@pytest.mark.parametrize("accept", [b"", BROWSER, b"application/json"])
def test_the_bare_domain_says_nothing_about_tenants_or_versions(accept: bytes) -> None:
    page = front_page(accept)
    assert page.status == 200
    assert page.body
    assert not re.search(rb"[0-9]\.[0-9]+\.[0-9]", page.body)


def test_a_policy_s_reply_is_sent_as_it_is() -> None:
    page = own_reply(299, ((b"X-A", b"b"),), b"body")
    assert page.render(head_only=False, close=False, minor=1, now=NOW) == (
        b"HTTP/1.1 299 \r\nDate: Mon, 06 May 2024 07:08:09 GMT\r\nX-A: b\r\nContent-Length: 4\r\n\r\nbody"
    )
