"""The static description of `/v1` says what the routes and structs say."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from rustunnel_py.api import rs_tunnel_shapes as shapes
from tests.support.leased import leased_house

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

STRUCTS: dict[str, type[msgspec.Struct]] = {
    "Ok": shapes.OkShown,
    "Error": shapes.ErrorShown,
    "Lease": shapes.LeaseShown,
    "Tunnel": shapes.TunnelShown,
    "NewTunnelWanted": shapes.NewTunnelWanted,
    "NewTunnel": shapes.NewTunnelShown,
    "Heartbeat": shapes.HeartbeatShown,
    "Metrics": shapes.MetricsShown,
    "RequestEvent": shapes.EventSent,
    "Telemetry": shapes.TelemetrySent,
    "Snapshot": shapes.SnapshotShown,
    "MetricsPoint": shapes.PointShown,
    "LoggedRequest": shapes.RequestShown,
    "LoginWanted": shapes.LoginWanted,
    "LoginStarted": shapes.LoginShown,
    "StatusWanted": shapes.StatusWanted,
    "LoginStatus": shapes.StatusShown,
    "ExchangeWanted": shapes.ExchangeWanted,
    "RefreshWanted": shapes.RefreshWanted,
    "LogoutWanted": shapes.LogoutWanted,
    "Profile": shapes.ProfileShown,
    "TokenPair": shapes.PairShown,
}
# For people, and for a typing error.
UNDESCRIBED = {"/v1/openapi.json", "/v1/auth/approve", "/v1/auth/slack/callback", "/v1/tunnels//heartbeat"}


def description() -> Any:
    return json.loads((resources.files("rustunnel_py.api") / "static" / "rs-tunnel.openapi.json").read_bytes())


def test_every_struct_is_described_and_nothing_else() -> None:
    assert set(description()["components"]["schemas"]) == set(STRUCTS)


@pytest.mark.parametrize("name", STRUCTS)
def test_keys(name: str) -> None:
    described = description()["components"]["schemas"][name]
    fields = msgspec.structs.fields(STRUCTS[name])
    assert list(described["properties"]) == [field.encode_name for field in fields] or set(described["properties"]) == {
        field.encode_name for field in fields
    }
    if name.endswith(("Wanted", "Event", "Telemetry")):
        assert set(described["required"]) == {field.encode_name for field in fields if field.required}
    strict = STRUCTS[name].__struct_config__.forbid_unknown_fields or not name.endswith("Wanted")
    assert (described.get("additionalProperties") is False) == strict


async def test_every_route_is_described(tmp_path: Path, mock_clock: MockClock) -> None:
    async with leased_house(tmp_path) as house:
        served = {
            (rule.rule.replace("<tunnel_name:id_or_host>", "{id}").replace("<id_or_host>", "{id}"), method.lower())
            for rule in house.app.url_map.iter_rules()
            if rule.endpoint.startswith("rs_tunnel.")
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        }
        described = {(path, method) for path, item in description()["paths"].items() for method in item}
        assert {route for route in served if route[0] not in UNDESCRIBED} == described
        answer = await house.call("GET", "/v1/openapi.json", None)
        assert answer.json == description()
        native = json.loads((await house.call("GET", "/api/openapi.json")).text)
        assert native["externalDocs"]["url"] == "/v1/openapi.json"
