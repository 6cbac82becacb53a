"""Metrics, the OpenAPI document and its page, the audit log, as callers see them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rustunnel_py.model.access import Role
from tests.api.test_rustunnel import call, error_of, the_admin, value_of
from tests.support.api import ADMIN_TOKEN, ApiBench, api_bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[ApiBench]:
    async with api_bench(tmp_path) as bench:
        yield bench


# metrics


async def metrics_of(bench: ApiBench) -> dict[tuple[str, str], float]:
    response = await call(bench, "GET", "/metrics")
    assert response.status_code == 200
    assert response.content_type.startswith("text/plain; version=")
    text = await response.get_data(as_text=True)
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_what_is_counted(bench: ApiBench) -> None:
    tunnel = bench.http("app", the_admin(bench))
    bench.tcp(20001, the_admin(bench))
    tunnel.tally.request(200, 3.0, 10, 2000)
    tunnel.tally.request(204, 60.0, 0, 0)
    tunnel.tally.request(503, 20_000.0, 5, 7)
    tunnel.tally.request(101, 1e9, 1, 1)
    tunnel.tally.request(0, 1.0, 0, 0)
    numbers = await metrics_of(bench)
    assert numbers["rustunnel_tunnels", "http"] == numbers["rustunnel_tunnels", "tcp"] == 1
    assert numbers["rustunnel_sessions", ""] == 0
    assert [numbers["rustunnel_requests_total", kind] for kind in ("1xx", "2xx", "3xx", "5xx", "none")] == [
        1,
        2,
        0,
        1,
        1,
    ]
    assert numbers["rustunnel_tunnel_requests_total", "2xx,app.t.example.com"] == 2
    assert (numbers["rustunnel_bytes_total", "in"], numbers["rustunnel_bytes_total", "out"]) == (16, 2008)
    seconds = "rustunnel_request_duration_seconds"
    assert [numbers[f"{seconds}_bucket", bound] for bound in ("0.005", "0.05", "0.1", "30", "+Inf")] == [
        2,
        2,
        3,
        4,
        4,
    ]
    assert numbers[f"{seconds}_count", ""] == 4
    assert abs(numbers[f"{seconds}_sum", ""] - 20.064) < 1e-9


async def test_totals_outlive_their_tunnels(bench: ApiBench) -> None:
    tunnel = bench.http("app", the_admin(bench))
    tunnel.tally.request(200, 3.0, 10, 20)
    bench.sessions.close_tunnel(tunnel)
    numbers = await metrics_of(bench)
    assert numbers["rustunnel_requests_total", "2xx"] == 1
    assert ("rustunnel_tunnel_requests_total", "2xx,app.t.example.com") not in numbers


async def test_A23_metrics_are_for_this_machine_and_for_admins(bench: ApiBench) -> None:
    app = bench.app
    local = {"client": ("127.0.0.1", 5000)}
    elsewhere = {"client": ("192.0.2.7", 5000)}
    reader, _ = await bench.token("reader", Role.READ)
    for scope, headers, status in [
        (local, {}, 200),
        ({"client": ("::1", 5000)}, {}, 200),
        (local, {"X-Forwarded-For": "192.0.2.1"}, 401),  # a proxy on this machine
        (local, {"Origin": "https://evil.example"}, 401),
        (local, {"Sec-Fetch-Site": "cross-site"}, 403),
        (local, {"Authorization": "Bearer wrong"}, 401),
        (elsewhere, {}, 401),
        (elsewhere, {"Authorization": f"Bearer {reader}"}, 403),
        (elsewhere, {"Authorization": f"Bearer {ADMIN_TOKEN}"}, 200),
    ]:
        client = app.test_client()
        response = await client.open(  # type: ignore[call-arg]
            "/metrics", headers={"Host": "localhost", **headers}, scope_base=scope
        )
        assert response.status_code == status, (scope, headers)


# the document


async def document(bench: ApiBench) -> Any:
    return await value_of(await call(bench, "GET", "/api/openapi.json", None))


async def test_A27_the_document_has_every_route_and_nothing_else(bench: ApiBench) -> None:
    api = await document(bench)
    assert api["openapi"] == "3.1.0"
    described = {f"{method.upper()} {path}" for path, methods in api["paths"].items() for method in methods}
    served = {
        f"{method} " + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
        for rule in bench.app.url_map.iter_rules()
        if not rule.websocket and not rule.rule.startswith(("/static", "/v1"))
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert described == served


async def test_the_document_holds_together(bench: ApiBench) -> None:
    api = await document(bench)
    names = set(api["components"]["schemas"])
    text = json.dumps(api)
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) <= names
    for path, methods in api["paths"].items():
        for operation in methods.values():
            wanted = set(re.findall(r"\{(\w+)\}", path))
            assert {one["name"] for one in operation["parameters"] if one["in"] == "path"} == wanted
            assert operation["summary"]
            assert operation["responses"]
    ids = [operation["operationId"] for methods in api["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))
    assert api["paths"]["/api/status"]["get"]["security"] == []
    assert api["paths"]["/api/tunnels"]["get"]["security"] == [{"token": []}]
    limit, offset, protocol = api["paths"]["/api/history"]["get"]["parameters"]
    assert (limit["schema"]["minimum"], limit["schema"]["default"]) == (1, 50)
    assert offset["schema"]["minimum"] == 0
    assert protocol["schema"] == {"enum": ["http", "tcp"]}


async def test_the_page_has_nothing_from_elsewhere(bench: ApiBench) -> None:
    response = await call_page(bench, "/api/docs")
    text = await response.get_data(as_text=True)
    assert response.content_type == "text/html; charset=utf-8"
    assert "/api/tunnels/{tunnel_id}" in text
    assert "<script" not in text
    assert not re.search(r"""(src|href)=["'](https?:)?//""", text)
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")


async def test_the_page_is_for_people(bench: ApiBench) -> None:
    text = await (await call_page(bench, "/api/docs")).get_data(as_text=True)
    assert "`" not in re.sub(r"<code>.*?</code>", "", text)
    assert "<code>{&quot;error&quot;: &quot;...&quot;}</code>" in text
    assert "<code>Authorization: Bearer TOKEN</code>" in text
    for table in re.findall(r"<table>(.*?)</table>", text):
        rows = [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
        assert all(any(column) for column in zip(*rows[1:], strict=True)), table  # nothing that is only a head
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    linked = re.findall(r'href="#([^"]*)"', text)
    assert set(linked) <= set(ids)
    assert {"tunnels", "tokens", "history", "shapes"} <= set(linked)


async def call_page(bench: ApiBench, path: str) -> Any:
    return await bench.app.test_client().get(path, headers={"Host": "localhost:4041"})


# audit


async def test_audit_tells_who_did_what(bench: ApiBench) -> None:
    made = await value_of(await call(bench, "POST", "/api/tokens", json={"label": "ci\x1b[2J"}), 201)
    reader, caller = await bench.token("reader", Role.READ)
    await call(bench, "GET", "/api/tokens", reader)
    await call(bench, "GET", "/api/tunnels", "wrong")
    tunnel = bench.http("app", the_admin(bench))
    await call(bench, "DELETE", f"/api/tunnels/{tunnel.id}")
    await call(bench, "DELETE", f"/api/tokens/{made['id']}")
    page = await value_of(await call(bench, "GET", "/api/audit"))
    events = page["entries"]
    assert [event["event"] for event in events] == [
        "token_deleted",
        "tunnel_closed",
        "login_refused",
        "access_refused",
        "token_created",
        "token_created",
    ]
    assert page["next"] is None
    deleted, closed, refused, forbidden, _, created = events
    admin = {"owner": bench.store.accounts.first, "role": "admin", "token_id": None, "token_label": None}
    assert deleted["details"]["who"] == closed["details"]["who"] == created["details"]["who"] == admin
    assert (created["details"]["token"], created["details"]["label"]) == (made["id"], "ci\\x1b[2J")
    assert (closed["details"]["tunnel"], closed["details"]["address"]) == (tunnel.id, "app.t.example.com")
    assert (refused["owner"], refused["details"]["at"]) == (None, "api")
    assert (forbidden["token_id"], forbidden["details"]["what"]) == (caller.token_id, "GET /api/tokens")
    assert re.fullmatch(r"[0-9-]{10}T[0-9:]{8}Z", created["at"])
    for secret in (made["token"], reader, ADMIN_TOKEN, "wrong"):
        assert f'"{secret}"' not in json.dumps(page)


async def test_audit_by_page_and_kind(bench: ApiBench) -> None:
    for number in range(5):
        await bench.token(f"t{number}")
    labels, cursor = [], ""
    while True:
        page = await value_of(await call(bench, "GET", f"/api/audit?limit=2&event=token_created{cursor}"))
        labels += [entry["details"]["label"] for entry in page["entries"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert labels == ["t4", "t3", "t2", "t1", "t0"]
    assert (await value_of(await call(bench, "GET", "/api/audit?event=replayed")))["entries"] == []


@pytest.mark.parametrize("query", ["limit=0", "cursor=x", "event=nothing", "event="])
async def test_A08_audit_is_strict(bench: ApiBench, query: str) -> None:
    response = await call(bench, "GET", f"/api/audit?{query}")
    assert response.status_code == 400
    assert (await error_of(response)).startswith(query.partition("=")[0])
