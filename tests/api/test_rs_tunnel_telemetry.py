"""Telemetry of `/v1`: what is posted comes back, what nobody posts is measured, and both have a history."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from rustunnel_py.api.rs_tunnel_shapes import read_date
from rustunnel_py.hub import telemetry
from rustunnel_py.store import telemetry as telemetry_store
from tests.support.api import ADMIN_TOKEN
from tests.support.leased import NOON, Answer, LeasedHouse, leased_house
from tests.support.rs_tunnel_contract import QUIET_METRICS, check_live, check_ok, check_points, check_requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio.testing import MockClock

    from rustunnel_py.hub.registry import Tunnel

UNKNOWN = "00000000-0000-4000-8000-000000000000"
QUIET = QUIET_METRICS
# The example of the live telemetry page, both of its snapshots.
SEED = [
    {
        "ttl": 1523,
        "opn": 12,
        "rt1Ms": 5.2,
        "rt5Ms": 8.7,
        "p50Ms": 45.3,
        "p90Ms": 123.8,
        "requests": 1500,
        "errors": 23,
        "bytes": 5242880,
    },
    {
        "ttl": 42,
        "opn": 3,
        "rt1Ms": 12.5,
        "rt5Ms": 18.2,
        "p50Ms": 67.8,
        "p90Ms": 210.4,
        "requests": 38,
        "errors": 2,
        "bytes": 245760,
    },
]
EVENT = {
    "startedAtEpochMs": 1795326286383,
    "method": "GET",
    "path": "/status/200",
    "statusCode": 200,
    "durationMs": 16.95983,
    "responseBytes": 97,
    "error": False,
    "protocol": "http",
}
BODY: dict[str, Any] = {"region": "FRA07", "metrics": QUIET, "requests": [EVENT]}


@pytest.fixture
async def house(tmp_path: Path, mock_clock: MockClock) -> AsyncIterator[LeasedHouse]:
    async with leased_house(tmp_path) as house:
        yield house


def stamp(seconds: float) -> str:
    at = NOON + timedelta(seconds=seconds)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"


async def post(house: LeasedHouse, made: Any, body: object = BODY, token: str | None = None) -> Answer:
    return await house.call(
        "POST", f"/v1/tunnels/{made['tunnelId']}/telemetry", token or made["tunnelRunToken"], json=body
    )


async def live(house: LeasedHouse, token: str = ADMIN_TOKEN) -> Any:
    answer = await house.call("GET", "/v1/tunnels/telemetry", token)
    assert answer.status == 200
    check_live(answer.json)
    return answer.json


async def test_the_seeds_page_field_by_field(house: LeasedHouse, mock_clock: MockClock) -> None:
    first, second, silent = [await house.created() for _ in range(3)]
    await house.pass_time(1.123)
    check_ok((await post(house, second, {"region": None, "metrics": SEED[1], "requests": []})).json)
    await house.pass_time(2)
    check_ok((await post(house, first, {"region": "us-east", "metrics": SEED[0], "requests": []})).json)
    assert await live(house) == [
        {"tunnelId": first["tunnelId"], "receivedAt": stamp(3.123), "region": "US-EAST", "metrics": SEED[0]},
        {"tunnelId": second["tunnelId"], "receivedAt": stamp(1.123), "region": None, "metrics": SEED[1]},
    ]
    assert silent["tunnelId"] not in str(await live(house))
    token, _ = await house.token()
    assert await live(house, token) == []


async def test_the_latest_snapshot_counts_and_goes_with_its_tunnel(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created()
    for metrics in SEED:
        await post(house, made, {"metrics": metrics, "requests": []})
    assert [one["metrics"] for one in await live(house)] == [SEED[1]]
    await house.call("DELETE", f"/v1/tunnels/{made['tunnelId']}")
    assert await live(house) == []
    answer = await post(house, made)
    assert (answer.status, answer.code) == (404, "TUNNEL_NOT_FOUND")


async def test_an_upload_does_not_renew(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created()
    await house.pass_time(59)
    check_ok((await post(house, made)).json)
    await house.pass_time(1)
    assert (await post(house, made)).status == 404


def changed(path: str, value: object) -> dict[str, Any]:
    """BODY with another value at `path`; a value of ... takes the key away."""
    body = copy.deepcopy(BODY)
    place: Any = body
    *way, last = path.split(".")
    for step in way:
        place = place[int(step)] if step.isdigit() else place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return body


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metrics", ...),
        ("requests", ...),
        ("extra", 1),
        ("metrics.extra", 1),
        ("requests.0.extra", 1),
        *((f"metrics.{name}", ...) for name in QUIET),
        *((f"requests.0.{name}", ...) for name in EVENT),
        ("region", 5),
        ("region", "x" * 17),
        *((f"metrics.{name}", 1.5) for name in ("ttl", "opn", "requests", "errors", "bytes")),
        *((f"metrics.{name}", -1) for name in QUIET),
        *((f"metrics.{name}", "1") for name in QUIET),
        ("metrics.ttl", None),
        ("metrics.ttl", True),
        ("metrics.ttl", 2**53),
        ("requests", {}),
        ("requests", [EVENT] * 201),
        ("requests.0.startedAtEpochMs", -1),
        ("requests.0.startedAtEpochMs", 1.5),
        ("requests.0.startedAtEpochMs", 253402300800000),
        ("requests.0.method", ""),
        ("requests.0.method", "X" * 17),
        ("requests.0.path", ""),
        ("requests.0.path", "/" * 513),
        ("requests.0.statusCode", 99),
        ("requests.0.statusCode", 600),
        ("requests.0.durationMs", -0.1),
        ("requests.0.durationMs", None),
        ("requests.0.responseBytes", -1),
        ("requests.0.error", 0),
        ("requests.0.protocol", "tcp"),
    ],
)
async def test_uploads_are_strict(house: LeasedHouse, mock_clock: MockClock, path: str, value: object) -> None:
    made = await house.created()
    answer = await post(house, made, changed(path, value))
    assert (answer.status, answer.code) == (400, "INVALID_INPUT")
    assert await live(house) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("region", ...),
        ("region", None),
        ("requests", []),
        ("requests", [EVENT] * 200),
        ("metrics.rt1Ms", 3),
        ("requests.0.responseBytes", None),
        ("requests.0.durationMs", 0),
        ("requests.0.path", "🚇" * 512),
    ],
)
async def test_what_uploads_may_leave_out(house: LeasedHouse, mock_clock: MockClock, path: str, value: object) -> None:
    check_ok((await post(house, await house.created(), changed(path, value))).json)


async def test_a_bad_body_is_told_before_the_wrong_tunnel(house: LeasedHouse, mock_clock: MockClock) -> None:
    one, two = await house.created(), await house.created()
    answer = await post(house, one, {}, two["tunnelRunToken"])
    assert (answer.status, answer.code) == (400, "INVALID_INPUT")
    answer = await post(house, one, BODY, two["tunnelRunToken"])
    assert (answer.status, answer.code) == (403, "FORBIDDEN")


async def test_a_user_posts_by_id_host_name_or_slug(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created("app")
    for name in (made["tunnelId"], made["hostname"], "app"):
        answer = await house.call("POST", f"/v1/tunnels/{name}/telemetry", json=BODY)
        check_ok(answer.json)
    assert (await house.call("POST", "/v1/tunnels/other/telemetry", json=BODY)).status == 404


# history


async def points(house: LeasedHouse, name: str, first: str, last: str) -> Any:
    answer = await house.call("GET", f"/v1/tunnels/{name}/metrics?from={first}&to={last}")
    assert answer.status == 200, answer.text
    check_points(answer.json)
    return answer.json


async def test_one_point_in_ten_seconds(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created()
    for number in range(11):
        await post(house, made, {"metrics": QUIET | {"ttl": number, "rt1Ms": 1.5}, "requests": []})
        await house.pass_time(2)
    found = await points(house, made["tunnelId"], stamp(0), stamp(60))
    assert found == [
        {
            "capturedAt": stamp(10.0 * number),
            "ttl": 5 * number,
            "opn": 0,
            "rt1Ms": 1.5,
            "p90Ms": None,
            "requests": 0,
            "errors": 0,
            "bytes": 0,
        }
        for number in range(3)
    ]
    assert await points(house, made["hostname"], stamp(10), stamp(10)) == found[1:2]  # both ends count
    await house.call("DELETE", f"/v1/tunnels/{made['tunnelId']}")
    assert len(await points(house, made["tunnelId"], "2026-03-05", "2026-03-06")) == 3  # in any state


@pytest.mark.parametrize("query", ["", "from=2026", "to=2026", "from=x&to=2026", "from=2027&to=2026", "from=&to="])
async def test_from_and_to_are_needed(house: LeasedHouse, mock_clock: MockClock, query: str) -> None:
    made = await house.created()
    answer = await house.call("GET", f"/v1/tunnels/{made['tunnelId']}/metrics?{query}")
    assert (answer.status, answer.code) == (400, "INVALID_INPUT")


@pytest.mark.parametrize("kind", ["metrics?from=2026&to=2027", "requests"])
async def test_history_is_for_the_owner(house: LeasedHouse, mock_clock: MockClock, kind: str) -> None:
    token, _ = await house.token()
    made = await house.created("app", token)
    for name in (made["tunnelId"], made["hostname"]):
        assert (await house.call("GET", f"/v1/tunnels/{name}/{kind}", token)).status == 200
        answer = await house.call("GET", f"/v1/tunnels/{name}/{kind}")
        assert (answer.status, answer.code) == (404, "TUNNEL_NOT_FOUND")
    assert (await house.call("GET", f"/v1/tunnels/app/{kind}", token)).status == 404


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-03-05T10:30:00.000Z", datetime(2026, 3, 5, 10, 30, tzinfo=UTC)),
        ("2026-03-05T10:30:00+02:00", datetime(2026, 3, 5, 8, 30, tzinfo=UTC)),
        ("2026-03-05", datetime(2026, 3, 5, tzinfo=UTC)),
        ("2026-03", datetime(2026, 3, 1, tzinfo=UTC)),
        ("2026", datetime(2026, 1, 1, tzinfo=UTC)),
        ("Thu, 05 Mar 2026 10:30:00 GMT", datetime(2026, 3, 5, 10, 30, tzinfo=UTC)),
        (
            "Thu Mar 05 2026 10:30:00 GMT+0100 (Central European Standard Time)",
            datetime(2026, 3, 5, 9, 30, tzinfo=UTC),
        ),
        ("yesterday", None),
        ("1795326286383", None),
        ("", None),
        ("2026-13-01", None),
        ("2026-00-01", None),
        ("2026-03-05T25:00Z", None),
        ("2026-03-05T24:00:01Z", None),
        ("20260305", None),
        ("2026-W10", None),
        ("9999-12-31T24:00:00Z", None),
        ("2026-03-05T24:00:00Z", datetime(2026, 3, 6, tzinfo=UTC)),
        ("2026-02-30", datetime(2026, 3, 2, tzinfo=UTC)),
        ("+002026-03-05T10:30:00.5Z", datetime(2026, 3, 5, 10, 30, 0, 500_000, tzinfo=UTC)),
        (" 2026-03-05 10:30\ufeff", datetime(2026, 3, 5, 10, 30, tzinfo=UTC)),
        ("2026-3-5", datetime(2026, 3, 5, tzinfo=UTC)),
        ("2026/03/05 7:05", datetime(2026, 3, 5, 7, 5, tzinfo=UTC)),
        ("03/05/2026, 10:30", datetime(2026, 3, 5, 10, 30, tzinfo=UTC)),
        ("Mar 5, 2026", datetime(2026, 3, 5, tzinfo=UTC)),
        ("March 5, 2026 10:30 GMT-0100", datetime(2026, 3, 5, 11, 30, tzinfo=UTC)),
        ("5 March 2026", datetime(2026, 3, 5, tzinfo=UTC)),
        ("Foo 5, 2026", None),
        ("0001-01-01T00:00:00+23:00", None),
    ],
)
def test_dates_as_javascript_reads_them(text: str, wanted: datetime | None) -> None:
    assert read_date(text) == wanted


# the request log


async def requests(house: LeasedHouse, name: str, query: str = "") -> Any:
    answer = await house.call("GET", f"/v1/tunnels/{name}/requests{query}")
    assert answer.status == 200, answer.text
    check_requests(answer.json)
    return answer.json


async def test_events_come_back_cleaned(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created()
    odd = EVENT | {"method": " get ", "path": "a?token=1#x", "durationMs": 2.5, "responseBytes": None, "protocol": "ws"}
    await post(house, made, BODY | {"requests": [EVENT, odd]})
    assert await requests(house, made["tunnelId"], "?after=2026-01-01") == [
        {
            "ingestedAt": stamp(0),
            "startedAt": "2026-11-22T05:44:46.383Z",
            "method": "GET",
            "path": "/status/200",
            "statusCode": 200,
            "durationMs": 17,
            "responseBytes": 97,
            "error": False,
            "protocol": "http",
        },
        {
            "ingestedAt": stamp(0),
            "startedAt": "2026-11-22T05:44:46.383Z",
            "method": "GET",
            "path": "/a",
            "statusCode": 200,
            "durationMs": 3,
            "responseBytes": None,
            "error": False,
            "protocol": "ws",
        },
    ]


async def test_newest_first_without_a_cursor_oldest_first_with_one(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created()
    for number in range(3):
        await post(house, made, BODY | {"requests": [EVENT | {"path": f"/{number}{part}"} for part in "ab"]})
        await house.pass_time(1)
    name = made["tunnelId"]

    async def paths(query: str) -> list[str]:
        return [one["path"] for one in await requests(house, name, query)]

    assert await paths("") == ["/2b", "/2a", "/1b", "/1a", "/0b", "/0a"]
    assert await paths("?limit=1") == ["/2b"]
    assert await paths(f"?after={stamp(0)}") == ["/1a", "/1b", "/2a", "/2b"]  # exclusive
    assert await paths(f"?after={stamp(-1)}&limit=3") == ["/0a", "/0b"]  # no upload is parted by a page
    assert await paths(f"?after={stamp(-1)}&limit=1") == ["/0a"]
    assert await paths(f"?after={stamp(9)}") == []
    assert await paths("?after=") == await paths("")
    answer = await house.call("GET", f"/v1/tunnels/{name}/requests?after=x")
    assert (answer.status, answer.code) == (400, "INVALID_INPUT")


@pytest.mark.parametrize(
    ("limit", "count"),
    [
        ("", 200),
        ("x", 200),
        ("0", 1),
        ("-5", 1),
        ("7", 7),
        ("7.9", 7),
        ("%207", 7),
        ("12ab", 12),
        ("1e999", 1),
        ("9999", 500),
        ("9" * 400, 500),
        ("nan", 200),
        ("Infinity", 200),
    ],
)
async def test_limits_are_clamped(house: LeasedHouse, mock_clock: MockClock, limit: str, count: int) -> None:
    made = await house.created()
    for _ in range(3):
        await post(house, made, BODY | {"requests": [EVENT] * 200})
    assert len(await requests(house, made["tunnelId"], f"?limit={limit}")) == count


async def test_what_is_old_is_forgotten(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created()
    await post(house, made)
    await house.call("DELETE", f"/v1/tunnels/{made['tunnelId']}")
    await house.pass_time(24 * 3600 - 700)
    await house.pass_time(650)
    assert len(await requests(house, made["tunnelId"])) == 1
    await house.pass_time(700)
    assert await requests(house, made["tunnelId"]) == []
    await house.pass_time(6 * 24 * 3600 - 1400)
    assert len(await points(house, made["tunnelId"], "2026-03-01", "2027")) == 1
    await house.pass_time(1400)
    assert await points(house, made["tunnelId"], "2026-03-01", "2027") == []


# what the server measures


def visit(
    house: LeasedHouse, tunnel: Tunnel, status: int = 200, ms: float = 10.0, size: int = 100, *, cut: bool = False
) -> None:
    if tunnel.tell is None:
        tunnel.tell = house.telemetry.watch(tunnel)
    tunnel.requests += 1
    tunnel.tally.request(status, ms, 0, size)
    tunnel.tell(b"GET", b"/x?y=1", status, ms, "0" * 32, cut)


async def test_tunnels_that_post_nothing_are_measured(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, caller = await house.token()
    tunnel = house.native("web", caller)
    house.telemetry.watch(tunnel)
    assert await live(house, token) == []
    for status, ms in [(200, 10.0), (404, 20.0), (502, 30.0), (0, 40.0), (101, 9999.0), (499, 40.0)]:
        visit(house, tunnel, status, ms)
    tunnel.requests += 1  # one is under way
    await house.pass_time(1)
    assert await live(house, token) == [
        {
            "tunnelId": tunnel.id,
            "receivedAt": stamp(1),
            "region": "EU-1",
            "metrics": {
                "ttl": 7,
                "opn": 1,
                "rt1Ms": 28.0,
                "rt5Ms": 28.0,
                "p50Ms": 30.0,
                "p90Ms": 40.0,
                "requests": 6,
                "errors": 3,
                "bytes": 500,  # what passed after an upgrade is no body
            },
        }
    ]
    answer = await house.call("GET", f"/v1/tunnels/{tunnel.id}/requests", token)
    check_requests(answer.json)
    assert [one["statusCode"] for one in answer.json] == [499, 101, 499, 502, 404, 200]
    assert [one["error"] for one in answer.json] == [True, False, True, True, False, False]
    assert [one["protocol"] for one in answer.json] == ["http", "ws", "http", "http", "http", "http"]
    assert [one["responseBytes"] for one in answer.json] == [100, None, 100, 100, 100, 100]
    assert answer.json[5] == {
        "ingestedAt": stamp(1),
        "startedAt": stamp(-0.01),
        "method": "GET",
        "path": "/x",
        "statusCode": 200,
        "durationMs": 10,
        "responseBytes": 100,
        "error": False,
        "protocol": "http",
    }
    await house.pass_time(20)
    answer = await house.call("GET", f"/v1/tunnels/{tunnel.id}/metrics?from={stamp(0)}&to={stamp(30)}", token)
    check_points(answer.json)
    assert len(answer.json) == 2
    assert answer.json[0]["ttl"] == 7


async def test_a_cut_reply_is_an_error_whatever_its_status(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, caller = await house.token()
    tunnel = house.native("web", caller)
    house.telemetry.watch(tunnel)
    for status in (200, 404, 502, 101):
        visit(house, tunnel, status, cut=True)
    visit(house, tunnel, 499)
    (snapshot,) = await live(house, token)
    assert snapshot["metrics"]["errors"] == 4  # each once; a WebSocket has worked
    for _ in range(2):  # out of memory, and as it was stored
        answer = await house.call("GET", f"/v1/tunnels/{tunnel.id}/requests", token)
        check_requests(answer.json)
        assert [(one["statusCode"], one["error"]) for one in reversed(answer.json)] == [
            (200, True),
            (404, True),
            (502, True),
            (101, False),
            (499, True),
        ]
        await house.pass_time(telemetry.POST_SECONDS + 1)


async def test_what_is_posted_counts_from_then_on(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created()
    tunnel = house.registry.get(made["tunnelId"])
    assert tunnel is not None
    visit(house, tunnel)
    assert [one["metrics"]["ttl"] for one in await live(house)] == [1]
    await post(house, made, {"metrics": SEED[0], "requests": []})
    visit(house, tunnel)
    assert [one["metrics"] for one in await live(house)] == [SEED[0]]
    assert await requests(house, made["tunnelId"]) == []  # never both


async def logged_from(house: LeasedHouse, tunnel_id: str, token: str, query: str = "") -> Any:
    answer = await house.call("GET", f"/v1/tunnels/{tunnel_id}/requests{query}", token)
    assert answer.status == 200, answer.text
    check_requests(answer.json)
    return answer.json


async def test_the_measured_log_outlives_its_tunnel_and_what_is_in_memory(
    house: LeasedHouse, mock_clock: MockClock
) -> None:
    token, _ = await house.token()
    made = await house.created("web", token)
    tunnel = house.registry.get(made["tunnelId"])
    assert tunnel is not None
    house.telemetry.watch(tunnel)
    await house.pass_time(telemetry.POST_SECONDS)
    for _ in range(3):  # more than there is room for in memory
        for size in range(telemetry.MEASURED_EVENTS_MAX):
            visit(house, tunnel, size=size)
        await house.pass_time(telemetry.WRITE_SECONDS)
    visit(house, tunnel, size=77_777)
    await house.call("DELETE", f"/v1/tunnels/{tunnel.id}", token)
    assert await live(house, token) == []
    (newest,) = await logged_from(house, tunnel.id, token, "?limit=1")
    assert newest["responseBytes"] == 77_777
    sizes = [newest["responseBytes"]]
    seen: list[int] = []
    after = stamp(-1)
    while page := await logged_from(house, tunnel.id, token, f"?after={after}&limit=200"):
        seen += [one["responseBytes"] for one in page]
        after = page[-1]["ingestedAt"]
    assert seen == [*(3 * list(range(telemetry.MEASURED_EVENTS_MAX))), *sizes]
    assert house.telemetry.dropped == 0


async def test_a_cursor_gets_each_visit_once_while_they_move_to_the_store(
    house: LeasedHouse, mock_clock: MockClock
) -> None:
    token, caller = await house.token()
    tunnel = house.native("web", caller)
    after, seen = stamp(-1), []
    for number in range(40):
        visit(house, tunnel, size=number)
        for _ in range(2):  # the second one finds nothing
            page = await logged_from(house, tunnel.id, token, f"?after={after}")
            seen += [one["responseBytes"] for one in page]
            after = page[-1]["ingestedAt"] if page else after
        if number % 3 == 0:
            await house.pass_time(1)
    assert seen == list(range(40))
    newest_first = await logged_from(house, tunnel.id, token)
    assert [one["responseBytes"] for one in newest_first] == list(range(39, -1, -1))


async def test_instants_are_whole_milliseconds_so_that_a_cursor_does_not_repeat(
    house: LeasedHouse, mock_clock: MockClock
) -> None:
    house.clock.jump(0.0007)
    made = await house.created()
    await post(house, made, {"metrics": SEED[0], "requests": [EVENT]})
    (one,) = await requests(house, made["tunnelId"])
    assert await requests(house, made["tunnelId"], f"?after={one['ingestedAt']}") == []
    (point,) = await points(house, made["tunnelId"], stamp(-1), stamp(60))
    at = point["capturedAt"]
    assert await points(house, made["tunnelId"], at, at) == [point]  # both ends count


async def test_nothing_is_stored_before_it_is_clear_that_nobody_posts(
    house: LeasedHouse, mock_clock: MockClock
) -> None:
    """The CLI's first upload has the visits of the first seconds: they must not be there twice."""
    made = await house.created()
    tunnel = house.registry.get(made["tunnelId"])
    assert tunnel is not None
    visit(house, tunnel)
    await house.pass_time(telemetry.POST_SECONDS - 0.001)
    assert len(await requests(house, made["tunnelId"])) == 1
    assert await house.store.telemetry.newest_requests(made["tunnelId"], 10) == []
    await post(house, made, {"metrics": SEED[0], "requests": [EVENT]})
    visit(house, tunnel)
    await house.pass_time(30)
    assert [one["path"] for one in await requests(house, made["tunnelId"])] == [EVENT["path"]]


async def test_measured_rows_are_shared_evenly_and_what_is_too_much_is_counted(
    house: LeasedHouse, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "ROWS_PER_SECOND", 20)
    _, caller = await house.token()
    tunnels = [house.native(f"web{number}", caller) for number in range(2)]
    for tunnel in tunnels:
        house.telemetry.watch(tunnel)
    await house.pass_time(telemetry.POST_SECONDS)
    for tunnel in tunnels:
        for size in range(30):
            visit(house, tunnel, size=size)
    await house.pass_time(1)
    for tunnel in tunnels:
        stored = await house.store.telemetry.newest_requests(tunnel.id, 100)
        assert [logged.event.response_bytes for logged in stored] == list(range(29, 19, -1))
    assert house.telemetry.dropped == 40


async def test_the_log_is_bounded_in_rows(
    house: LeasedHouse, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "REQUESTS_MAX", 10)
    monkeypatch.setattr(telemetry_store, "PRUNE_STEP", 25)
    made = await house.created()
    events = [EVENT | {"statusCode": 100 + number} for number in range(50)]
    await post(house, made, {"metrics": SEED[0], "requests": events})
    await house.pass_time(telemetry.PRUNE_SECONDS)
    answer = await house.call("GET", f"/v1/tunnels/{made['tunnelId']}/requests")
    assert [one["statusCode"] for one in answer.json] == list(range(149, 139, -1))


async def test_visits_that_end_with_their_tunnel_are_in_the_log(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created("web")
    tunnel = house.registry.get(made["tunnelId"])
    assert tunnel is not None
    tunnel.watch = tunnel.tell = house.telemetry.watch(tunnel)
    await house.pass_time(60)
    assert house.registry.get(made["tunnelId"]) is None
    assert tunnel.tell is not None
    visit(house, tunnel, 502)
    assert [one["statusCode"] for one in await requests(house, made["tunnelId"])] == [502]
    await house.pass_time(telemetry.LATE_SECONDS)
    assert [one["statusCode"] for one in await requests(house, made["tunnelId"])] == [502]
    assert [logged.event.status for logged in await house.store.telemetry.newest_requests(tunnel.id, 9)] == [502]
    assert house.telemetry._measured == {}


async def test_a_tunnel_that_comes_back_with_its_id_begins_anew(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, caller = await house.token()
    before = house.native("web", caller)
    visit(house, before)
    house.sessions.close_tunnel(before)
    again = house.registry.create(before.address, caller.owner, before.protocol, tunnel_id=before.id)
    house.telemetry.watch(again)
    assert await live(house, token) == []
    visit(house, again, 404)
    assert [one["metrics"]["requests"] for one in await live(house, token)] == [1]
    assert [logged.event.status for logged in await house.telemetry.requests(again.id, None, 9)] == [404, 200]


async def test_the_log_outlives_a_restart(tmp_path: Path, mock_clock: MockClock) -> None:
    async with leased_house(tmp_path) as house:
        began = house.began
        made = await house.created("web")
        tunnel = house.registry.get(made["tunnelId"])
        assert tunnel is not None
        house.telemetry.watch(tunnel)
        await house.pass_time(telemetry.POST_SECONDS)
        visit(house, tunnel)
    async with leased_house(tmp_path, began=began) as house:
        assert [one["statusCode"] for one in await requests(house, made["tunnelId"])] == [200]


async def test_odd_statuses_stay_within_the_contract(house: LeasedHouse, mock_clock: MockClock) -> None:
    made = await house.created()
    tunnel = house.registry.get(made["tunnelId"])
    assert tunnel is not None
    visit(house, tunnel, 799)
    assert [(one["statusCode"], one["error"]) for one in await requests(house, made["tunnelId"])] == [(599, True)]


async def test_a_frozen_snapshot_makes_no_points(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, caller = await house.token()
    tunnel = house.native("web", caller)
    visit(house, tunnel)
    await house.pass_time(1)
    tunnel.links.remove(tunnel.links._serving[0], 0.0)
    for _ in range(40):
        await house.pass_time(1)
    answer = await house.call("GET", f"/v1/tunnels/{tunnel.id}/metrics?from=2026&to=2027", token)
    assert len(answer.json) == 1


async def test_a_snapshot_is_frozen_while_no_agent_is_there(house: LeasedHouse, mock_clock: MockClock) -> None:
    token, caller = await house.token()
    tunnel = house.native("web", caller)
    visit(house, tunnel)
    before = await live(house, token)
    made = house.registry.get(tunnel.id)
    assert made is not None
    made.links.remove(tunnel.links._serving[0], 0.0)
    await house.pass_time(5)
    assert await live(house, token) == before
