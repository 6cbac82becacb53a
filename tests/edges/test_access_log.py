"""The access log: a line a visit, as other programs read it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal

import pytest

from rustunnel_py.edges.access_log import FIELD_MAX, AccessLog
from tests.support.visitor_rig import HOST, Rig, get

NOW = datetime(2025, 6, 1, 12, 30, 15, 250_000, tzinfo=UTC)


def logged(rig: Rig, style: Literal["combined", "json"]) -> list[bytes]:
    lines: list[bytes] = []
    rig.shared.access = AccessLog(lines.append, style, now=lambda: NOW)
    return lines


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_line_of_json_has_every_field(rig: Rig) -> None:
    lines = logged(rig, "json")
    rig.send(get("/a?b=1", "User-Agent: it\xff", 'Referer: "there"'))
    rig.pump.now += 0.25
    rig.exchange.reply(b"HTTP/1.1 201 Made\r\nContent-Length: 5\r\n\r\nwhole")
    assert json.loads(lines[0]) == {
        "at": "2025-06-01T12:30:15.250Z",
        "visitor": "203.0.113.7",
        "scheme": "http",
        "host": HOST,
        "method": "GET",
        "path": "/a?b=1",
        "status": 201,
        "bytes": 5,
        "cut": False,
        "ms": 250.0,
        "referer": "\\x22there\\x22",
        "user_agent": "it\\xff",
        "id": rig.exchange.visit.id,
    }


def test_a_cut_reply_says_so_beside_its_status(rig: Rig) -> None:
    lines = logged(rig, "json")
    rig.send(get())
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    rig.exchange.reply_eof()
    rig.send(b"nonsense\r\n\r\n")
    fields: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [(one["status"], one["bytes"], one["cut"]) for one in fields] == [(200, 4, True), (400, 0, False)]


def test_a_line_is_one_line_whatever_was_sent(rig: Rig) -> None:
    lines = logged(rig, "combined")
    rig.send(get("/" + "x" * (FIELD_MAX + 10), 'User-Agent: "\\\t'))
    rig.exchange.reply(b"HTTP/1.1 204 None\r\n\r\n")
    line = "/" + "x" * (FIELD_MAX - 1)
    assert lines == [
        f'203.0.113.7 - - [01/Jun/2025:12:30:15 +0000] "GET {line} HTTP/1.1" 204 - "-" "\\x22\\x5c"\n'.encode()
    ]
