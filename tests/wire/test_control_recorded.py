"""Every control message that the stock client and server were recorded with decodes; the server's go back equal."""

from __future__ import annotations

import json

import pytest

from rustunnel_py.wire import control
from rustunnel_py.wire.control import BadFrame, NotJson, UnknownType, decode_from_agent, decode_from_server, encode
from tests.support.golden import Line, control_messages, recordings

PROBED = "19-server-probes"  # a scripted client that also sends what is wrong


def messages(sender: str) -> list[tuple[str, Line]]:
    return [(name, line) for name in recordings() for line in control_messages(name) if line.sender == sender]


def test_every_message_of_the_recorded_server_goes_back_equal() -> None:
    seen = set()
    for name, line in messages("server"):
        raw = line.payload()
        frame = decode_from_server(raw)
        assert json.loads(encode(frame)) == json.loads(raw), name
        seen.add(json.loads(raw)["type"])
    assert seen >= {"auth_ok", "auth_error", "tunnel_registered", "tunnel_error", "new_connection", "ping", "pong"}
    assert seen >= {"p2p_connected", "p2p_error"}


def test_every_message_of_the_recorded_agent_decodes_and_goes_back_equal() -> None:
    seen = set()
    for name, line in messages("agent"):
        if name == PROBED:
            continue
        raw = line.payload()
        frame = decode_from_agent(raw)
        assert json.loads(encode(frame)) == json.loads(raw), name
        seen.add(type(frame))
    assert seen >= {control.Auth, control.RegisterTunnel, control.Ping, control.Pong, control.P2pConnect}
    assert seen >= {control.TunnelHealthy, control.TunnelUnhealthy}


def test_what_the_scripted_client_probed_is_told_apart() -> None:
    seen: dict[str, int] = {}
    for name, line in messages("agent"):
        if name != PROBED:
            continue
        try:
            verdict = type(decode_from_agent(line.payload())).__name__
        except (NotJson, UnknownType, BadFrame) as error:
            verdict = type(error).__name__
        seen[verdict] = seen.get(verdict, 0) + 1
    assert seen["NotJson"] == 2
    assert seen["UnknownType"] == 2
    assert seen["BadFields"] == 2  # no client_version; protocol "gopher"
    assert seen["DataStreamOpen"] == seen["TunnelHealthy"] == 1
    assert (seen["RegisterTunnel"], seen["UnregisterTunnel"]) == (30, 3)


@pytest.mark.parametrize("name", ["14-group-health", "15-p2p-relay", "13-udp"])
def test_group_p2p_and_udp_wishes_decode(name: str) -> None:
    wishes = [
        frame
        for line in control_messages(name)
        if line.sender == "agent" and isinstance(frame := decode_from_agent(line.payload()), control.RegisterTunnel)
    ]
    assert wishes
    if name.startswith("14"):
        assert all(wish.group_key_hash and wish.health_check for wish in wishes)
    elif name.startswith("15"):
        assert any(wish.protocol == "p2p" and wish.p2p_name and wish.p2p_secret_hash for wish in wishes)
    else:
        assert {wish.protocol for wish in wishes} == {"udp"}
