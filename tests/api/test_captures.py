from __future__ import annotations

import base64
import json
import shlex
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from quart.testing.connections import WebsocketResponseError

from rustunnel_py.api import capture_shapes, captures
from rustunnel_py.config import InspectConfig
from rustunnel_py.model.access import Caller, Role
from tests.api.test_rustunnel import call, error_of, the_admin, value_of
from tests.support.api import ADMIN_TOKEN as ADMIN
from tests.support.api import ApiBench, api_bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from rustunnel_py.hub.registry import Tunnel

UNKNOWN = "00000000-0000-4000-8000-000000000000"
POST = (
    b"POST /orders?x=1 HTTP/1.1\r\nHost: app.t.example.com\r\nContent-Type: application/json\r\nX-Tag: a b\r\n"
    b"Authorization: Bearer hush-hush-hush\r\nContent-Length: %d\r\n\r\n"
)
REPLY = b"HTTP/1.1 %d Fine\r\nContent-Type: text/html\r\nX-Served-By: me\r\nContent-Length: 9\r\n\r\n"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[ApiBench]:
    async with api_bench(tmp_path) as bench:
        yield bench


@pytest.fixture
async def tunnel(bench: ApiBench) -> Tunnel:
    return bench.http("app", the_admin(bench))


def post(
    bench: ApiBench, tunnel: Tunnel, body: bytes = b'{"a": 1}', status: int = 201, answer: bytes = b"<p>hi</p>"
) -> str:
    return bench.capture(tunnel, POST % len(body), REPLY % status, body, answer)


def path_of(tunnel: Tunnel, rest: str = "") -> str:
    return f"/api/tunnels/{tunnel.id}/requests{rest}"


async def record(bench: ApiBench, tunnel: Tunnel, request_id: str) -> Any:
    return await value_of(await call(bench, "GET", path_of(tunnel, f"/{request_id}")))


# reading


async def test_a_record_in_full(bench: ApiBench, tunnel: Tunnel) -> None:
    shown = await record(bench, tunnel, post(bench, tunnel))
    assert shown["request"] == {
        "headers": [
            ["Host", "app.t.example.com"],
            ["Content-Type", "application/json"],
            ["X-Tag", "a b"],
            ["Authorization", "Bearer [redacted]"],
            ["Content-Length", "8"],
        ],
        "trailers": [],
        "body": '{"a": 1}',
        "encoding": "text",
        "bytes": 8,
        "clipped": False,
        "withheld": False,
    }
    assert (shown["status"], shown["reason"], shown["response"]["body"]) == (201, "Fine", "<p>hi</p>")
    assert (shown["scheme"], shown["host"], shown["http_version"]) == ("http", "app.t.example.com", "1.1")
    assert shown["timings"]["total"] == 12.4
    assert shown["duration_ms"] == 12
    assert (shown["kind"], shown["messages"], shown["pinned"], shown["replay_of"]) == ("http", [], False, None)


@pytest.mark.parametrize(
    ("body", "shown", "encoding"),
    [
        ("grüße".encode(), "grüße", "text"),
        (b"\xff\x00", base64.b64encode(b"\xff\x00").decode(), "base64"),
        (b"", None, None),
    ],
)
async def test_bodies_are_text_or_marked(
    bench: ApiBench, tunnel: Tunnel, body: bytes, shown: str | None, encoding: str | None
) -> None:
    request_id = post(bench, tunnel, answer=body)
    (listed,) = await value_of(await call(bench, "GET", path_of(tunnel)))
    assert listed["response_body"] == (f"base64:{shown}" if encoding == "base64" else shown)
    response = (await record(bench, tunnel, request_id))["response"]
    assert (response["body"], response["encoding"]) == (shown, encoding)


async def test_a_clipped_body_may_end_inside_a_character(tmp_path: Path) -> None:
    async with api_bench(tmp_path, InspectConfig(body_max_bytes=5)) as bench:
        tunnel = bench.http("app", the_admin(bench))
        response = (await record(bench, tunnel, post(bench, tunnel, answer="aä€€".encode())))["response"]
    assert (response["body"], response["clipped"], response["bytes"]) == ("aä", True, 9)


async def test_an_answer_has_only_so_much_of_bodies(
    bench: ApiBench, tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_shapes, "SHOWN_BYTES_MAX", 40)
    for _ in range(3):
        post(bench, tunnel)
    bodies = [request["response_body"] for request in await value_of(await call(bench, "GET", path_of(tunnel)))]
    assert bodies == ["<p>hi</p>", "<p>hi</p>", None]


async def test_a_search_finds_what_fits(bench: ApiBench, tunnel: Tunnel) -> None:
    first = post(bench, tunnel, status=500, answer=b"a needle")
    second = post(bench, tunnel)
    plain = bench.capture(tunnel)
    await bench.inspector.write()
    for query, ids in {
        "": [plain, second, first],
        "method=post": [second, first],
        "status=500": [first],
        "status=5xx": [first],
        "status=200-201": [plain, second],
        "path=ORDERS": [second, first],
        "header=x-served": [second, first],
        "header=x-tag:%20a": [second, first],
        "body=NEEDLE": [first],
        "since=2000-01-01T00:00:00Z": [plain, second, first],
        "until=2000-01-01T00:00:00%2B01:00": [],
        "pinned=true": [],
        "pinned=false&method=GET": [plain],
    }.items():
        found = await value_of(await call(bench, "GET", path_of(tunnel, f"/search?{query}")))
        assert [request["id"] for request in found["requests"]] == ids, query
        assert (found["next"], found["captures_not_stored"]) == (None, 0)


async def test_pages_follow_one_another(bench: ApiBench, tunnel: Tunnel) -> None:
    ids = [post(bench, tunnel) for _ in range(5)]
    await bench.inspector.write()
    ids.append(post(bench, tunnel))  # not stored yet
    cursor, seen = "", []
    for size in (2, 2, 2, 0):
        page = await value_of(await call(bench, "GET", path_of(tunnel, f"/search?limit=2{cursor}")))
        assert len(page["requests"]) == size
        seen += [request["id"] for request in page["requests"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert seen == ids[::-1]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=x",
        "cursor=x",
        "cursor=-1",
        "cursor=1&cursor=2",
        "cursor=" + "9" * 30,
        "status=99",
        "status=6",
        "status=abc",
        "since=yesterday",
        "since=2025-06-01",
        "since=2025-06-01T12:00:00",
        "until=2025-13-01T12:00:00Z",
        "pinned=1",
        "method=",
        "path=" + "x" * 1001,
    ],
)
async def test_A08_a_search_is_strict(bench: ApiBench, tunnel: Tunnel, query: str) -> None:
    response = await call(bench, "GET", path_of(tunnel, f"/search?{query}"))
    assert response.status_code == 400
    assert (await error_of(response)).startswith(query.partition("=")[0])


@pytest.mark.parametrize("strange", ["'", "..", "%00", "x" * 5000, "0", UNKNOWN, "%22%20OR%201=1", "search%20"])
async def test_A02_strange_request_ids_find_nothing(bench: ApiBench, tunnel: Tunnel, strange: str) -> None:
    for method, rest in [("GET", ""), ("DELETE", ""), ("PUT", "/pin"), ("GET", "/curl"), ("GET", "/request-body")]:
        response = await call(bench, method, path_of(tunnel, f"/{strange}{rest}"))
        assert response.status_code == 404
        assert await error_of(response) in ("request not found", "not found")
    response = await call(bench, "POST", f"/api/tunnels/{tunnel.id}/replay/{strange}")
    assert (response.status_code, await error_of(response)) in ((404, "request not found"), (404, "not found"))


async def test_A02_A17_requests_of_another_owner_are_not_there(bench: ApiBench, tunnel: Tunnel) -> None:
    request_id = post(bench, tunnel)
    token, _ = await bench.token("other")
    for method, path in [
        ("GET", path_of(tunnel)),
        ("GET", path_of(tunnel, f"/{request_id}")),
        ("GET", path_of(tunnel, "/live")),
        ("POST", f"/api/tunnels/{tunnel.id}/replay/{request_id}"),
    ]:
        response = await call(bench, method, path, token)
        assert (response.status_code, await error_of(response)) == (404, "tunnel not found")


async def test_what_differs(bench: ApiBench, tunnel: Tunnel) -> None:
    old = post(bench, tunnel)
    new = post(bench, tunnel, body=b'{"a": 2}', status=500)
    found = await value_of(await call(bench, "GET", path_of(tunnel, f"/diff?old={old}&new={new}")))
    assert found["status"] == [201, 500]
    assert found["request_body"] == {"old_bytes": 8, "new_bytes": 8, "first_difference": 6, "comparable": True}
    assert (found["method"], found["path"], found["request_headers"], found["response_body"]) == (None, None, [], None)


# files


async def test_A16_a_body_is_an_attachment(bench: ApiBench, tunnel: Tunnel) -> None:
    request_id = post(bench, tunnel, answer=b"<script>alert(1)</script>")
    for side, body in (("request", b'{"a": 1}'), ("response", b"<script>alert(1)</script>")):
        response = await call(bench, "GET", path_of(tunnel, f"/{request_id}/{side}-body"))
        assert await response.get_data(as_text=False) == body
        assert response.content_type == "application/octet-stream"
        assert response.headers["Content-Disposition"] == f'attachment; filename="{side}-{request_id}.bin"'
        assert "sandbox" in response.headers["Content-Security-Policy"]


NAUGHTY = [
    b"$(touch pwned)",
    b"`touch pwned`",
    b"'; touch pwned; '",
    b'"quoted" \\ back',
    b"a\nb\r\nc\td",
    b"\x1b]0;title\x07\x1b[2J",
    "\u202egnp.exe ünïcode".encode(),
    b"@/etc/passwd",
    b"!history !! %s ${HOME} *",
    b"\x00\xff\xfe binary",
    b"=cmd|' /C calc'!A0",
]


@pytest.mark.parametrize("body", NAUGHTY)
async def test_A19_curl_is_quoted_for_the_shell(bench: ApiBench, tunnel: Tunnel, tmp_path: Path, body: bytes) -> None:
    """Played by bash with a `curl` that says what it was given."""
    value = body.replace(b"\n", b" ").replace(b"\r", b" ").replace(b"\t", b" ")
    value = bytes(byte for byte in value if byte >= 0x20 and byte != 0x7F)  # what a header can carry
    path = "/" + "".join(chr(b) if 0x21 <= b < 0x7F and b != 0x23 else f"%{b:02x}" for b in body)
    request = b"POST %b HTTP/1.1\r\nHost: app.t.example.com\r\nContent-Type: x/y\r\n" % path.encode()
    request += b"X-Naughty: %b\r\nContent-Length: %d\r\n\r\n" % (value.strip(), len(body))
    request_id = bench.capture(tunnel, request, body=body)
    response = await call(bench, "GET", path_of(tunnel, f"/{request_id}/curl"))
    assert response.content_type == "text/plain; charset=utf-8"
    line = await response.get_data(as_text=True)
    assert line.isascii()
    assert line.rstrip("\n").isprintable()
    folder = tmp_path / "bin"
    folder.mkdir()
    curl = folder / "curl"
    curl.write_text(
        '#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >args\ncase " $* " in *" @- "*) cat >body;; esac\n'
    )
    curl.chmod(0o755)
    env = {"PATH": f"{folder}:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    await trio.run_process(["bash", "-c", line], cwd=tmp_path, env=env)
    assert not (tmp_path / "pwned").exists()
    words = (tmp_path / "args").read_bytes().split(b"\0")[:-1]
    assert words[-1] == b"http://app.t.example.com:8080" + path.encode()
    assert b"X-Naughty: " + value.strip() in words or b"X-Naughty: " + value.strip().decode("latin-1").encode() in words
    sent = (tmp_path / "body").read_bytes() if b"@-" in words else words[words.index(b"--data-raw") + 1]
    assert sent == body


async def test_curl_of_simple_requests(bench: ApiBench, tunnel: Tunnel) -> None:
    plain = bench.capture(tunnel)
    line = await (await call(bench, "GET", path_of(tunnel, f"/{plain}/curl"))).get_data(as_text=True)
    assert shlex.split(line) == [
        "curl",
        "--globoff",
        "--path-as-is",
        "--header",
        "Host: app.t.example.com",
        "http://app.t.example.com:8080/a?b=1",
    ]


async def export(bench: ApiBench, tunnel: Tunnel, query: str = "") -> Any:
    response = await call(bench, "GET", path_of(tunnel, f"/export{query}"))
    assert response.status_code == 200
    assert response.headers["Content-Disposition"] == f'attachment; filename="{tunnel.id}.har"'
    return json.loads(await response.get_data(as_text=True))


async def test_har_there_and_back(bench: ApiBench, tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "EXPORT_PAGE", 2)
    ids = [post(bench, tunnel), bench.capture(tunnel), post(bench, tunnel, body=b"\xff\x00", answer=b"\x80")]
    await bench.inspector.write()
    har = await export(bench, tunnel)
    assert har["log"]["version"] == "1.2"
    entries = har["log"]["entries"]
    assert [entry["_id"] for entry in entries] == ids[::-1]
    newest = entries[0]
    assert newest["request"]["url"] == "http://app.t.example.com:8080/orders?x=1"
    assert newest["request"]["queryString"] == [{"name": "x", "value": "1"}]
    assert newest["request"]["postData"] == {"mimeType": "application/json", "text": "/wA=", "_encoding": "base64"}
    assert newest["response"]["content"] == {"size": 1, "mimeType": "text/html", "text": "gA==", "encoding": "base64"}
    assert abs(sum(max(newest["timings"][part], 0) for part in ("blocked", "send", "wait", "receive")) - 12.4) < 0.01
    for one in (ids[:1], ids[:2]):
        chosen = await export(bench, tunnel, f"?ids={','.join(one)}")
        assert [entry["_id"] for entry in chosen["log"]["entries"]] == one

    made = await value_of(await call(bench, "POST", path_of(tunnel, "/import"), json=har), 201)
    assert len(made["ids"]) == 3
    for old_id, new_id in zip(ids[::-1], made["ids"], strict=True):
        old, new = await record(bench, tunnel, old_id), await record(bench, tunnel, new_id)
        assert new["imported"]
        for name in ("method", "path", "status", "reason", "request", "response", "request_body", "captured_at"):
            assert new[name] == old[name], name


async def test_an_import_of_anything_gives_an_export_that_can_be_imported(bench: ApiBench, tunnel: Tunnel) -> None:
    bench.capture(tunnel)
    har = await export(bench, tunnel)
    har["log"]["entries"][0]["startedDateTime"] = "0001-01-01T00:00:00Z"
    har["log"]["entries"][0]["request"]["headers"] = [{"name": "Host", "value": "<script>"}]
    (made,) = (await value_of(await call(bench, "POST", path_of(tunnel, "/import"), json=har), 201))["ids"]
    assert (await record(bench, tunnel, made))["captured_at"] == "0001-01-01T00:00:00Z"
    again = await export(bench, tunnel, f"?ids={made}")
    assert again["log"]["entries"][0]["startedDateTime"] == "0001-01-01T00:00:00.000Z"
    assert again["log"]["entries"][0]["request"]["url"] == "http://unknown.invalid/a?b=1"
    await value_of(await call(bench, "POST", path_of(tunnel, "/import"), json=again), 201)


@pytest.mark.parametrize(
    ("har", "said"),
    [
        ({}, "no HAR file"),
        ([], "no HAR file"),
        ({"log": {"entries": [{}]}}, "no HAR file"),
        ({"log": {"entries": "x"}}, "no HAR file"),
    ],
)
async def test_what_is_no_har(bench: ApiBench, tunnel: Tunnel, har: object, said: str) -> None:
    response = await call(bench, "POST", path_of(tunnel, "/import"), json=har)
    assert response.status_code == 400
    assert said in await error_of(response)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (("request", "url"), "ftp://x/"),
        (("request", "url"), "nothing"),
        (("request", "method"), ""),
        (("response", "status"), 1000),
        (("response", "status"), "200"),
        (("startedDateTime",), "yesterday"),
    ],
)
async def test_an_entry_that_cannot_be_used(
    bench: ApiBench, tunnel: Tunnel, part: tuple[str, ...], value: object
) -> None:
    bench.capture(tunnel)
    har = await export(bench, tunnel)
    at = har["log"]["entries"][0]
    for name in part[:-1]:
        at = at[name]
    at[part[-1]] = value
    response = await call(bench, "POST", path_of(tunnel, "/import"), json=har)
    assert response.status_code == 400
    assert "entries" in await error_of(response)


async def test_what_an_import_takes_as_it_stands(bench: ApiBench, tunnel: Tunnel) -> None:
    bench.capture(tunnel)
    har = await export(bench, tunnel)
    entry = har["log"]["entries"][0]
    entry["startedDateTime"] = "2999-02-31T00:00:00Z"
    entry["request"] |= {"url": "http://other.example?q=1#part", "headers": [{"name": ":authority", "value": "x"}]}
    entry["request"]["postData"] = {"mimeType": "x", "text": "!", "_encoding": "base64"}
    entry["response"] |= {"status": 200.0}
    made = await value_of(await call(bench, "POST", path_of(tunnel, "/import"), json=har), 201)
    shown = await record(bench, tunnel, made["ids"][0])
    assert (shown["host"], shown["path"], shown["request_body"]) == ("other.example", "/?q=1", "!")
    assert shown["captured_at"] < "2999"
    assert shown["request"]["headers"] == [["Host", "other.example"]]


async def test_A04_a_har_may_be_long_but_not_endless(bench: ApiBench, tunnel: Tunnel) -> None:
    har = {"log": {"entries": [], "comment": "x" * 2**20}}
    assert (await call(bench, "POST", path_of(tunnel, "/import"), json=har)).status_code == 201
    deep = b'{"log": {"entries": [], "comment": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    response = await call(
        bench, "POST", path_of(tunnel, "/import"), data=deep, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 400
    long = b'{"log": "' + b"x" * (33 * 2**20) + b'"}'
    response = await call(
        bench, "POST", path_of(tunnel, "/import"), data=long, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 413


# changing


async def test_delete_and_pin(bench: ApiBench, tunnel: Tunnel) -> None:
    kept, gone = post(bench, tunnel), post(bench, tunnel)
    assert (await call(bench, "PUT", path_of(tunnel, f"/{kept}/pin"))).status_code == 204
    assert (await record(bench, tunnel, kept))["pinned"]
    assert (await call(bench, "DELETE", path_of(tunnel, f"/{kept}/pin"))).status_code == 204
    assert not (await record(bench, tunnel, kept))["pinned"]
    assert (await call(bench, "DELETE", path_of(tunnel, f"/{gone}"))).status_code == 204
    again = await call(bench, "DELETE", path_of(tunnel, f"/{gone}"))
    assert (again.status_code, await error_of(again)) == (404, "request not found")
    assert [request["id"] for request in await value_of(await call(bench, "GET", path_of(tunnel)))] == [kept]


async def test_the_tier_of_one_tunnel(bench: ApiBench, tunnel: Tunnel) -> None:
    request_id = post(bench, tunnel)
    for tier, shown in (("none", "Bearer hush-hush-hush"), ("standard", "Bearer [redacted]")):
        response = await call(bench, "PUT", f"/api/tunnels/{tunnel.id}/redaction", json={"tier": tier})
        assert response.status_code == 204
        headers = (await record(bench, tunnel, request_id))["request"]["headers"]
        assert ["Authorization", shown] in headers
    response = await call(bench, "PUT", f"/api/tunnels/{tunnel.id}/redaction", json={"tier": "lax"})
    assert response.status_code == 422


# replay


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"send": True, "times": 0}, 422, "times"),
        ({"send": True, "times": 101}, 422, "times"),
        ({"send": "yes"}, 422, "send"),
        ({"send": True, "to": "http://127.0.0.1"}, 422, "to: no such key; allowed: send, edit, times"),
        ({"send": True, "edit": {"url": "http://127.0.0.1"}}, 422, "edit"),
        ({"edit": {"path": "/x"}}, 400, "send"),
        ({"send": True, "edit": {"body": "x", "body_base64": "eA=="}}, 400, "not both"),
        ({"send": True, "edit": {"body_base64": "!"}}, 422, "base64"),
        ({"send": True, "edit": {"path": "/€"}}, 422, "edit.path"),
        ({"send": True, "edit": {"headers": {"Host": "evil.example"}}}, 400, "Host"),
        ({"send": True, "edit": {"path": "http://127.0.0.1:4041/api/tokens"}}, 422, "edit.path"),
        ({"send": True, "edit": {"headers": {"X-A": "a\r\nX-B: b"}}}, 400, "one line"),
        ({"send": True, "edit": {"method": "CONNECT"}}, 400, ""),
    ],
)
async def test_A17_A18_a_replay_that_is_refused(
    bench: ApiBench, tunnel: Tunnel, body: dict[str, Any], status: int, said: str
) -> None:
    request_id = post(bench, tunnel)
    response = await call(bench, "POST", f"/api/tunnels/{tunnel.id}/replay/{request_id}", json=body)
    assert response.status_code == status
    assert said in await error_of(response)


async def test_A17_a_replay_to_a_tunnel_that_is_gone(bench: ApiBench, tunnel: Tunnel) -> None:
    request_id = post(bench, tunnel)
    bench.sessions.close_tunnel(tunnel)
    response = await call(bench, "POST", f"/api/tunnels/{tunnel.id}/replay/{request_id}", json={"send": True})
    assert response.status_code == 409
    shown = await value_of(await call(bench, "POST", f"/api/tunnels/{tunnel.id}/replay/{request_id}"))
    assert shown["id"] == request_id


async def test_a_reader_sees_the_record_and_sends_nothing(bench: ApiBench) -> None:
    token, caller = await bench.token("reader", Role.READ)
    tunnel = bench.http("app", Caller(caller.owner, Role.AGENT))
    target = f"/api/tunnels/{tunnel.id}/replay/{post(bench, tunnel)}"
    assert (await call(bench, "POST", target, token)).status_code == 200
    response = await call(bench, "POST", target, token, json={"send": True})
    assert (response.status_code, await error_of(response)) == (403, "this token may only read")


# live


async def test_live_events(bench: ApiBench, tunnel: Tunnel) -> None:
    headers = {"Host": "localhost", "Authorization": f"Bearer {ADMIN}"}
    client = bench.app.test_client()
    async with client.request(path_of(tunnel, "/live"), method="GET", headers=headers) as connection:
        await connection.send_complete()
        assert (await connection.receive()).startswith(b": ")
        request_id = post(bench, tunnel)
        event = (await connection.receive()).decode()
        kind, data = event.rstrip("\n").split("\n")
        shown = json.loads(data.removeprefix("data: "))
        assert kind == "event: request"
        assert (shown["id"], shown["method"], shown["request_body"]) == (request_id, "POST", None)
        bench.sessions.close_tunnel(tunnel)
        await bench.inspector.write()
        with trio.fail_after(5):
            assert await connection.receive() == b"event: end\ndata: {}\n\n"


async def test_A22_a_live_view_ends_with_its_token(bench: ApiBench) -> None:
    token, caller = await bench.token("agent")
    tunnel = bench.http("app", caller)
    headers = {"Host": "localhost", "Authorization": f"Bearer {token}"}
    client = bench.app.test_client()
    async with client.request(path_of(tunnel, "/live"), method="GET", headers=headers) as connection:
        await connection.send_complete()
        await connection.receive()
        await bench.accounts.delete_token(caller.token_id or "")
        with trio.fail_after(1):
            assert await connection.receive() == b"event: end\ndata: {}\n\n"


async def test_live_messages_by_websocket(bench: ApiBench, tunnel: Tunnel) -> None:
    headers = {"Host": "localhost", "Authorization": f"Bearer {ADMIN}"}
    async with bench.app.test_client().websocket(path_of(tunnel, "/live"), headers=headers) as socket:
        await trio.testing.wait_all_tasks_blocked()
        request_id = post(bench, tunnel)
        message = json.loads(await socket.receive())
        assert (message["event"], message["data"]["id"]) == ("request", request_id)
        bench.inspector.end_views("nobody's")
        bench.sessions.close_tunnel(tunnel)
        await bench.inspector.write()
        assert json.loads(await socket.receive()) == {"event": "end", "data": {}}


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("wrong", 401), ("other", 404)])
async def test_A01_a_websocket_needs_a_token_too(
    bench: ApiBench, tunnel: Tunnel, token: str | None, status: int
) -> None:
    if token == "other":
        token, _ = await bench.token("other")
    headers = {"Host": "localhost"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    with pytest.RaisesGroup(WebsocketResponseError, flatten_subgroups=True) as refused:
        async with bench.app.test_client().websocket(path_of(tunnel, "/live"), headers=headers) as socket:
            await socket.receive()
    (error,) = refused.value.exceptions
    assert isinstance(error, WebsocketResponseError)
    assert error.response.status_code == status
