"""Control frames, decoded and encoded (wire spec section 2, reliability 3.4)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_args

import pytest

from rustunnel_py.errors import ControlError
from rustunnel_py.wire import control
from rustunnel_py.wire.control import (
    Auth,
    AuthOk,
    BadFields,
    BadFrame,
    GoingAway,
    HealthCheck,
    NewConnection,
    NotJson,
    Ping,
    Pong,
    RegisterTunnel,
    TunnelRegistered,
    UnknownType,
    UnregisterTunnel,
    VisitLine,
    Visits,
    decode_from_agent,
    decode_from_server,
    encode,
)
from tests.support.json_texts import ACCEPTED, REFUSED

if TYPE_CHECKING:
    import msgspec

REGISTER: dict[str, Any] = {
    "type": "register_tunnel",
    "request_id": "075bafe4-d5bf-4d39-94d6-77461adb1dd3",
    "protocol": "http",
    "subdomain": "demo",
    "local_addr": "localhost:3000",
}


def agent(**fields: object) -> control.AgentFrame:
    return decode_from_agent(json.dumps(fields))


def blamed(**fields: object) -> BadFrame:
    with pytest.raises(BadFrame) as caught:
        agent(**fields)
    return caught.value


@pytest.mark.parametrize("text", REFUSED)
def test_C01_what_is_no_json(text: bytes) -> None:
    for decode in (decode_from_agent, decode_from_server):
        with pytest.raises(NotJson):
            decode(text)


@pytest.mark.parametrize("text", ACCEPTED)
def test_C02_any_json_in_an_unknown_field_is_ignored(text: bytes) -> None:
    assert decode_from_agent(b'{"type":"ping","timestamp":5,"novelty":' + text + b"}") == Ping(timestamp=5)


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b'{"type":"ping","timestamp":' + b"1" * 60_000 + b"}",
        b'{"type":"ping","timestamp":1,"x":1e999}',
        b'{"type":"ping","timestamp":1,"timestamp":1}',
        b'{"type":"ping","timestamp":1,"x":{"a":1,"a":1}}',
        b'\xef\xbb\xbf{"type":"ping","timestamp":1}',
        '{"type":"ping","timestamp":1}'.encode("utf-16"),
        b'{"type":"ping","timestamp":NaN}',
        b'{"type":"ping","timestamp":1,"x":"\xff"}',
        b'{"type":"auth","token":"' + b"x" * 1024 * 1024 + b'","client_version":"1"}',
    ],
)
def test_C03_what_the_strict_reader_refuses(raw: bytes) -> None:
    with pytest.raises(NotJson):
        decode_from_agent(raw)


@pytest.mark.parametrize(
    "raw", [b"[]", b'"ping"', b"null", b"1", b"{}", b'{"type":1}', b'{"type":null}', b'{"type":["ping"]}']
)
def test_C04_what_is_no_frame(raw: bytes) -> None:
    for decode in (decode_from_agent, decode_from_server):
        with pytest.raises(BadFrame) as caught:
            decode(raw)
        assert (caught.value.type, caught.value.field) == ("", "type")


def test_C04_a_type_of_a_mebibyte() -> None:
    with pytest.raises(NotJson):
        agent(type="x" * 1024 * 1024)


def test_C05_unknown_types_are_told_apart_and_unknown_fields_ignored() -> None:
    with pytest.raises(UnknownType) as caught:
        agent(type="novelty\x1b[31m", a=1)
    assert caught.value.name == "novelty\x1b[31m"
    assert "\x1b" not in str(caught.value)
    assert isinstance(caught.value, ControlError)
    assert agent(type="pong", timestamp=1, novelty={"a": [1]}) == Pong(timestamp=1)
    with pytest.raises(UnknownType):
        agent(type="Ping", timestamp=1)


@pytest.mark.parametrize("name", sorted(set(control.SERVER_FRAMES) - set(control.AGENT_FRAMES)))
def test_C06_frames_that_an_agent_may_not_send(name: str) -> None:
    error = blamed(type=name, session_id="x", request_id="r")
    assert (error.type, error.field, error.request_id) == (name, "type", "r")


@pytest.mark.parametrize("name", sorted(set(control.AGENT_FRAMES) - set(control.SERVER_FRAMES)))
def test_C06_frames_that_a_server_may_not_send(name: str) -> None:
    with pytest.raises(BadFrame):
        decode_from_server(json.dumps({"type": name}))


@pytest.mark.parametrize("token", ["", "a\0b", "tеst-token", "x" * 10_000])
def test_C08_any_text_is_a_token_to_be_judged(token: str) -> None:
    frame = agent(type="auth", token=token, client_version="0.7.8")
    assert isinstance(frame, Auth)
    assert frame.token == token


@pytest.mark.parametrize("token", [None, 5, ["x"], {"a": 1}, True])
def test_C08_a_token_of_another_type(token: object) -> None:
    assert blamed(type="auth", token=token, client_version="1").field == "token"


@pytest.mark.parametrize(
    "tunnel_id", ["", "x", "{221abd57-aff6-432c-9502-af30bc30a156}", "221ABD57-AFF6-432C-9502-AF30BC30A156", "a" * 9000]
)
def test_C15_any_text_is_an_id_that_is_looked_up(tunnel_id: str) -> None:
    assert agent(type="unregister_tunnel", tunnel_id=tunnel_id) == UnregisterTunnel(tunnel_id=tunnel_id)


@pytest.mark.parametrize("port", [0, 22, -1, 70_000])
def test_C18_any_number_is_a_wish_that_is_judged_elsewhere(port: int) -> None:
    frame = agent(**REGISTER, port=port)
    assert isinstance(frame, RegisterTunnel)
    assert frame.port == port


def test_C18_a_text_where_a_port_belongs_names_field_and_request() -> None:
    error = blamed(**REGISTER, port="22")
    assert (error.type, error.field, error.request_id) == ("register_tunnel", "port", REGISTER["request_id"])


@pytest.mark.parametrize("timestamp", [0, 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_C19_timestamps_that_are_echoed_exactly(timestamp: int) -> None:
    frame = agent(type="ping", timestamp=timestamp)
    assert isinstance(frame, Ping)
    assert json.loads(encode(Pong(timestamp=frame.timestamp))) == {"type": "pong", "timestamp": timestamp}


@pytest.mark.parametrize("timestamp", [-1, -(2**63) - 1, 1.5, 2**64, 10**20 - 1, "1", None, True, [1]])
def test_C19_timestamps_that_are_refused(timestamp: object) -> None:
    for name in ("ping", "pong"):
        error = blamed(type=name, timestamp=timestamp)
        assert isinstance(error, BadFields)  # not the session's end: it costs this frame alone
        assert error.field == "timestamp"


@pytest.mark.parametrize("protocol", ["HTTP", "Http", "quic", "", 1, None])
def test_C20_protocols_are_compared_as_they_are(protocol: object) -> None:
    assert blamed(**REGISTER | {"protocol": protocol}).field == "protocol"


@pytest.mark.parametrize("protocol", ["http", "https", "tcp", "udp", "p2p"])
def test_C20_every_protocol_decodes(protocol: str) -> None:
    frame = agent(**REGISTER | {"protocol": protocol})
    assert isinstance(frame, RegisterTunnel)
    assert frame.protocol == protocol


def test_C21_a_client_version_comes_as_it_is() -> None:
    frame = agent(type="auth", token="t", client_version="1\x1b[31m\n" * 1000)
    assert isinstance(frame, Auth)
    assert len(frame.client_version) == 7000


def test_C22_a_server_may_not_send_a_gigabyte() -> None:
    with pytest.raises(NotJson):
        decode_from_server(b'{"type":"auth_error","message":"' + b"x" * control.FROM_SERVER_MAX + b'"}')


@pytest.mark.parametrize("field", ["request_id", "protocol", "local_addr"])
def test_missing_fields_are_named(field: str) -> None:
    without = {key: value for key, value in REGISTER.items() if key != field}
    error = blamed(**without)
    assert (error.field, error.reason) == (field, "is missing")
    assert error.request_id == without.get("request_id")
    assert blamed(**REGISTER | {field: None}).field == field


def test_fields_within_fields_are_named() -> None:
    check = {"kind": "tcp", "interval_secs": 5, "timeout_secs": 1, "max_failed": 3}
    assert blamed(**REGISTER, health_check=check | {"kind": "udp"}).field == "health_check.kind"
    assert blamed(**REGISTER, health_check=check | {"max_failed": -1}).field == "health_check.max_failed"
    assert blamed(**REGISTER, health_check={"kind": "tcp"}).field == "health_check.interval_secs"


def test_errors_quote_nothing_of_the_peers() -> None:
    error = blamed(**REGISTER | {"protocol": "\x1b[31mhunter2"})
    assert "hunter2" not in str(error)
    assert error.reason == "one of http, https, p2p, tcp, udp"
    tricky = blamed(**REGISTER | {"protocol": "' - at `$.port` Object missing required field `group`"})
    assert (tricky.field, tricky.reason) == ("protocol", error.reason)


@pytest.mark.parametrize("optional", ["subdomain", "group", "health_check", "port", "take_over", "proxy_protocol"])
def test_absent_and_null_are_the_same(optional: str) -> None:
    without = {key: value for key, value in REGISTER.items() if key != optional}
    assert agent(**without) == agent(**without | {optional: None})


def test_null_within_a_health_check_is_its_default() -> None:
    check = {"kind": "http", "interval_secs": 5, "timeout_secs": 1, "max_failed": 3, "http_expect_2xx": None}
    frame = agent(**REGISTER, health_check=check)
    assert isinstance(frame, RegisterTunnel)
    assert frame.health_check == HealthCheck(kind="http", interval_secs=5, timeout_secs=1, max_failed=3)
    assert frame.health_check.http_expect_2xx


def test_a_stock_frame_has_no_fields_of_ours_when_they_are_unset() -> None:
    assert json.loads(encode(AuthOk(session_id="s", server_version="0.7.0"))) == {
        "type": "auth_ok",
        "session_id": "s",
        "server_version": "0.7.0",
    }
    assert json.loads(encode(Auth(token="t", client_version="1"))) == {
        "type": "auth",
        "token": "t",
        "client_version": "1",
    }
    assert json.loads(encode(RegisterTunnel(request_id="r", protocol="tcp", local_addr="l"))) == {
        "type": "register_tunnel",
        "request_id": "r",
        "protocol": "tcp",
        "subdomain": None,
        "local_addr": "l",
    }
    assert json.loads(encode(TunnelRegistered(request_id="r", tunnel_id="t", public_url="u"))) == {
        "type": "tunnel_registered",
        "request_id": "r",
        "tunnel_id": "t",
        "public_url": "u",
        "assigned_port": None,
    }
    assert json.loads(encode(NewConnection(conn_id="c", client_addr="1.2.3.4:5", protocol="http"))) == {
        "type": "new_connection",
        "conn_id": "c",
        "client_addr": "1.2.3.4:5",
        "protocol": "http",
    }


OURS: list[tuple[str, control.AgentFrame | control.ServerFrame]] = [
    ("agent", Auth(token="t", client_version="1", features=("raw_data",), machine="m", instance="i")),
    ("agent", Auth(token="t", client_version="1", features=())),
    (
        "agent",
        RegisterTunnel(
            request_id="r",
            protocol="tcp",
            local_addr="l",
            port=20_005,
            take_over=True,
            host_header="h",
            proxy_protocol=2,
        ),
    ),
    (
        "server",
        AuthOk(session_id="s", server_version="1", features=("raw_data",), data_secret="d", region="r", https=False),
    ),
    ("server", NewConnection(conn_id="c", client_addr="a", protocol="http", tunnel_id="t")),
    (
        "server",
        Visits(visits=(VisitLine(tunnel_id="t", method="GET", path="/", status=200, ms=1.5, capture_id="c"),)),
    ),
    ("server", Visits(visits=())),
    ("server", GoingAway()),
]


@pytest.mark.parametrize(("sender", "frame"), OURS)
def test_fields_of_our_own_survive_the_wire(sender: str, frame: control.AgentFrame | control.ServerFrame) -> None:
    decode = decode_from_agent if sender == "agent" else decode_from_server
    assert decode(encode(frame)) == frame


def test_features_that_are_empty_are_features_all_the_same() -> None:
    assert json.loads(encode(Auth(token="t", client_version="1", features=())))["features"] == []
    frame = agent(type="auth", token="t", client_version="1", features=[])
    assert isinstance(frame, Auth)
    assert frame.features == ()


@pytest.mark.parametrize("version", [3, -1, "1", True])
def test_proxy_protocol_has_two_versions(version: object) -> None:
    assert blamed(**REGISTER, proxy_protocol=version).field == "proxy_protocol"


@pytest.mark.parametrize("frames", ["AGENT_FRAMES", "SERVER_FRAMES"])
def test_the_tables_hold_every_frame_under_its_own_tag(frames: str) -> None:
    table: dict[str, type[msgspec.Struct]] = getattr(control, frames)
    union = control.AgentFrame if frames == "AGENT_FRAMES" else control.ServerFrame
    assert set(table.values()) == set(get_args(union))
    for name, shape in table.items():
        assert shape.__struct_config__.tag == name
        assert shape.__struct_config__.frozen
