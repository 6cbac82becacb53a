"""Who may call what at `/v1`: every route of it, with every kind of credential. A route without a row fails."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from rustunnel_py.hub.logins import challenge_of
from rustunnel_py.model.access import Role, Secret
from rustunnel_py.wire import agent_token
from tests.support.api import ADMIN_TOKEN, PEER
from tests.support.leased import DOMAIN, LeasedHouse, leased_house
from tests.support.rs_tunnel_contract import QUIET_METRICS

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

UNKNOWN = "00000000-0000-4000-8000-000000000000"
VERIFIER = "v" * 43
USERS = ("other", "read", "agent", "access", "admin")
MACHINES = ("run", "other run", "over run")
NOBODY = ("none", "wrong", "expired", "revoked", "logged out", "refresh", "agent secret")
"""What opens nothing here: the last two are good credentials in another place."""


class Row(NamedTuple):
    """The status by who calls, about a tunnel that belongs to `agent`; `access` is a login of the same user, `read` a
    token of that user that may only read. The run tokens are of this tunnel, of another one of the same user, and of
    one that has ended.
    """

    nobody: int
    other: int
    read: int
    agent: int
    admin: int
    run: int
    other_run: int
    body: dict[str, object] | None = None
    query: str = ""

    def status(self, caller: str) -> int:
        if caller in NOBODY:
            return self.nobody
        match caller:
            case "access":
                return self.agent
            case "over run":
                return self.other_run
            case _:
                found: int = getattr(self, caller.replace(" ", "_"))
                return found


def everyone(status: int, **more: Any) -> Row:
    return Row(status, status, status, status, status, status, status, **more)


def own(status: int, *, read: int = 200, **more: Any) -> Row:
    """For every user, of what is theirs; the admin token is one more user."""
    return Row(401, status, read, status, status, 401, 401, **more)


def seen(**more: Any) -> Row:
    """For the user whose tunnel it is."""
    return Row(401, 404, 200, 200, 404, 401, 401, **more)


def machine(**more: Any) -> Row:
    """For the tunnel's run token, and for its user."""
    return Row(401, 404, 403, 200, 404, 200, 403, **more)


QUIET: dict[str, object] = {
    "metrics": QUIET_METRICS,
    "requests": [],
}
START: dict[str, object] = {"email": "dev@example.com", "codeChallenge": challenge_of(VERIFIER)}
TABLE = {
    "GET /healthz": everyone(200),
    "GET /v1/openapi.json": everyone(200),
    "GET /v1/tunnels": own(200),
    "POST /v1/tunnels": own(200, read=403, body={"port": 3000}),
    "DELETE /v1/tunnels/<id_or_host>": Row(401, 404, 403, 200, 404, 401, 401),
    "POST /v1/tunnels/<id_or_host>/heartbeat": machine(),
    "POST /v1/tunnels//heartbeat": Row(401, 400, 400, 400, 400, 400, 400),
    "POST /v1/tunnels/<id_or_host>/telemetry": machine(body=QUIET),
    "GET /v1/tunnels/telemetry": own(200),
    "GET /v1/tunnels/<id_or_host>/metrics": seen(query="?from=2026&to=2027"),
    "GET /v1/tunnels/<id_or_host>/requests": seen(),
    "POST /v1/auth/logout": own(200),
    # These ask for no token, and take none into account.
    "POST /v1/auth/slack/start": everyone(200, body=START),
    "POST /v1/auth/slack/status": everyone(400, body={"state": "no such state"}),
    "POST /v1/auth/exchange": everyone(400, body={"loginCode": "no such code", "codeVerifier": VERIFIER}),
    "POST /v1/auth/refresh": everyone(401, body={"refreshToken": "no such token"}),
    "GET /v1/auth/slack/callback": everyone(400),
    "GET /v1/auth/approve": everyone(400),
    "POST /v1/auth/approve": everyone(415),  # no form; forms of others: test_rs_tunnel_login
}


def routes_of(house: LeasedHouse) -> set[str]:
    return {
        f"{method} {rule.rule.replace('<tunnel_name:', '<')}"
        for rule in house.app.url_map.iter_rules()
        if rule.endpoint.startswith("rs_tunnel.") or rule.rule.startswith("/v1")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


async def test_every_route_has_a_row(tmp_path: Path, mock_clock: MockClock) -> None:
    async with leased_house(tmp_path) as house:
        assert routes_of(house) == set(TABLE)


@dataclass
class Things:
    house: LeasedHouse
    tokens: dict[str, str | None]
    tunnel_id: str


async def pair_of(house: LeasedHouse, token: str) -> tuple[str, str]:
    """Access and refresh token of a login that this API token approved."""
    flow = house.logins.start("dev@example.com", challenge_of(VERIFIER), None, PEER)
    await house.logins.approve(flow.state, Secret(token), PEER)
    pair = await house.logins.exchange(house.logins.code_of(flow), VERIFIER, PEER)
    return pair.access.reveal(), pair.refresh.reveal()


async def make_things(house: LeasedHouse) -> Things:
    agent, caller = await house.token("agent")
    other, _ = await house.token("other")
    reader, reading = await house.token("read", Role.READ)
    known = house.store.tokens.get(reading.token_id or "")
    assert known is not None
    house.store.tokens._keep(replace(known, owner=caller.owner))  # no route gives two tokens to one user
    expired, _ = await house.token("expired", expires_at=house.now() + timedelta(seconds=1))
    house.clock.jump(1)
    revoked, gone = await house.token("revoked")
    await house.accounts.delete_token(gone.token_id or "")
    access, refresh = await pair_of(house, agent)
    logged_out, its_refresh = await pair_of(house, agent)
    await house.logins.log_out(caller, Secret(its_refresh), PEER)
    made, second, third = [await house.created(label, agent) for label in ("app", "second", "third")]
    await house.leases.stop(caller, third["tunnelId"])
    return Things(
        house,
        {
            "none": None,
            "wrong": UNKNOWN,
            "expired": expired,
            "revoked": revoked,
            "logged out": logged_out,
            "refresh": refresh,
            "agent secret": agent_token.decode(made["cloudflaredToken"]).secret,
            "other": other,
            "read": reader,
            "agent": agent,
            "access": access,
            "admin": ADMIN_TOKEN,
            "run": made["tunnelRunToken"],
            "other run": second["tunnelRunToken"],
            "over run": third["tunnelRunToken"],
        },
        made["tunnelId"],
    )


@pytest.mark.parametrize("key", sorted(TABLE))
async def test_A01_every_route_of_v1_with_every_credential(tmp_path: Path, mock_clock: MockClock, key: str) -> None:
    row = TABLE[key]
    callers = (*NOBODY, *USERS, *MACHINES)
    changes = [caller for caller in callers if row.status(caller) < 400 and not key.startswith("GET ")]
    async with leased_house(folder(tmp_path, "shared")) as house:
        things = await make_things(house)
        for caller in callers:
            if caller not in changes:
                await ask(things, key, caller)
    for caller in changes:  # each finds everything as it was
        async with leased_house(folder(tmp_path, caller)) as house:
            await ask(await make_things(house), key, caller)


def folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made


async def ask(things: Things, key: str, caller: str) -> None:
    row, house = TABLE[key], things.house
    method, _, path = key.partition(" ")
    path = path.replace("<id_or_host>", things.tunnel_id) + row.query
    answer = await house.call(method, path, things.tokens[caller], json=row.body)
    assert answer.status == row.status(caller), (caller, answer.text)
    if answer.status == 401 and row.agent != 401:
        reason = "MISSING_AUTH" if caller == "none" else "INVALID_TOKEN"
        assert (answer.code, answer.json["details"]) == ("UNAUTHORIZED", {"reason": reason})
    if answer.status >= 400:
        nothing_happened(house, things)


def nothing_happened(house: LeasedHouse, things: Things) -> None:
    """A refusal leaves everything as it was."""
    agent = house.registry.get(things.tunnel_id)
    assert agent is not None
    shown = house.leases.alive_of(agent.owner)
    assert sorted(one.hostname for one in shown) == [f"app.{DOMAIN}", f"second.{DOMAIN}"]
    assert all(one.lease is not None and one.lease.heartbeat_at == one.created_at for one in shown)
    assert house.telemetry.live(one.id for one in shown) == []
    assert house.logins.find(Secret(things.tokens["access"] or "")) is not None
