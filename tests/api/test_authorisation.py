"""Who may call what: every route of the app, with every kind of token. A route without a row here fails."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import pytest

from rustunnel_py.model.access import Role, Secret
from tests.support.api import ADMIN_TOKEN, PEER, ApiBench, api_bench

if TYPE_CHECKING:
    from pathlib import Path

    from quart import Quart

UNKNOWN = "00000000-0000-4000-8000-000000000000"
WORTHLESS = ("wrong", "expired", "revoked")
CALLERS = ("none", "wrong", "expired", "revoked", "other", "read", "agent", "admin")


class Row(NamedTuple):
    """The status for each kind of caller of a thing that belongs to `agent`, and that `read` may see."""

    none: int
    other: int
    read: int
    agent: int
    admin: int
    body: dict[str, object] | None = None
    query: str = ""
    wrong: int = 401  # a token that is none, expired or revoked


def seen(status: int, **more: object) -> Row:
    """For whoever may see the thing."""
    return Row(401, 404, status, status, status, **more)  # type: ignore[arg-type]


def changed(status: int, **more: object) -> Row:
    """For whoever may see and change it."""
    return Row(401, 404, 403, status, status, **more)  # type: ignore[arg-type]


def own(status: int = 200, **more: object) -> Row:
    """For everyone, of what is theirs."""
    return Row(401, status, status, status, status, **more)  # type: ignore[arg-type]


def admins(status: int, **more: object) -> Row:
    return Row(401, 403, 403, 403, status, **more)  # type: ignore[arg-type]


def everyone(status: int = 200) -> Row:
    return Row(status, status, status, status, status, wrong=status)


HAR: dict[str, object] = {"log": {"entries": []}}
TABLE = {
    "GET /api/status": everyone(),
    "GET /api/health/live": everyone(),
    "GET /api/health/ready": everyone(),
    "GET /api/openapi.json": everyone(),
    "GET /api/docs": everyone(),
    "GET /static/<name>": everyone(404),
    "GET /metrics": admins(200),  # from elsewhere; from the machine itself see test_observe
    "GET /api/tunnels": own(),
    "GET /api/tunnels/<tunnel_id>": seen(200),
    "DELETE /api/tunnels/<tunnel_id>": changed(204),
    "PUT /api/tunnels/<tunnel_id>/redaction": changed(204, body={"tier": "strict"}),
    "GET /api/history": own(),
    "GET /api/audit": admins(200),
    "GET /api/tokens": admins(200),
    "POST /api/tokens": admins(201, body={"label": "x"}),
    "DELETE /api/tokens/<token_id>": admins(204),
    "GET /api/tunnels/<tunnel_id>/requests": seen(200),
    "GET /api/tunnels/<tunnel_id>/requests/open": seen(200),
    "GET /api/tunnels/<tunnel_id>/requests/search": seen(200),
    "GET /api/tunnels/<tunnel_id>/requests/diff": seen(200, query="old={request_id}&new={request_id}"),
    "GET /api/tunnels/<tunnel_id>/requests/export": seen(200),
    "POST /api/tunnels/<tunnel_id>/requests/import": changed(201, body=HAR),
    "GET /api/tunnels/<tunnel_id>/requests/live": seen(0),  # a stream; see test_live
    "GET /api/tunnels/<tunnel_id>/requests/<request_id>": seen(200),
    "DELETE /api/tunnels/<tunnel_id>/requests/<request_id>": changed(204),
    "GET /api/tunnels/<tunnel_id>/requests/<request_id>/request-body": seen(200),
    "GET /api/tunnels/<tunnel_id>/requests/<request_id>/response-body": seen(200),
    "GET /api/tunnels/<tunnel_id>/requests/<request_id>/curl": seen(200),
    "PUT /api/tunnels/<tunnel_id>/requests/<request_id>/pin": changed(204),
    "DELETE /api/tunnels/<tunnel_id>/requests/<request_id>/pin": changed(204),
    "POST /api/tunnels/<tunnel_id>/replay/<request_id>": seen(200),
}


def routes_of(app: Quart) -> set[str]:
    return {
        f"{method} {rule.rule.replace('<capture:', '<')}"
        for rule in app.url_map.iter_rules()
        if not rule.websocket
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


async def test_every_route_has_a_row(tmp_path: Path) -> None:
    async with api_bench(tmp_path) as bench:
        assert routes_of(bench.app) == set(TABLE)


@dataclass
class Things:
    bench: ApiBench
    tokens: dict[str, str | None]
    ids: dict[str, str]


async def make_things(bench: ApiBench) -> Things:
    agent, agent_caller = await bench.token("agent")
    other, _ = await bench.token("other")
    reader, _ = await bench.token("read", Role.READ, reads=agent_caller.token_id)
    expired, _ = await bench.token("expired", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    revoked, revoked_caller = await bench.token("revoked")
    await bench.accounts.delete_token(revoked_caller.token_id or "")
    tunnel = bench.http("app", agent_caller)
    request_id = bench.capture(tunnel)
    await bench.inspector.write()
    victim, _ = await bench.accounts.create_token("victim")
    return Things(
        bench,
        {
            "none": None,
            "wrong": UNKNOWN,
            "expired": expired,
            "revoked": revoked,
            "other": other,
            "read": reader,
            "agent": agent,
            "admin": ADMIN_TOKEN,
        },
        {"tunnel_id": tunnel.id, "request_id": request_id, "token_id": victim.id, "name": "nothing"},
    )


async def ask(things: Things, key: str, caller: str) -> int:
    row = TABLE[key]
    method, _, path = key.partition(" ")
    for name, value in things.ids.items():
        path = path.replace(f"<{name}>", value)
    query = row.query.format(**things.ids)
    headers = {"Host": "localhost:4041", "X-Forwarded-For": "192.0.2.1"}
    token = things.tokens[caller]
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    data = None
    if row.body is not None:
        headers["Content-Type"] = "application/json"
        data = json.dumps(row.body).encode()
    response = await things.bench.app.test_client().open(  # type: ignore[call-arg]
        path + (f"?{query}" if query else ""), method=method, headers=headers, data=data
    )
    return int(response.status_code)


@pytest.mark.parametrize("key", sorted(TABLE))
async def test_A01_every_route_with_every_token(tmp_path: Path, key: str) -> None:
    row = TABLE[key]
    if row.agent == 0:
        pytest.skip("a stream without an end: tests/api/test_live.py")
    expected = {caller: row.wrong if caller in WORTHLESS else getattr(row, caller) for caller in CALLERS}
    got = {}
    async with api_bench(tmp_path / "1") as bench:
        things = await make_things(bench)
        for caller in CALLERS[:-1]:
            got[caller] = await ask(things, key, caller)
            if got[caller] >= 400:
                await nothing_happened(things)
    async with api_bench(tmp_path / "2") as bench:  # what the agent could change is as it was
        got["admin"] = await ask(await make_things(bench), key, "admin")
    assert got == expected


async def nothing_happened(things: Things) -> None:
    """A refusal leaves everything as it was."""
    bench, ids = things.bench, things.ids
    assert bench.registry.get(ids["tunnel_id"]) is not None
    assert bench.store.tokens.get(ids["token_id"]) is not None
    assert len(bench.accounts.list_tokens()) == 5
    admin = await bench.accounts.authenticate(Secret(ADMIN_TOKEN), PEER)
    capture = await bench.inspector.get(admin, ids["tunnel_id"], ids["request_id"])
    assert not capture.pinned
