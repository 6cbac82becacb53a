from __future__ import annotations

import json
import re
import sqlite3
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from rustunnel_py.hub import accounts as accounts_module
from rustunnel_py.model.access import Caller, Role
from rustunnel_py.model.tunnel import Protocol
from rustunnel_py.store.tunnel_log import LogEntry
from tests.support.api import ADMIN_TOKEN, ApiBench, api_bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from quart import Response

NOW = datetime(2025, 6, 1, 12, 0, 0, 987654, tzinfo=UTC)
UNKNOWN = "00000000-0000-4000-8000-000000000000"
ROUTES = [
    ("GET", "/api/tunnels"),
    ("GET", f"/api/tunnels/{UNKNOWN}"),
    ("DELETE", f"/api/tunnels/{UNKNOWN}"),
    ("GET", "/api/tokens"),
    ("POST", "/api/tokens"),
    ("DELETE", f"/api/tokens/{UNKNOWN}"),
    ("GET", "/api/history"),
]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[ApiBench]:
    async with api_bench(tmp_path) as bench:
        yield bench


async def call(
    bench: ApiBench,
    method: str,
    path: str,
    token: str | None = ADMIN_TOKEN,
    *,
    headers: dict[str, str] | None = None,
    json: object = None,
    data: bytes | None = None,
) -> Response:
    sent = {"Host": "localhost:4041"} | (headers or {})
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    content = {"data": data} if json is None else {"json": json}
    response = await bench.app.test_client().open(path, method=method, headers=sent, **content)
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
    assert not [name for name in response.headers.keys() if name.lower().startswith("access-control")]  # noqa: SIM118
    return response


async def error_of(response: Response) -> str:
    """The message of an error in the one shape that errors have."""
    assert response.content_type == "application/json"
    body = json.loads(await response.get_data(as_text=True))
    assert list(body) == ["error"]
    assert isinstance(body["error"], str)
    return str(body["error"])


async def value_of(response: Response, status: int = 200) -> Any:
    assert response.status_code == status, await response.get_data(as_text=True)
    assert response.content_type == "application/json"
    return json.loads(await response.get_data(as_text=True))


def the_admin(bench: ApiBench) -> Caller:
    return Caller(bench.store.accounts.first, Role.ADMIN)


# the seed page


async def test_status_needs_no_token(bench: ApiBench) -> None:
    bench.http("a", the_admin(bench))
    held = bench.http("b", the_admin(bench))
    bench.registry.hold(held, held.links._serving[0], 60)
    for token in (None, "wrong", ADMIN_TOKEN):
        response = await call(bench, "GET", "/api/status", token, headers={"Host": "evil.example"})
        assert await value_of(response) == {"ok": True, "active_sessions": 0, "active_tunnels": 1}


async def test_tunnels_in_the_seeds_shape(bench: ApiBench) -> None:
    http = bench.http("abc123", the_admin(bench), Protocol.HTTPS)
    plain = bench.http("def", the_admin(bench))
    tcp = bench.tcp(20001, the_admin(bench))
    http.registered_at = NOW
    http.requests = 42
    shown = await value_of(await call(bench, "GET", "/api/tunnels"))
    assert shown[0] == {
        "tunnel_id": http.id,
        "protocol": "http",
        "label": "abc123.t.example.com",
        "public_url": "https://abc123.t.example.com",
        "connected_since": "2025-06-01T12:00:00Z",
        "request_count": 42,
        "client_addr": "192.0.2.10:54321",
    }
    assert [tunnel["public_url"] for tunnel in shown[1:]] == [
        "http://def.t.example.com:8080",
        "tcp://t.example.com:20001",
    ]
    assert shown[2]["protocol"] == "tcp"
    assert shown[2]["label"] == "20001"
    for tunnel in (http, plain, tcp):
        one = await value_of(await call(bench, "GET", f"/api/tunnels/{tunnel.id}"))
        assert one in shown
        assert await value_of(await call(bench, "GET", f"/api/tunnels/{tunnel.id.upper()}")) == one


async def test_closing_a_tunnel(bench: ApiBench) -> None:
    tunnel = bench.http("a", the_admin(bench))
    response = await call(bench, "DELETE", f"/api/tunnels/{tunnel.id}")
    assert response.status_code == 204
    assert await response.get_data() == b""
    assert bench.registry.get(tunnel.id) is None
    again = await call(bench, "DELETE", f"/api/tunnels/{tunnel.id}")
    assert (again.status_code, await error_of(again)) == (404, "invalid tunnel id")


async def test_a_held_tunnel_is_not_there(bench: ApiBench) -> None:
    tunnel = bench.http("a", the_admin(bench))
    bench.registry.hold(tunnel, tunnel.links._serving[0], 60)
    assert await value_of(await call(bench, "GET", "/api/tunnels")) == []
    assert (await call(bench, "GET", f"/api/tunnels/{tunnel.id}")).status_code == 404
    assert (await call(bench, "DELETE", f"/api/tunnels/{tunnel.id}")).status_code == 404


async def test_tokens_in_the_seeds_shape(bench: ApiBench) -> None:
    assert await value_of(await call(bench, "GET", "/api/tokens")) == []
    created = await value_of(
        await call(bench, "POST", "/api/tokens", json={"label": "ci-deploy", "scope": "api-*, tcp:20000-20010"}), 201
    )
    assert list(created) == ["id", "label", "token"]
    assert created["label"] == "ci-deploy"
    assert uuid.UUID(created["token"]).version == 4
    assert await value_of(await call(bench, "GET", "/api/tunnels", created["token"])) == []
    (shown,) = await value_of(await call(bench, "GET", "/api/tokens"))
    stamp = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
    assert stamp.fullmatch(shown.pop("created_at"))
    assert stamp.fullmatch(shown.pop("last_used_at"))
    assert re.fullmatch("[0-9a-f]{64}", shown.pop("token_hash"))
    assert shown == {
        "id": created["id"],
        "label": "ci-deploy",
        "scope": "api-*, tcp:20000-20010",
        "tunnel_count": 0,
    }
    gone = await call(bench, "DELETE", f"/api/tokens/{created['id']}")
    assert gone.status_code == 204
    again = await call(bench, "DELETE", f"/api/tokens/{created['id']}")
    assert (again.status_code, await error_of(again)) == (404, "token not found")
    assert (await call(bench, "GET", "/api/tunnels", created["token"])).status_code == 401


async def test_an_unused_token_was_never_used(bench: ApiBench) -> None:
    await value_of(await call(bench, "POST", "/api/tokens", json={"label": "x", "scope": None}), 201)
    (shown,) = await value_of(await call(bench, "GET", "/api/tokens"))
    assert (shown["last_used_at"], shown["scope"]) == (None, None)


def log_entry(number: int, owner: str, protocol: str = "http") -> LogEntry:
    return LogEntry(
        id=f"{number:08d}-0000-4000-8000-000000000000",
        tunnel_id=UNKNOWN,
        owner=owner,
        protocol=protocol,
        label="abc123.t.example.com",
        session_id=UNKNOWN,
        token_id=None,
        token_label=None,
        registered_at=NOW,
    )


async def test_history_in_the_seeds_shape(bench: ApiBench) -> None:
    log = bench.store.tunnel_log
    log.opened(replace(log_entry(1, "u1"), token_id=UNKNOWN, token_label="ci-deploy"))
    log.opened(log_entry(2, "u1", "tcp"))
    log.closed(log_entry(1, "u1").id, NOW + timedelta(minutes=45))
    shown = await value_of(await call(bench, "GET", "/api/history"))
    assert list(shown) == ["total", "entries"]
    assert shown["total"] == 2
    assert shown["entries"][1] == {
        "id": "00000001-0000-4000-8000-000000000000",
        "tunnel_id": UNKNOWN,
        "protocol": "http",
        "label": "abc123.t.example.com",
        "session_id": UNKNOWN,
        "token_id": UNKNOWN,
        "token_label": "ci-deploy",
        "registered_at": "2025-06-01T12:00:00Z",
        "unregistered_at": "2025-06-01T12:45:00Z",
    }
    assert shown["entries"][0]["unregistered_at"] is None
    assert shown["entries"][0]["token_id"] is None


async def test_history_by_page_and_protocol(bench: ApiBench) -> None:
    for number in range(60):
        bench.store.tunnel_log.opened(log_entry(number, "u1", ("http", "tcp")[number % 2]))

    async def numbers(query: str) -> tuple[int, list[int]]:
        shown = await value_of(await call(bench, "GET", f"/api/history{query}"))
        return shown["total"], [int(entry["id"][:8]) for entry in shown["entries"]]

    assert await numbers("") == (60, list(range(59, 9, -1)))
    assert await numbers("?limit=2&offset=3") == (60, [56, 55])
    assert await numbers("?protocol=http&limit=3&offset=1") == (30, [56, 54, 52])
    assert await numbers("?limit=1000000000&protocol=tcp") == (30, list(range(59, 0, -2)))
    assert await numbers("?offset=9007199254740992") == (60, [])


# who may


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_A01_every_route_wants_a_live_token(bench: ApiBench, method: str, path: str) -> None:
    expired, _ = await bench.token("expired", Role.ADMIN, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    deleted, caller = await bench.token("deleted", Role.ADMIN)
    await bench.accounts.delete_token(str(caller.token_id))
    missing = await call(bench, method, path, None)
    in_the_query = await call(bench, method, f"{path}?token={ADMIN_TOKEN}&access_token={ADMIN_TOKEN}", None)
    for response in (missing, in_the_query):
        assert (response.status_code, await error_of(response)) == (401, "missing token")
        assert response.headers["WWW-Authenticate"] == "Bearer"
    for token in ("wrong", expired, deleted, ""):
        response = await call(bench, method, path, token)
        assert (response.status_code, await error_of(response)) == (401, "invalid token")
        assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("value", ["Basic YTpi", ADMIN_TOKEN, f"Bearer{ADMIN_TOKEN}", "Bearer", f"Token {ADMIN_TOKEN}"])
async def test_A01_other_schemes_are_no_token(bench: ApiBench, value: str) -> None:
    response = await call(bench, "GET", "/api/tunnels", None, headers={"Authorization": value})
    assert (response.status_code, await error_of(response)) == (401, "invalid token")


async def test_the_word_bearer_in_any_case(bench: ApiBench) -> None:
    for word in ("bearer", "BEARER"):
        response = await call(bench, "GET", "/api/tunnels", None, headers={"Authorization": f"{word} {ADMIN_TOKEN}"})
        assert response.status_code == 200


async def test_A01_tokens_are_for_admins(bench: ApiBench) -> None:
    agent, _ = await bench.token("agent")
    reader, _ = await bench.token("reader", Role.READ)
    admin, admin_caller = await bench.token("admin", Role.ADMIN)
    for method, path in [route for route in ROUTES if "/tokens" in route[1]]:
        for token in (agent, reader):
            response = await call(bench, method, path, token)
            assert (response.status_code, await error_of(response)) == (403, "admin only")
    assert len(await value_of(await call(bench, "GET", "/api/tokens", admin))) == 3
    # an admin's own token may delete itself, and is dead at once
    assert (await call(bench, "DELETE", f"/api/tokens/{admin_caller.token_id}", admin)).status_code == 204
    assert (await call(bench, "GET", "/api/tokens", admin)).status_code == 401


async def test_an_expiry_is_shown_in_utc(bench: ApiBench) -> None:
    for text in ("2027-01-01T00:00:00+05:00", "0001-01-01T00:00:00Z"):
        await value_of(await call(bench, "POST", "/api/tokens", json={"label": "x", "expires_at": text}), 201)
    details = await value_of(await call(bench, "GET", "/api/tokens?details=true"))
    assert [token["expires_at"] for token in details] == ["2026-12-31T19:00:00Z", "0001-01-01T00:00:00Z"]
    body = {"label": "x", "expires_at": "9999-12-31T23:59:59-23:59"}
    response = await call(bench, "POST", "/api/tokens", json=body)
    assert (response.status_code, "expires_at" in await error_of(response)) == (400, True)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=9007199254740993", "limit: a whole number from 1 to 9007199254740992"),
        ("limit=" + "9" * 60, "limit: a whole number from 1 to 9007199254740992"),
        ("limit=0", "limit: a whole number from 1 to 9007199254740992"),
        ("offset=9007199254740993", "offset: a whole number from 0 to 9007199254740992"),
    ],
)
async def test_A08_what_is_wrong_with_a_number_is_said(bench: ApiBench, query: str, message: str) -> None:
    response = await call(bench, "GET", f"/api/history?{query}")
    assert (response.status_code, await error_of(response)) == (400, message)


async def test_a_token_that_reads_for_another(bench: ApiBench) -> None:
    own_token, own = await bench.token("own")
    mine, theirs = bench.http("a", own), bench.http("b", (await bench.token("other"))[1])
    body = {"label": "reader", "role": "read", "reads": (own.token_id or "").upper()}
    made = await value_of(await call(bench, "POST", "/api/tokens", json=body), 201)
    details = await value_of(await call(bench, "GET", "/api/tokens?details=true"))
    assert [token["reads"] for token in details] == [None, None, own.token_id]
    assert "reads" not in (await value_of(await call(bench, "GET", "/api/tokens")))[2]
    tunnels = await value_of(await call(bench, "GET", "/api/tunnels", made["token"]))
    assert [tunnel["tunnel_id"] for tunnel in tunnels] == [mine.id]
    assert (await call(bench, "GET", f"/api/tunnels/{theirs.id}", made["token"])).status_code == 404
    assert (await call(bench, "DELETE", f"/api/tunnels/{mine.id}", made["token"])).status_code == 403
    assert (await call(bench, "GET", "/api/tokens", made["token"])).status_code == 403
    assert (await call(bench, "POST", "/api/tokens", own_token, json=body)).status_code == 403


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        ({"role": "agent"}, 400, "reads: goes with the role read"),
        ({}, 400, "reads: goes with the role read"),
        ({"role": "read", "reads": "00000000-0000-4000-8000-000000000000"}, 404, "reads: no such token"),
        ({"role": "read", "reads": "Admin"}, 422, "reads: a text in the form ^("),
        ({"role": "read", "reads": "' OR 1=1"}, 422, "|admin)$ or null"),
        ({"role": "read", "reads": ["admin"]}, 422, " or null, not a list"),
    ],
)
async def test_a_token_that_can_read_for_nobody(
    bench: ApiBench, more: dict[str, object], status: int, message: str
) -> None:
    response = await call(bench, "POST", "/api/tokens", json={"label": "x", "reads": "admin"} | more)
    assert response.status_code == status
    assert message in await error_of(response)
    assert await value_of(await call(bench, "GET", "/api/tokens")) == []


async def test_A02_what_belongs_to_others_is_not_there(bench: ApiBench) -> None:
    own_token, own = await bench.token("own")
    other_token, other = await bench.token("other")
    reader_token, reader = await bench.token("reader", Role.READ)
    mine, theirs, read = bench.http("a", own), bench.http("b", other), bench.http("c", reader)
    for number, owner in enumerate((own.owner, other.owner, the_admin(bench).owner)):
        bench.store.tunnel_log.opened(log_entry(number, owner))

    async def seen(token: str) -> list[str]:
        return [tunnel["tunnel_id"] for tunnel in await value_of(await call(bench, "GET", "/api/tunnels", token))]

    assert await seen(own_token) == [mine.id]
    assert await seen(reader_token) == [read.id]
    assert await seen(ADMIN_TOKEN) == [mine.id, theirs.id, read.id]
    response = await call(bench, "GET", f"/api/tunnels/{theirs.id}", own_token)
    assert (response.status_code, await error_of(response)) == (404, "tunnel not found")
    response = await call(bench, "DELETE", f"/api/tunnels/{theirs.id}", own_token)
    assert (response.status_code, await error_of(response)) == (404, "invalid tunnel id")
    response = await call(bench, "DELETE", f"/api/tunnels/{read.id}", reader_token)
    assert (response.status_code, await error_of(response)) == (403, "this token may only read")
    assert (await value_of(await call(bench, "GET", "/api/history", own_token)))["total"] == 1
    assert (await value_of(await call(bench, "GET", "/api/history")))["total"] == 3
    assert (await call(bench, "DELETE", f"/api/tunnels/{mine.id}", own_token)).status_code == 204
    assert (await call(bench, "DELETE", f"/api/tunnels/{theirs.id}")).status_code == 204
    assert await seen(other_token) == []


STRANGE_IDS = [
    "'",
    "%22%20OR%201=1",
    "%2e%2e%2f",
    "..",
    "%00",
    "x" * 10_000,
    "0",
    "-1",
    "%D9%A1",
    UNKNOWN,
    UNKNOWN + "%0a",
    "{" + UNKNOWN + "}",
    UNKNOWN.replace("-", ""),
]


@pytest.mark.parametrize("strange", STRANGE_IDS)
async def test_A02_strange_ids_find_nothing(bench: ApiBench, strange: str) -> None:
    expected = {
        ("GET", "tunnels"): "tunnel not found",
        ("DELETE", "tunnels"): "invalid tunnel id",
        ("DELETE", "tokens"): "token not found",
    }
    for (method, kind), text in expected.items():
        response = await call(bench, method, f"/api/{kind}/{strange}")
        assert response.status_code == 404
        assert await error_of(response) in (text, "not found")


# bodies and parameters


KEYS = "label, scope, role, reads, expires_at, max_tunnels, protocols"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"label": 1}, "label: a text, not 1"),
        ({"label": True}, "label: a text, not true"),
        ({"label": None}, "label: a text, not null"),
        ({"label": ["x"]}, "label: a text, not a list"),
        ({"label": {"x": 1}}, "label: a text, not an object"),
        ({}, "label: is missing"),
        ({"scope": "x"}, "label: is missing"),
        ({"label": "x", "scope": 5}, "scope: a text or null, not 5"),
        ({"label": "x", "scope": ["a"]}, "scope: a text or null, not a list"),
        ({"label": 2**63}, "label: a text, not 9223372036854775808"),
        ({"label": "x", "role": "root"}, "role: one of admin, agent, read"),
        ({"label": "x", "max_tunnels": "5"}, "max_tunnels: a whole number or null, not a text"),
        ({"label": "x", "max_tunnels": 1.5}, "max_tunnels: a whole number or null, not 1.5"),
        ({"label": "x", "protocols": []}, "protocols: a list of 1 to 2 entries or null"),
        ({"label": "x", "protocols": ["http", "udp"]}, "protocols[1]: http or tcp"),
        ({"label": "x", "expires_at": "soon"}, "expires_at: a time such as 2025-06-01T12:00:00Z or null"),
        (
            {"label": "x", "expires_at": "2027-01-01T00:00:00"},
            "expires_at: a time such as 2025-06-01T12:00:00Z or null",
        ),
        ({"label": "x", "owner": "admin"}, f"owner: no such key; allowed: {KEYS}"),
        ([], "the body: an object, not a list"),
        ("x", "the body: an object, not a text"),
        (None, "the body: an object, not null"),
    ],
)
async def test_A03_a_body_that_does_not_fit_is_told_key_and_what_is_allowed(
    bench: ApiBench, body: object, said: str
) -> None:
    sent = json.dumps(body).encode()
    response = await call(bench, "POST", "/api/tokens", data=sent, headers={"Content-Type": "application/json"})
    assert (response.status_code, await error_of(response)) == (422, said)
    assert bench.accounts.list_tokens() == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"label=x",
        b'{"label": "x"} {}',
        b'{"label": "a", "label": "b"}',
        b'{"label": 1e400}',
        b'{"label": NaN}',
        b'{"label": "\xff"}',
        b'{"label": "\\ud800"}',
        b'\xef\xbb\xbf{"label": "x"}',
        '{"label": "x"}'.encode("utf-16"),
        b"[" * 60_000,
    ],
)
async def test_A03_A04_what_is_no_json(bench: ApiBench, body: bytes) -> None:
    response = await call(
        bench, "POST", "/api/tokens", data=body, headers={"Content-Type": "application/json; charset=utf-8"}
    )
    assert response.status_code == 400
    assert "JSON" in await error_of(response)
    assert bench.accounts.list_tokens() == []


async def test_A04_bodies_that_are_too_long(bench: ApiBench) -> None:
    body = b'{"label": "' + b"x" * 65_536 + b'"}'
    response = await call(bench, "POST", "/api/tokens", data=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, await error_of(response)) == (413, "the body is too long")
    many_keys = json.dumps({str(number): 0 for number in range(5000)}).encode()
    response = await call(bench, "POST", "/api/tokens", data=many_keys, headers={"Content-Type": "application/json"})
    assert response.status_code == 422


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/json; charset=utf-7"},
        {"Content-Type": "application/jsonp"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
async def test_A05_other_media_types(bench: ApiBench, headers: dict[str, str]) -> None:
    response = await call(bench, "POST", "/api/tokens", data=b'{"label": "x"}', headers=headers)
    assert response.status_code == 415
    assert "body must" in await error_of(response)


@pytest.mark.parametrize("extra", ["is_admin", "roles", "owner", "id", "token", "x" * 5000, "\u202e"])
async def test_A06_fields_that_nobody_asked_for(bench: ApiBench, extra: str) -> None:
    response = await call(bench, "POST", "/api/tokens", json={"label": "x", extra: "admin"})
    assert response.status_code == 422
    message = await error_of(response)
    assert message == f"{extra[:64]}: no such key; allowed: {KEYS}"
    assert bench.accounts.list_tokens() == []


@pytest.mark.parametrize("body", [{"label": ""}, {"label": "x" * 201}, {"label": "x", "scope": ""}])
async def test_values_that_cannot_be_used(bench: ApiBench, body: dict[str, str]) -> None:
    response = await call(bench, "POST", "/api/tokens", json=body)
    assert response.status_code == 400
    assert re.match("label:|scope:", await error_of(response))


@pytest.mark.parametrize("label", ["\u202ecod.exe", "\x1b[2J", "a\r\nSet-Cookie: x=1", "<script>", "\x00", "💥"])
async def test_A09_labels_come_back_as_text(bench: ApiBench, label: str) -> None:
    created = await value_of(await call(bench, "POST", "/api/tokens", json={"label": label}), 201)
    assert created["label"] == label
    assert (await value_of(await call(bench, "GET", "/api/tokens")))[0]["label"] == label


async def test_A10_there_is_an_end_to_tokens(bench: ApiBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts_module, "TOKENS_MAX", 1)
    await value_of(await call(bench, "POST", "/api/tokens", json={"label": "x"}), 201)
    response = await call(bench, "POST", "/api/tokens", json={"label": "y"})
    assert response.status_code == 409
    assert "delete some first" in await error_of(response)


@pytest.mark.parametrize(
    "query",
    [
        "limit=-1",
        "limit=0",
        "limit=x",
        "limit=",
        "limit=1e9",
        "limit=%D9%A1",
        "limit=1.5",
        "limit=+1",
        "limit=1&limit=2",
        "limit=" + "9" * 30,
        "offset=-1",
        "offset=x",
        "offset=9007199254740993",
        "offset=" + "9" * 5000,
        "protocol=udp",
        "protocol=HTTP",
        "protocol=",
        "protocol=http&protocol=tcp",
        "protocol='--",
    ],
)
async def test_A08_parameters_are_strict(bench: ApiBench, query: str) -> None:
    response = await call(bench, "GET", f"/api/history?{query}")
    assert response.status_code == 400
    assert (await error_of(response)).startswith(query.partition("=")[0])


# methods and paths


@pytest.mark.parametrize("token", [None, "wrong", ADMIN_TOKEN])
@pytest.mark.parametrize(
    "path",
    ["/", "/api", "/api/", "/api/nothing", "/api/status/", "/api//status", "/api/tunnels/a/b", "/x%00"],
)
async def test_unknown_routes_are_404(bench: ApiBench, path: str, token: str | None) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        response = await call(bench, method, path, token)
        assert (response.status_code, await error_of(response)) == (404, "not found")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/status", "GET, HEAD"),
        ("/api/tunnels", "GET, HEAD"),
        (f"/api/tunnels/{UNKNOWN}", "DELETE, GET, HEAD"),
        ("/api/tokens", "GET, HEAD, POST"),
        (f"/api/tokens/{UNKNOWN}", "DELETE"),
        ("/api/history", "GET, HEAD"),
        ("/api/health/live", "GET, HEAD"),
    ],
)
async def test_A07_other_methods_are_405(bench: ApiBench, path: str, allowed: str) -> None:
    for method in ("PUT", "PATCH", "TRACE", "OPTIONS", "CONNECT", "PROPFIND", "FOO"):
        response = await call(bench, method, path)
        assert (response.status_code, await error_of(response)) == (405, "method not allowed")
        assert response.headers["Allow"] == allowed


async def test_A07_headers_do_not_override_the_method(bench: ApiBench) -> None:
    tunnel = bench.http("a", the_admin(bench))
    headers = {"X-HTTP-Method-Override": "DELETE", "X-Method-Override": "DELETE", "X-HTTP-Method": "DELETE"}
    assert (await call(bench, "GET", f"/api/tunnels/{tunnel.id}", headers=headers)).status_code == 200
    assert (await call(bench, "POST", f"/api/tunnels/{tunnel.id}", headers=headers)).status_code == 405
    assert bench.registry.get(tunnel.id) is tunnel


async def test_A07_head_works_wherever_get_does(bench: ApiBench) -> None:
    tunnel = bench.http("a", the_admin(bench))
    paths = ["/api/status", "/api/tunnels", f"/api/tunnels/{tunnel.id}", "/api/tokens", "/api/history"]
    for path in [*paths, "/api/health/live", "/api/health/ready"]:
        got = await call(bench, "GET", path)
        response = await call(bench, "HEAD", path)
        assert response.status_code == 200
        assert response.headers["Content-Length"] == got.headers["Content-Length"]


# other origins


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://app.t.example.com"])
async def test_A12_no_origin_is_granted_anything(bench: ApiBench, origin: str) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    for method in ("GET", "OPTIONS", "POST"):
        for token in (None, ADMIN_TOKEN):
            await call(bench, method, "/api/tunnels", token, headers=headers)  # `call` looks for the headers


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_A13_a_page_of_another_site(bench: ApiBench, site: str) -> None:
    headers = {"Sec-Fetch-Site": site, "Content-Type": "text/plain"}
    for method, path in ROUTES:
        response = await call(bench, method, path, None, headers=headers)
        assert (response.status_code, await error_of(response)) == (403, "requests of other web sites are refused")
    response = await call(bench, "POST", "/api/tokens", data=b'{"label": "x"}', headers=headers)
    assert response.status_code == 415  # not even with a token


FOREIGN = ["evil.example", "evil.example:4041", "app.t.example.com", "localhost.evil.example", ""]
OURS = [
    "localhost",
    "localhost:4041",
    "LOCALHOST.:4041",
    "127.0.0.1:4041",
    "192.0.2.1",
    "[::1]:4041",
    "[2001:db8::1]",
    "t.example.com:8443",
    "dash.example.com",
]


@pytest.mark.parametrize("host", FOREIGN)
async def test_A14_a_foreign_host_name_without_a_token(bench: ApiBench, host: str) -> None:
    response = await call(bench, "GET", "/api/tunnels", None, headers={"Host": host})
    assert response.status_code == 421
    assert "server.dashboard_origin" in await error_of(response)
    assert (await call(bench, "GET", "/api/tunnels", headers={"Host": host})).status_code == 200
    for path in ("/api/status", "/api/health/live", "/api/health/ready"):
        assert (await call(bench, "GET", path, None, headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("host", OURS)
async def test_A14_our_own_host_names(bench: ApiBench, host: str) -> None:
    assert (await call(bench, "GET", "/api/tunnels", None, headers={"Host": host})).status_code == 401


# trouble


async def test_A11_a_token_is_shown_once(bench: ApiBench, capsys: pytest.CaptureFixture[str]) -> None:
    created = await value_of(await call(bench, "POST", "/api/tokens", json={"label": "x"}), 201)
    raw = created["token"]
    for method, path in [*ROUTES, ("GET", "/api/status"), ("GET", "/nothing")]:
        for token in (raw, ADMIN_TOKEN):
            response = await call(bench, method, path, token)
            assert raw not in await response.get_data(as_text=True) + str(response.headers)
    shown = capsys.readouterr()
    assert raw not in shown.out + shown.err
    assert ADMIN_TOKEN not in shown.out + shown.err


async def test_A24_an_exception_tells_nothing_but_an_id(
    bench: ApiBench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(_: Caller) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(bench.registry, "visible_to", crash)
    response = await call(bench, "GET", "/api/tunnels")
    body = await value_of(response, 500)
    assert body["error"] == "internal server error"
    assert re.fullmatch("[0-9a-f]{16}", body["id"])
    assert "secret" not in str(body)
    logged = capsys.readouterr().out
    assert body["id"] in logged
    assert "a secret detail" in logged


async def test_D01_a_store_that_cannot_write(bench: ApiBench, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "rustunnel.db", isolation_level=None)
    other.execute("CREATE TRIGGER stop BEFORE INSERT ON tokens BEGIN SELECT raise(ABORT, 'disk I/O error'); END")
    response = await call(bench, "POST", "/api/tokens", json={"label": "x"})
    assert response.status_code == 503
    assert "try again later" in await error_of(response)
    assert await value_of(await call(bench, "GET", "/api/tokens")) == []
    other.execute("DROP TRIGGER stop")
    other.close()
    await value_of(await call(bench, "POST", "/api/tokens", json={"label": "x"}), 201)


async def test_health(bench: ApiBench) -> None:
    assert await value_of(await call(bench, "GET", "/api/health/live", None)) == {"ok": True}
    assert await value_of(await call(bench, "GET", "/api/health/ready", None)) == {"ok": True}
    bench.stopping.set()
    assert await value_of(await call(bench, "GET", "/api/health/live", None)) == {"ok": True}
    assert await value_of(await call(bench, "GET", "/api/health/ready", None), 503) == {"ok": False}
