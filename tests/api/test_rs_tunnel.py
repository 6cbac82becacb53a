"""`/v1`: tunnels and their lives, in the strict shapes that the CLI validates."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from rustunnel_py.errors import BadCredentials, NotFound, StoreError, Unavailable
from rustunnel_py.hub import audit
from rustunnel_py.hub.leases import DRAIN_SECONDS
from rustunnel_py.hub.sessions import Introduction, Wish
from rustunnel_py.model.access import Role, Secret
from rustunnel_py.model.lease import Status
from rustunnel_py.model.tunnel import Peer, Protocol
from rustunnel_py.wire import agent_token
from tests.support.api import ADMIN_TOKEN
from tests.support.leased import DOMAIN, NOON, PIN, LeasedHouse, PlayedAgent, leased_house
from tests.support.rs_tunnel_contract import check_error, check_heartbeat, check_list, check_ok

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio.testing import MockClock

    from rustunnel_py.hub.audit import Event
    from rustunnel_py.hub.leases import WhyEnded
    from rustunnel_py.hub.registry import Tunnel
    from tests.support.leased import Answer

UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
async def house(tmp_path: Path, mock_clock: MockClock) -> AsyncIterator[LeasedHouse]:
    async with leased_house(tmp_path, reserved=("www",)) as house:
        yield house


def stamp(seconds: float) -> str:
    """The instant so many seconds after the house was opened."""
    at = NOON + timedelta(seconds=seconds)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


def wish(label: str) -> Wish:
    return Wish(Protocol.HTTP, label, local_addr="127.0.0.1:41234")


async def listed(house: LeasedHouse, token: str = ADMIN_TOKEN, query: str = "") -> Any:
    answer = await house.call("GET", f"/v1/tunnels{query}", token)
    assert answer.status == 200
    check_list(answer.json)
    return answer.json


async def beat(house: LeasedHouse, made: Any, token: str | None = None) -> Any:
    return await house.call("POST", f"/v1/tunnels/{made['tunnelId']}/heartbeat", token or made["tunnelRunToken"])


# creating


async def test_created_in_six_keys(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created("my-app", port=3000)
    assert made["hostname"] == f"my-app.{DOMAIN}"
    assert (made["heartbeatIntervalSec"], made["leaseTimeoutSec"]) == (20, 60)
    token = agent_token.decode(made["cloudflaredToken"])
    assert (token.server, token.pin, token.tunnel) == (f"{DOMAIN}:4040", PIN, made["tunnelId"])
    assert (token.name, token.port, token.lease) == ("my-app", 3000, 60)
    assert token.secret != made["tunnelRunToken"]


async def test_the_seeds_list_field_by_field(house: LeasedHouse, mock_clock: MockClock) -> None:
    """The example of the list page: an active tunnel with its lease 60.000 s long, and a stopped one."""
    first = await house.created("test-api", port=8080)
    await house.pass_time(2.5)
    assert (await house.call("DELETE", f"/v1/tunnels/{first['tunnelId']}")).status == 200
    second = await house.created("my-app", port=3000)
    await house.pass_time(10.125)
    check_heartbeat((await beat(house, second)).json)
    active = {
        "id": second["tunnelId"],
        "hostname": f"my-app.{DOMAIN}",
        "slug": "my-app",
        "status": "active",
        "requestedPort": 3000,
        "createdAt": stamp(2.5),
        "lease": {"lastHeartbeatAt": stamp(12.625), "expiresAt": stamp(72.625)},
        "stoppedAt": None,
        "lastError": None,
    }
    stopped = {
        "id": first["tunnelId"],
        "hostname": f"test-api.{DOMAIN}",
        "slug": "test-api",
        "status": "stopped",
        "requestedPort": 8080,
        "createdAt": stamp(0),
        "lease": None,
        "stoppedAt": stamp(2.5),
        "lastError": None,
    }
    assert await listed(house) == [active]
    assert await listed(house, query="?includeInactive=true") == [stopped, active]


@pytest.mark.parametrize(
    ("text", "all_of_them"), [("true", 1), ("1", 1), ("false", 0), ("0", 0), ("TRUE", 0), ("x", 0)]
)
async def test_include_inactive(house: LeasedHouse, mock_clock: MockClock, text: str, all_of_them: int) -> None:
    made = await house.created()
    await house.call("DELETE", f"/v1/tunnels/{made['tunnelId']}")
    assert len(await listed(house, query=f"?includeInactive={text}")) == all_of_them


async def test_the_list_has_ones_own_only(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, _ = await house.token()
    await house.created("mine", token)
    await house.created("theirs")
    assert [one["slug"] for one in await listed(house, token)] == ["mine"]
    assert [one["slug"] for one in await listed(house)] == ["theirs"]  # the admin token is a user of its own here


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"port": "3000"}',
        '{"port": 0}',
        '{"port": 65536}',
        '{"port": 1.5}',
        '{"port": true}',
        '{"port": null}',
        '{"port": 3000, "requestedSlug": null}',
        '{"port": 3000, "requestedSlug": 5}',
        '{"port": 3000, "port": 3001}',
    ],
)
async def test_bad_bodies_are_invalid_input(house: LeasedHouse, mock_clock: MockClock, body: str) -> None:
    answer = await house.call("POST", "/v1/tunnels", text=body)
    assert (answer.status, answer.code) == (400, "INVALID_INPUT")
    assert list(answer.json["details"]) == ["formErrors", "fieldErrors"]
    assert await listed(house) == []


async def test_the_field_is_named(house: LeasedHouse, mock_clock: MockClock) -> None:
    answer = await house.call("POST", "/v1/tunnels", json={"port": 70000})
    said = "a whole number from 1 to 65535, not 70000"
    assert answer.json == {  # `message` is all that the CLI shows
        "code": "INVALID_INPUT",
        "message": f"port: {said}",
        "details": {"formErrors": [], "fieldErrors": {"port": [said]}},
    }


async def test_another_media_type(house: LeasedHouse, mock_clock: MockClock) -> None:
    answer = await house.call("POST", "/v1/tunnels", text='{"port":1}', headers={"Content-Type": "text/plain"})
    assert (answer.status, answer.code) == (415, "INVALID_INPUT")


async def test_unknown_keys_of_a_creation_are_ignored(house: LeasedHouse, mock_clock: MockClock) -> None:
    assert (await house.call("POST", "/v1/tunnels", json={"port": 1, "x": 2})).status == 200


@pytest.mark.parametrize("slug", ["a", "a--b", "0", "a" * 32, " padded ", "1-2", "\ufeffbom\u2029"])
async def test_good_slugs(house: LeasedHouse, mock_clock: MockClock, slug: str) -> None:
    label = slug.strip().strip("\ufeff\u2029")
    assert (await house.created(slug))["hostname"] == f"{label}.{DOMAIN}"


@pytest.mark.parametrize(
    "slug", ["A", "a.b", "a" * 33, "a" * 1000, "\x1ca", "ſ", "-a", "a-", "a_b", " ", "ä", "a b", "xn--abc", "a\n", "🚇"]
)
async def test_bad_slugs(house: LeasedHouse, mock_clock: MockClock, slug: str) -> None:
    answer = await house.call("POST", "/v1/tunnels", json={"port": 1, "requestedSlug": slug})
    if slug == "a\n":
        assert answer.status == 200  # surrounding blanks do not count
    else:
        assert (answer.status, answer.code) == (400, "INVALID_SLUG")


async def test_an_empty_slug_is_none_and_names_are_generated(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created("")
    label = made["hostname"].partition(".")[0]
    assert len(label) == 11
    assert label.isalnum()


async def test_reserved_names_are_for_admins(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, _ = await house.token()
    answer = await house.call("POST", "/v1/tunnels", token, json={"port": 1, "requestedSlug": "www"})
    assert (answer.status, answer.code) == (400, "INVALID_SLUG")
    await house.created("www")


async def test_a_scope_holds(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, _ = await house.token(scope="ci-*")
    answer = await house.call("POST", "/v1/tunnels", token, json={"port": 1, "requestedSlug": "other"})
    assert (answer.status, answer.code) == (403, "FORBIDDEN")
    await house.created("ci-1", token)
    assert (await house.created(None, token))["hostname"].startswith("ci-")


async def test_a_name_in_use_is_409_for_everybody(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, caller = await house.token()
    await house.created("taken")
    house.native("native", caller)
    for slug in ("taken", "native"):
        for who in (token, ADMIN_TOKEN):
            answer = await house.call("POST", "/v1/tunnels", who, json={"port": 1, "requestedSlug": slug})
            assert (answer.status, answer.code) == (409, "TUNNEL_SLUG_CONFLICT")


async def test_a_thousand_for_one_name_and_one_wins(house: LeasedHouse, mock_clock: MockClock) -> None:
    callers = [(await house.token(f"user {number}"))[1] for number in range(10)]
    won, lost = [], []

    async def race(number: int) -> None:
        try:
            won.append(await house.leases.create(callers[number % 10], 3000, "contested"))
        except Unavailable as error:
            lost.append(error.code)

    async with trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(race, number)
    assert len(won) == 1
    assert lost == ["taken"] * 999
    assert house.registry.find_host(f"contested.{DOMAIN}") is not None


async def test_the_quota_holds_in_a_race(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, caller = await house.token()
    answers = []

    async def create() -> None:
        answers.append(await house.call("POST", "/v1/tunnels", token, json={"port": 1}))

    async with trio.open_nursery() as nursery:
        for _ in range(15):
            nursery.start_soon(create)
    assert sorted(answer.status for answer in answers) == [200] * 5 + [409] * 10
    refused = next(answer for answer in answers if answer.status == 409)
    assert refused.code == "TUNNEL_LIMIT_REACHED"
    assert refused.json["details"] == {"activeCount": 5, "maxActive": 5}
    assert len(house.leases.alive_of(caller.owner)) == 5
    gone = house.leases.alive_of(caller.owner)[0]
    await house.call("DELETE", f"/v1/tunnels/{gone.id}", token)
    await house.created(None, token)


async def test_a_read_only_token_makes_nothing(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, _ = await house.token(role=Role.READ)
    answer = await house.call("POST", "/v1/tunnels", token, json={"port": 1})
    assert (answer.status, answer.code) == (403, "FORBIDDEN")
    assert await listed(house, token) == []


async def test_a_failed_write_leaves_nothing(
    house: LeasedHouse, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(house.store.leases, "add", fail)
    answer = await house.call("POST", "/v1/tunnels", json={"port": 1, "requestedSlug": "x"})
    assert (answer.status, answer.code) == (503, "STORAGE_UNAVAILABLE")
    assert await listed(house) == []
    assert house.registry.find_host(f"x.{DOMAIN}") is None
    monkeypatch.undo()
    await house.created("x")


# life


async def test_a_lease_ends_at_its_instant_to_the_millisecond(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created("exact")
    session, agent = await house.attach(agent_token.decode(made["cloudflaredToken"]).secret)
    await house.sessions.register(session, wish("exact"))
    await house.pass_time(59.999)
    assert house.registry.find_host(f"exact.{DOMAIN}") is not None
    assert agent.ended == []
    assert [one["status"] for one in await listed(house)] == ["active"]
    await house.pass_time(0.001)
    assert house.registry.find_host(f"exact.{DOMAIN}") is None
    assert len(agent.ended) == 1
    assert await listed(house) == []
    (ended,) = await listed(house, query="?includeInactive=1")
    assert (ended["status"], ended["lease"], ended["lastError"]) == ("stopped", None, None)
    assert ended["stoppedAt"] == stamp(60)
    await house.created("exact")  # the name is free


async def test_heartbeats_renew_and_none_revives(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created()
    for number in range(1, 4):
        await house.pass_time(59.999)
        answer = await beat(house, made)
        check_heartbeat(answer.json)
        assert answer.json["expiresAt"] == stamp(59.999 * number + 60)
    house.clock.jump(60)  # no task has run yet
    answer = await beat(house, made)
    assert (answer.status, answer.code) == (404, "TUNNEL_NOT_FOUND")
    assert await listed(house) == []


async def test_the_instant_counts_not_the_task(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created("app")
    house.clock.jump(60)
    with pytest.raises(NotFound):
        house.leases.heartbeat(made["tunnelId"])
    assert house.registry.find_host(f"app.{DOMAIN}") is None


async def test_leases_end_in_order_and_a_new_one_may_be_first(house: LeasedHouse, mock_clock: MockClock) -> None:
    first = await house.created("first")
    await house.pass_time(10)
    await house.created("second")
    await house.pass_time(40)
    await beat(house, first)
    await house.pass_time(20)
    assert [one["slug"] for one in await listed(house)] == ["first"]
    await house.pass_time(39.999)
    assert [one["slug"] for one in await listed(house)] == ["first"]
    await house.pass_time(0.001)
    assert await listed(house) == []


async def test_an_agent_that_is_attached_does_not_renew(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created("app")
    session, _ = await house.attach(agent_token.decode(made["cloudflaredToken"]).secret)
    await house.sessions.register(session, wish("app"))
    await house.pass_time(60)
    assert await listed(house) == []


async def test_stopping_by_id_and_by_host_name(house: LeasedHouse, mock_clock: MockClock) -> None:
    by_id, by_host = await house.created("one"), await house.created("two")
    for name in (by_id["tunnelId"], by_host["hostname"]):
        answer = await house.call("DELETE", f"/v1/tunnels/{name}")
        assert answer.status == 200
        check_ok(answer.json)
        again = await house.call("DELETE", f"/v1/tunnels/{name}")
        assert (again.status, again.code) == (404, "TUNNEL_NOT_FOUND")
    assert await listed(house) == []


class Visit:
    """One that is under way."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        tunnel.requests += 1

    def end(self, status: int = 200) -> None:
        self.tunnel.tally.request(status, 10.0, 0, 100)
        if self.tunnel.tell is not None:
            self.tunnel.tell(b"GET", b"/", status, 10.0, "0" * 32, False)


async def served(house: LeasedHouse, label: str, token: str = ADMIN_TOKEN) -> tuple[Any, Tunnel, PlayedAgent]:
    """A leased tunnel with an agent."""
    made = await house.created(label, token)
    session, agent = await house.attach(agent_token.decode(made["cloudflaredToken"]).secret)
    return made, await house.sessions.register(session, wish(label)), agent


async def test_stopping_lets_visits_finish_and_no_new_one_in(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, _ = await house.token(max_tunnels=1)
    made, tunnel, agent = await served(house, "app", token)
    visits = [Visit(tunnel), Visit(tunnel)]
    answers: list[Answer] = []

    async def stop() -> None:
        answers.append(await house.call("DELETE", f"/v1/tunnels/{made['tunnelId']}", token))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop)
        await house.settle()
        nursery.start_soon(stop)  # asked again: the same end
        await house.pass_time(1)
        assert house.registry.find_host(f"app.{DOMAIN}") is None
        (one,) = await listed(house, token)
        assert (one["status"], one["stoppedAt"]) == ("stopping", None)
        assert one["lease"] == {"lastHeartbeatAt": stamp(0), "expiresAt": stamp(60)}
        assert (await beat(house, made)).status == 404
        assert (await house.call("POST", f"/v1/tunnels/{made['tunnelId']}/heartbeat", token)).status == 404
        with pytest.raises(BadCredentials):
            await house.attach(agent_token.decode(made["cloudflaredToken"]).secret)
        taken = await house.call("POST", "/v1/tunnels", json={"port": 1, "requestedSlug": "app"})
        assert (taken.status, taken.code) == (409, "TUNNEL_SLUG_CONFLICT")
        await house.created("other", token)  # it does not count any more
        visits[0].end()
        await house.settle()
        assert agent.ended == []
        assert answers == []
        visits[1].end()
        await house.settle()
        assert len(agent.ended) == 1
    assert [answer.status for answer in answers] == [200, 200]
    (stopped, _) = await listed(house, token, "?includeInactive=1")
    assert (stopped["status"], stopped["stoppedAt"], stopped["lease"]) == ("stopped", stamp(1), None)
    await house.created("app")


async def test_stopping_waits_two_seconds_at_most(house: LeasedHouse, mock_clock: MockClock) -> None:
    made, tunnel, agent = await served(house, "app")
    Visit(tunnel)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.call, "DELETE", f"/v1/tunnels/{made['tunnelId']}")
        await house.pass_time(DRAIN_SECONDS - 0.001)
        assert agent.ended == []
        await house.pass_time(0.001)
        assert len(agent.ended) == 1


async def test_live_telemetry_of_a_tunnel_that_is_stopping(house: LeasedHouse, mock_clock: MockClock) -> None:
    made, tunnel, _ = await served(house, "app")
    Visit(tunnel).end()
    Visit(tunnel)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.call, "DELETE", f"/v1/tunnels/{made['tunnelId']}")
        await house.pass_time(1.5)
        answer = await house.call("GET", "/v1/tunnels/telemetry")
        assert [one["tunnelId"] for one in answer.json] == [made["tunnelId"]]
        await house.pass_time(1)
    assert (await house.call("GET", "/v1/tunnels/telemetry")).json == []


async def test_expiry_does_not_wait_for_visits(house: LeasedHouse, mock_clock: MockClock) -> None:
    _, tunnel, agent = await served(house, "app")
    Visit(tunnel)
    await house.pass_time(60)
    assert len(agent.ended) == 1
    assert await listed(house) == []


async def test_the_tunnel_of_a_stock_agent_is_stopped_in_the_same_way(
    house: LeasedHouse, mock_clock: MockClock
) -> None:
    token, caller = await house.token()
    tunnel = house.native("web", caller)
    agent = tunnel.session and tunnel.session.agent
    assert isinstance(agent, PlayedAgent)
    visit = Visit(tunnel)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.call, "DELETE", f"/v1/tunnels/web.{DOMAIN}", token)
        await house.settle()
        assert house.registry.find_host(f"web.{DOMAIN}") is None
        assert [one["status"] for one in await listed(house, token)] == ["stopping"]
        assert (await house.call("POST", f"/v1/tunnels/{tunnel.id}/heartbeat", token)).status == 404
        visit.end()
        await house.settle()
    assert len(agent.ended) == 1
    assert await listed(house, token) == []


async def test_a_restart_while_stopping(tmp_path: Path, mock_clock: MockClock) -> None:
    async with leased_house(tmp_path) as house:
        began = house.began
        made = await house.created("app")
        held = house.leases._alive[made["tunnelId"]]
        held.lease.status = Status.STOPPING  # as far as a crash let it come
    async with leased_house(tmp_path, began=began) as house:
        assert await listed(house) == []
        assert [one["status"] for one in await listed(house, query="?includeInactive=1")] == ["stopped"]
        await house.created("app")


def noted(house: LeasedHouse) -> list[Event]:
    """What the audit heard since the last call, without agents and tokens."""
    kinds = (audit.LeaseCreated, audit.LeaseEnded, audit.RegistrationRefused, audit.AccessRefused, audit.TunnelClosed)
    found: list[Event] = [event for event in house.events if isinstance(event, kinds)]
    house.events.clear()
    return found


async def test_the_lives_of_leases_are_audited(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, caller = await house.token("ci", scope="a*,b*")
    who = audit.who_is(caller)
    made = {label: await house.created(label, token) for label in ("a", "a2", "b", "b2")}

    def created(label: str) -> Event:
        tunnel, address = made[label]["tunnelId"], f"{label}.{DOMAIN}"
        return audit.LeaseCreated(who=who, peer="192.0.2.1:40000", tunnel=tunnel, address=address)

    def ended(label: str, why: WhyEnded) -> Event:
        tunnel, address = made[label]["tunnelId"], f"{label}.{DOMAIN}"
        return audit.LeaseEnded(tunnel=tunnel, address=address, owner=caller.owner, why=why)

    assert noted(house) == [created(label) for label in made]
    await house.call("DELETE", f"/v1/tunnels/a.{DOMAIN}", token)
    assert noted(house) == [msgspec.structs.replace(ended("a", "deleted"), who=who, peer="192.0.2.1:40000")]
    await house.call("DELETE", f"/api/tunnels/{made['a2']['tunnelId']}")  # nobody serves it: it is none there
    session, _ = await house.attach(agent_token.decode(made["a2"]["cloudflaredToken"]).secret)
    await house.sessions.register(session, wish("a2"))
    await house.call("DELETE", f"/api/tunnels/{made['a2']['tunnelId']}")
    assert noted(house)[0] == ended("a2", "closed")
    await house.pass_time(30)
    await beat(house, made["b"])
    await house.pass_time(30)
    assert noted(house) == [ended("b2", "expired")]
    assert caller.token_id is not None
    await house.accounts.delete_token(caller.token_id)
    assert noted(house) == [ended("b", "token ended")]


async def test_what_ran_out_while_the_server_was_away_is_audited(tmp_path: Path, mock_clock: MockClock) -> None:
    async with leased_house(tmp_path) as house:
        began = house.began
        made = await house.created("app")
    mock_clock.jump(60)
    async with leased_house(tmp_path, began=began) as house:
        (event,) = noted(house)
        assert isinstance(event, audit.LeaseEnded)
        assert (event.tunnel, event.why) == (made["tunnelId"], "expired")


async def test_refusals_are_audited(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, caller = await house.token(scope="ci-*")
    await house.call("POST", "/v1/tunnels", token, json={"port": 1, "requestedSlug": "other"})
    (refused,) = noted(house)
    assert isinstance(refused, audit.RegistrationRefused)
    assert (refused.who, refused.code, refused.session) == (audit.who_is(caller), "scope", "")
    reader, caller = await house.token(role=Role.READ)
    assert (await house.call("POST", "/v1/tunnels", reader, json={"port": 1})).code == "FORBIDDEN"
    who, peer = audit.who_is(caller), "192.0.2.1:40000"
    assert noted(house) == [audit.AccessRefused(who=who, peer=peer, what="POST /v1/tunnels")]
    tunnel = house.native("web", caller)
    assert (await house.call("DELETE", f"/v1/tunnels/{tunnel.id}", reader)).code == "FORBIDDEN"
    assert noted(house) == [audit.AccessRefused(who=who, peer=peer, what=f"DELETE /v1/tunnels/{tunnel.id}")]


@pytest.mark.parametrize("name", ["one", UNKNOWN, "a%2Fb%20c%3Fd", "nothing.t.example.com", "%00", "x" * 5000])
async def test_stopping_what_is_not_there(house: LeasedHouse, mock_clock: MockClock, name: str) -> None:
    await house.created("one")
    answer = await house.call("DELETE", f"/v1/tunnels/{name}")
    assert (answer.status, answer.code) == (404, "TUNNEL_NOT_FOUND")
    assert len(await listed(house)) == 1


async def test_nobody_stops_the_tunnel_of_another(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, _ = await house.token()
    made = await house.created("mine", token)
    other, _ = await house.token("other")
    for who in (other, ADMIN_TOKEN):
        assert (await house.call("DELETE", f"/v1/tunnels/{made['tunnelId']}", who)).status == 404
    assert (await house.call("POST", f"/v1/tunnels/{made['tunnelId']}/heartbeat", other)).status == 404


async def test_a_revoked_token_takes_its_leases_along(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, caller = await house.token()
    made = await house.created("app", token)
    assert caller.token_id is not None
    await house.accounts.delete_token(caller.token_id)
    assert house.registry.find_host(f"app.{DOMAIN}") is None
    assert (await beat(house, made)).status == 404


async def test_leases_outlive_a_restart(tmp_path: Path, mock_clock: MockClock) -> None:
    async with leased_house(tmp_path) as house:
        began = house.began
        token, _ = await house.token()
        made, late = await house.created("kept", token), await house.created("late", token)
        await house.pass_time(30)
        assert (await beat(house, made)).status == 200
    mock_clock.jump(35)
    async with leased_house(tmp_path, began=began) as house:
        assert [one["slug"] for one in await listed(house, token)] == ["kept"]
        everything = await listed(house, token, "?includeInactive=true")
        assert [(one["slug"], one["status"]) for one in everything] == [("kept", "active"), ("late", "stopped")]
        assert everything[1]["stoppedAt"] == stamp(60)
        assert (await beat(house, late)).status == 404
        await house.pass_time(24.999)
        assert len(await listed(house, token)) == 1
        assert (await beat(house, made)).status == 200
        session, _ = await house.attach(agent_token.decode(made["cloudflaredToken"]).secret)
        await house.sessions.register(session, wish("kept"))
        await house.pass_time(60)
        assert await listed(house, token) == []


# machine calls


async def test_a_run_token_opens_its_own_tunnel_and_nothing_else(house: LeasedHouse, mock_clock: MockClock) -> None:
    made, other = await house.created("one"), await house.created("two")
    run = made["tunnelRunToken"]
    answer = await beat(house, other, run)
    assert (answer.status, answer.code) == (403, "FORBIDDEN")
    for method, path in [("GET", "/v1/tunnels"), ("DELETE", f"/v1/tunnels/{made['tunnelId']}")]:
        answer = await house.call(method, path, run)
        assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
    answer = await house.call("POST", f"/v1/tunnels/{made['hostname']}/heartbeat", run)
    assert answer.status == 403  # its own id, textually
    await house.call("DELETE", f"/v1/tunnels/{made['tunnelId']}")
    answer = await beat(house, made)
    assert (answer.status, answer.code) == (404, "TUNNEL_NOT_FOUND")


async def test_a_user_beats_by_id_or_host_name(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created("app")
    for name in (made["tunnelId"], made["hostname"]):
        answer = await house.call("POST", f"/v1/tunnels/{name}/heartbeat")
        assert answer.status == 200
        check_heartbeat(answer.json)
    assert (await house.call("POST", "/v1/tunnels/app/heartbeat")).status == 404
    answer = await house.call("POST", "/v1/tunnels//heartbeat")
    assert (answer.status, answer.code) == (400, "INVALID_TUNNEL_ID")


async def test_an_agents_secret_opens_its_tunnel_only(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created("app")
    secret = agent_token.decode(made["cloudflaredToken"]).secret
    for path in ("/v1/tunnels", "/api/tunnels"):
        assert (await house.call("GET", path, secret)).status == 401
    assert (await beat(house, made, secret)).status == 401
    session, _ = await house.attach(secret)
    for other in (Wish(Protocol.HTTP, "other"), Wish(Protocol.HTTP), Wish(Protocol.TCP, port=20001)):
        with pytest.raises(Unavailable):
            await house.sessions.register(session, other)
    tunnel = await house.sessions.register(session, wish("APP"))
    assert tunnel.id == made["tunnelId"]
    await house.call("DELETE", f"/v1/tunnels/{made['tunnelId']}")
    with pytest.raises(BadCredentials):
        await house.sessions.authenticate(Introduction(Secret(secret), "0.1", Peer("192.0.2.7", 5000)))


async def test_a_leased_name_is_taken_for_every_other_claim(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, _ = await house.token()
    await house.created("app", token)
    for who in (token, ADMIN_TOKEN):
        session, _ = await house.attach(who)
        with pytest.raises(Unavailable, match="in use"):
            await house.sessions.register(session, Wish(Protocol.HTTP, subdomain="app", take_over=True))


async def test_an_agent_comes_and_goes(house: LeasedHouse, mock_clock: MockClock) -> None:
    """Not in /api/tunnels before it is there or while it is away; one row of history for each stay."""
    made = await house.created("app")
    secret = agent_token.decode(made["cloudflaredToken"]).secret

    async def native() -> list[str]:
        answer = await house.call("GET", "/api/tunnels")
        return [one["tunnel_id"] for one in json.loads(answer.text)]

    assert await native() == []
    for clean in (False, True):
        session, _ = await house.attach(secret)
        await house.sessions.register(session, wish("app"))
        assert await native() == [made["tunnelId"]]
        await house.sessions.leave(session, clean=clean)
        assert await native() == []
        house.registry.sweep(trio.current_time() + 3600)  # a record's name is not held for a while, it is taken
        assert house.registry.find_host(f"app.{DOMAIN}") is not None
        assert len(await listed(house)) == 1
    total, entries = await house.store.tunnel_log.history(None, None, 10, 0)
    assert total == 2
    assert {entry.tunnel_id for entry in entries} == {made["tunnelId"]}
    await house.call("DELETE", f"/v1/tunnels/{made['tunnelId']}")
    assert len(await listed(house, query="?includeInactive=1")) == 1  # one a tunnel, not one a stay


async def test_the_same_secret_twice(house: LeasedHouse, mock_clock: MockClock) -> None:
    """The one that serves and answers keeps it."""
    made = await house.created("app")
    secret = agent_token.decode(made["cloudflaredToken"]).secret
    first, _ = await house.attach(secret)
    await house.sessions.register(first, wish("app"))
    second, _ = await house.attach(secret)
    with pytest.raises(Unavailable, match="in use from"):
        await house.sessions.register(second, wish("app"))


async def test_a_native_delete_ends_the_lease(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created("app")
    session, agent = await house.attach(agent_token.decode(made["cloudflaredToken"]).secret)
    await house.sessions.register(session, wish("app"))
    assert (await house.call("DELETE", f"/api/tunnels/{made['tunnelId']}")).status == 204
    assert await listed(house) == []
    assert len(agent.ended) == 1
    assert (await beat(house, made)).status == 404


# native tunnels


async def test_native_tunnels_in_the_list(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, caller = await house.token()
    tunnel = house.native("web", caller, "127.0.0.1:3000")
    await house.created("leased", token)
    await house.pass_time(5)
    native, leased = await listed(house, token)
    assert leased["slug"] == "leased"
    assert native == {
        "id": tunnel.id,
        "hostname": f"web.{DOMAIN}",
        "slug": "web",
        "status": "active",
        "requestedPort": 3000,
        "createdAt": stamp(0),
        "lease": {"lastHeartbeatAt": stamp(0), "expiresAt": stamp(60)},
        "stoppedAt": None,
        "lastError": None,
    }
    await house.pass_time(3600)  # the lease of a native tunnel is only told
    assert [one["slug"] for one in await listed(house, token)] == ["web"]
    answer = await house.call("POST", f"/v1/tunnels/{tunnel.id}/heartbeat", token)
    check_heartbeat(answer.json)
    assert (await house.call("DELETE", f"/v1/tunnels/web.{DOMAIN}", token)).status == 200
    assert house.registry.get(tunnel.id) is None


async def test_native_ports(house: LeasedHouse, mock_clock: MockClock) -> None:
    _, caller = await house.token()
    for number, (local, port) in enumerate({"localhost:5432": 5432, "": 80, "[::1]:81": 81, "x:99999": 80}.items()):
        house.native(f"n{number}aa", caller, local)
        assert house.leases.alive_of(caller.owner)[number].requested_port == port


async def test_ended_native_tunnels_once_each_oldest_first(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, _ = await house.token()
    for _ in range(2):
        session, _ = await house.attach(token)
        await house.sessions.register(session, Wish(Protocol.HTTP, subdomain="web", local_addr="localhost:4000"))
        await house.sessions.leave(session, clean=True)
    session, _ = await house.attach(token)
    await house.sessions.register(session, Wish(Protocol.TCP, local_addr="localhost:22"))
    assert await listed(house, token) == []
    ended = await listed(house, token, "?includeInactive=true")
    assert [(one["slug"], one["status"], one["lease"]) for one in ended] == [("web", "stopped", None)] * 2
    assert len({one["id"] for one in ended}) == 2


# who asks


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/tunnels"),
        ("GET", "/v1/tunnels/telemetry"),
        ("POST", "/v1/tunnels"),
        ("DELETE", f"/v1/tunnels/{UNKNOWN}"),
        ("POST", f"/v1/tunnels/{UNKNOWN}/heartbeat"),
        ("POST", f"/v1/tunnels/{UNKNOWN}/telemetry"),
        ("GET", f"/v1/tunnels/{UNKNOWN}/metrics"),
        ("GET", f"/v1/tunnels/{UNKNOWN}/requests"),
        ("POST", "/v1/auth/logout"),
    ],
)
async def test_without_a_good_token(house: LeasedHouse, mock_clock: MockClock, method: str, path: str) -> None:
    for token, headers, reason in [
        (None, {}, "MISSING_AUTH"),
        (None, {"Authorization": "Basic eA=="}, "MISSING_AUTH"),
        (None, {"Authorization": "Bearer"}, "MISSING_AUTH"),
        ("wrong", {}, "INVALID_TOKEN"),
        ("x" * 43, {}, "INVALID_TOKEN"),
    ]:
        answer = await house.call(method, path, token, headers=headers)
        assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
        assert answer.json["details"] == {"reason": reason}
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_bearer_in_any_case(house: LeasedHouse, mock_clock: MockClock) -> None:
    answer = await house.call("GET", "/v1/tunnels", None, headers={"Authorization": f"bEARER {ADMIN_TOKEN}"})
    assert answer.status == 200


async def test_healthz_is_for_all(house: LeasedHouse, mock_clock: MockClock) -> None:
    for token in (None, "wrong"):
        answer = await house.call("GET", "/healthz", token, headers={"Host": "anything.example"})
        check_ok(answer.json)
        assert "x-ratelimit-limit" not in answer.headers


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/nothing", "/v1/tunnels/x/y/z", f"/v1/tunnels/{UNKNOWN}"])
async def test_unknown_routes_have_our_shape(house: LeasedHouse, mock_clock: MockClock, path: str) -> None:
    answer = await house.call("GET", path)
    assert answer.status in (404, 405)
    check_error(answer.json)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_there_is_no_page_of_one_tunnel(house: LeasedHouse, mock_clock: MockClock, method: str) -> None:
    made = await house.created()
    answer = await house.call(method, f"/v1/tunnels/{made['tunnelId']}")
    assert answer.status == 404
    if method == "GET":
        assert answer.code == "NOT_FOUND"
    assert (await house.call("PUT", f"/v1/tunnels/{made['tunnelId']}")).status == 405


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/nope"), ("PUT", "/v1/tunnels"), ("GET", "/v1/tunnels"), ("GET", "/v1/tunnels/x")]
)
async def test_keep_alive_is_hinted_on_errors_too(
    house: LeasedHouse, mock_clock: MockClock, method: str, path: str
) -> None:
    answer = await house.call(method, path, None)
    assert answer.status >= 400
    assert answer.headers["keep-alive"] == "timeout=60"


async def test_keep_alive_is_hinted(house: LeasedHouse, mock_clock: MockClock) -> None:
    assert (await house.call("GET", "/v1/tunnels")).headers["keep-alive"] == "timeout=60"


async def test_another_site_is_refused(house: LeasedHouse, mock_clock: MockClock) -> None:
    answer = await house.call("POST", "/v1/auth/refresh", None, text="{}", headers={"Sec-Fetch-Site": "cross-site"})
    assert (answer.status, answer.code) == (403, "FORBIDDEN")
    answer = await house.call("POST", "/v1/auth/refresh", None, text="{}", headers={"Host": "evil.example"})
    assert answer.status == 421


async def test_a_crash_tells_nothing(
    house: LeasedHouse, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(_: str) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(house.leases, "alive_of", crash)
    answer = await house.call("GET", "/v1/tunnels")
    assert (answer.status, answer.code) == (500, "INTERNAL_ERROR")
    assert "secret" not in answer.text


# limits


async def test_the_telemetry_page_allows_600_a_minute_and_user(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, _ = await house.token()
    for number in range(600):
        answer = await house.call("GET", "/v1/tunnels/telemetry", token, client=f"192.0.2.{number % 250}")
        assert answer.status == 200
        assert answer.headers["x-ratelimit-limit"] == "600"
        assert answer.headers["x-ratelimit-remaining"] == str(599 - number)
    answer = await house.call("GET", "/v1/tunnels/telemetry", token)
    assert (answer.status, answer.code) == (429, "RATE_LIMIT_EXCEEDED")
    assert (answer.headers["retry-after"], answer.headers["x-ratelimit-reset"]) == ("60", "60")
    assert answer.headers["x-ratelimit-remaining"] == "0"
    assert (await house.call("GET", "/v1/tunnels/telemetry")).status == 200  # another user
    assert (await house.call("GET", "/v1/tunnels", token)).status == 200  # another counter
    await house.pass_time(59.5)
    answer = await house.call("GET", "/v1/tunnels/telemetry", token)
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    await house.pass_time(0.5)
    assert (await house.call("GET", "/v1/tunnels/telemetry", token)).status == 200


async def test_the_other_limits(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, _ = await house.token()

    async def limit(method: str, path: str, who: str | None, **more: Any) -> int:
        return int((await house.call(method, path, who, **more)).headers["x-ratelimit-limit"])

    assert await limit("POST", "/v1/tunnels", token, json={"port": 1}) == 20
    assert await limit("POST", f"/v1/tunnels/{UNKNOWN}/telemetry", token, text="{}") == 1200
    assert await limit("GET", "/v1/tunnels", token) == 100
    assert await limit("POST", "/v1/auth/slack/start", None, text="{}") == 10
    assert await limit("POST", "/v1/auth/slack/status", None, text="{}") == 120
    assert await limit("POST", "/v1/auth/exchange", None, text="{}") == 20
    assert await limit("POST", "/v1/auth/refresh", None, text="{}") == 600
    assert await limit("POST", f"/v1/tunnels/{UNKNOWN}/heartbeat", token) == 600


async def test_wrong_tokens_are_counted_by_address(house: LeasedHouse, mock_clock: MockClock) -> None:
    answer = await house.call("GET", "/v1/tunnels", None, client="198.51.100.1")
    assert answer.headers["x-ratelimit-remaining"] == "99"
    assert (await house.call("GET", "/v1/tunnels", None, client="198.51.100.2")).headers[
        "x-ratelimit-remaining"
    ] == "99"


def test_instants_are_what_they_say() -> None:
    assert datetime.fromisoformat(stamp(0.001).replace("Z", "+00:00")) == NOON + timedelta(milliseconds=1)
