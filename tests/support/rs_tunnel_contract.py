"""What the rs-tunnel CLI validates, written by hand: exact key sets and types. Each check raises AssertionError."""

from __future__ import annotations

import re
from typing import Any

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
COUNTS = ("ttl", "opn", "requests", "errors", "bytes")
STATUSES = {"creating", "active", "stopping", "stopped", "failed"}


def keys(value: Any, wanted: str) -> None:
    assert isinstance(value, dict), value
    assert list(value) == wanted.split(), (list(value), wanted)


def is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def is_instant(value: Any) -> bool:
    return isinstance(value, str) and INSTANT.fullmatch(value) is not None


def is_milliseconds(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and value >= 0)


def check_created(body: Any) -> None:
    keys(body, "tunnelId hostname cloudflaredToken tunnelRunToken heartbeatIntervalSec leaseTimeoutSec")
    assert UUID.fullmatch(body["tunnelId"])
    assert re.fullmatch(r"[a-z0-9-]{1,32}\.[a-z0-9.-]+", body["hostname"])
    assert is_text(body["cloudflaredToken"])
    assert is_text(body["tunnelRunToken"])
    assert type(body["heartbeatIntervalSec"]) is int
    assert type(body["leaseTimeoutSec"]) is int
    assert 0 < body["heartbeatIntervalSec"] < body["leaseTimeoutSec"]


def check_list(body: Any) -> None:
    assert isinstance(body, list)
    for one in body:
        keys(one, "id hostname slug status requestedPort createdAt lease stoppedAt lastError")
        assert UUID.fullmatch(one["id"])
        assert one["hostname"].partition(".")[0] == one["slug"]
        assert one["status"] in STATUSES
        assert type(one["requestedPort"]) is int
        assert 1 <= one["requestedPort"] <= 65535
        assert is_instant(one["createdAt"])
        if one["lease"] is not None:
            keys(one["lease"], "lastHeartbeatAt expiresAt")
            assert all(is_instant(value) for value in one["lease"].values())
        assert one["stoppedAt"] is None or is_instant(one["stoppedAt"])
        assert one["lastError"] is None or isinstance(one["lastError"], str)


def check_heartbeat(body: Any) -> None:
    keys(body, "ok expiresAt")
    assert body["ok"] is True
    assert is_instant(body["expiresAt"])


def check_ok(body: Any) -> None:
    assert body == {"ok": True}


def check_live(body: Any) -> None:
    assert isinstance(body, list)
    for one in body:
        keys(one, "tunnelId receivedAt region metrics")
        assert UUID.fullmatch(one["tunnelId"])
        assert is_instant(one["receivedAt"])
        assert one["region"] is None or is_text(one["region"])
        metrics = one["metrics"]
        keys(metrics, "ttl opn rt1Ms rt5Ms p50Ms p90Ms requests errors bytes")
        assert all(is_count(metrics[name]) for name in COUNTS)
        assert all(is_milliseconds(metrics[name]) for name in ("rt1Ms", "rt5Ms", "p50Ms", "p90Ms"))


def check_points(body: Any) -> None:
    assert isinstance(body, list)
    for one in body:
        keys(one, "capturedAt ttl opn rt1Ms p90Ms requests errors bytes")
        assert is_instant(one["capturedAt"])
        assert all(is_count(one[name]) for name in COUNTS)
        assert all(is_milliseconds(one[name]) for name in ("rt1Ms", "p90Ms"))


def check_requests(body: Any) -> None:
    assert isinstance(body, list)
    for one in body:
        keys(one, "ingestedAt startedAt method path statusCode durationMs responseBytes error protocol")
        assert is_instant(one["ingestedAt"])
        assert is_instant(one["startedAt"])
        assert is_text(one["method"])
        assert one["path"].startswith("/")
        assert type(one["statusCode"]) is int
        assert 100 <= one["statusCode"] <= 599
        assert is_count(one["durationMs"])
        assert one["responseBytes"] is None or is_count(one["responseBytes"])
        assert type(one["error"]) is bool
        assert one["protocol"] in ("http", "ws")


def check_started(body: Any) -> None:
    keys(body, "authorizeUrl state")
    assert re.match(r"https?://[^/]+/", body["authorizeUrl"])
    assert len(body["state"]) >= 10


def check_status(body: Any) -> None:
    if body.get("status") == "authorized":
        keys(body, "status loginCode")
        assert len(body["loginCode"]) >= 10
    else:
        keys(body, "status")
        assert body["status"] in ("pending", "expired")


def check_pair(body: Any) -> None:
    keys(body, "accessToken refreshToken expiresInSec profile")
    assert is_text(body["accessToken"])
    assert len(body["refreshToken"]) >= 10
    assert type(body["expiresInSec"]) is int
    assert body["expiresInSec"] > 0
    keys(body["profile"], "email slackUserId slackTeamId")
    assert re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", body["profile"]["email"])
    assert isinstance(body["profile"]["slackUserId"], str)
    assert isinstance(body["profile"]["slackTeamId"], str)


def check_error(body: Any) -> None:
    assert list(body) in (["code", "message"], ["code", "message", "details"])
    assert is_text(body["code"])
    assert is_text(body["message"])


QUIET_METRICS: dict[str, object] = {
    "ttl": 0,
    "opn": 0,
    "rt1Ms": None,
    "rt5Ms": None,
    "p50Ms": None,
    "p90Ms": None,
    "requests": 0,
    "errors": 0,
    "bytes": 0,
}
"""The metrics of a tunnel that nobody has visited."""
