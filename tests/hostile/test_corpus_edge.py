"""The corpus through a Visitor, with the fake link as the recording agent: none or canonical requests, nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import h11
import pytest

from rustunnel_py.wire.http1 import websocket_accept
from tests.hostile.corpus import CASES, REPLY_CASES, Case, Forwarded, ReplyCase
from tests.support.fake_link import OK, FakeExchange
from tests.support.visitor_rig import HOST, Rig, get

if TYPE_CHECKING:
    from tests.support.fed_connection import FedConnection

STATUS_LINE = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [^\r\n]*\r\n")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
OURS = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"x-real-ip", b"forwarded")


def answer(exchange: FakeExchange) -> bytes:
    if not exchange.request.is_upgrade:
        return OK
    accept = websocket_accept(exchange.request.block.websocket_key)
    return SWITCH + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"


def play(rig: Rig, raw: bytes, step: int) -> FedConnection:
    rig.link.answer = answer
    connection = rig.connect()
    for start in range(0, len(raw), step):
        connection.feed(raw[start : start + step])
        rig.link.run()
    return connection


def own_answers(connection: FedConnection) -> list[bytes]:
    """What the edge answered itself; the link's replies are taken out."""
    own = bytes(connection.written)
    for reply in (OK, OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")):
        own = own.replace(reply, b"")
    own = own.replace(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok", b"")
    own = own.replace(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"")  # to HEAD
    return [own[match.start() :] for match in STATUS_LINE.finditer(own) if match[1] != b"101"]


def check_request(exchange: FakeExchange, wanted: Forwarded) -> None:
    """The request as it is on the wire, read again by h11, is the one that was wanted."""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=128 * 1024)
    server.receive_data(bytes(exchange.canonical))
    request = server.next_event()
    assert isinstance(request, h11.Request)
    assert (bytes(request.method), bytes(request.target)) == (wanted.method, wanted.target)
    body = bytearray()
    event = server.next_event()
    while isinstance(event, h11.Data):
        body += event.data
        event = server.next_event()
    assert isinstance(event, h11.EndOfMessage)
    assert body == wanted.body == exchange.body
    assert server.trailing_data[0] == b""
    names = [name for name, _ in request.headers]
    assert len([name for name in names if name in (b"content-length", b"transfer-encoding")]) <= 1
    assert names.count(b"host") == 1
    for name in OURS:
        assert names.count(name) == 1, name
    head = bytes(exchange.canonical).partition(b"\r\n\r\n")[0] + b"\r\n"
    for line in wanted.has:
        assert b"\r\n" + line.replace(b"{host}", HOST.encode()) + b"\r\n" in head
    for name in wanted.lacks:
        assert name not in names or name in OURS, name
    assert exchange.trailers == wanted.trailers
    assert exchange.request.is_upgrade == wanted.upgrade


@pytest.mark.parametrize("step", [1 << 20, 1], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.row}-{case.id}")
def test_H01_H67_none_or_canonical_requests(case: Case, step: int) -> None:
    raw = case.bytes_for(HOST)
    if step == 1 and len(raw) > 70_000:
        step = 997
    rig = Rig()
    connection = play(rig, raw, step)
    expect = case.expect
    if expect.waits:
        assert not connection.is_over
        while not connection.is_over:
            connection.expire(rig.pump)
    complete = [exchange for exchange in rig.link.exchanges if exchange.finished]
    begun = [exchange for exchange in rig.link.exchanges if not exchange.finished]
    assert len(complete) == len(expect.forwarded)
    for exchange, wanted in zip(complete, expect.forwarded, strict=True):
        check_request(exchange, wanted)
    assert len(begun) <= int(expect.begun or expect.waits)
    assert all(exchange.was_reset for exchange in begun)
    check_answer(case, connection)
    rig.assert_clean()


def check_answer(case: Case, connection: FedConnection) -> None:
    answers = own_answers(connection)
    expect = case.expect
    if expect.waits:
        assert [answer for answer in answers if not answer.startswith(b"HTTP/1.1 408 ")] == []
    elif expect.statuses and not (expect.dropped and not answers):
        assert len(answers) == 1
        status = int(answers[0][9:12])
        assert status in expect.statuses
        if status == 404:
            assert not connection.is_over or b"\r\nConnection: close\r\n" in answers[0]
        else:
            assert b"\r\nConnection: close\r\n" in answers[0]
            assert connection.end in ("linger", "close")
    elif expect.dropped:
        assert connection.is_over
    else:
        assert answers == []


@pytest.mark.parametrize("case", REPLY_CASES, ids=lambda case: f"{case.row}-{case.id}")
def test_H49_H62_what_a_local_service_answers(case: ReplyCase) -> None:
    rig = Rig()
    connection = rig.send(get("/", method=case.method.decode("ascii")))
    exchange = rig.exchange
    exchange.reply(case.raw)
    if case.closes:
        exchange.reply_eof()
    expect = case.expect
    if not exchange.over:
        connection.expire(rig.pump)
        assert int(connection.written[9:12]) == 504 or expect.cut
        return
    written = bytes(connection.written)
    statuses = [int(status) for status in STATUS_LINE.findall(written)]
    interims = [status for status in statuses if status < 200]
    assert interims == list(expect.interim)[: rig.limits.interims]
    assert statuses[-1] == expect.status
    assert (connection.end == "cut") == expect.cut
    if expect.relayed and not expect.cut:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=case.method, target=b"/", headers=[(b"Host", b"x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(written)
        body = bytearray()
        event = client.next_event()
        while not isinstance(event, h11.EndOfMessage):
            if isinstance(event, h11.Data):
                body += event.data
            assert event is not h11.NEED_DATA
            event = client.next_event()
        assert body == expect.body
    if not expect.relayed:
        assert b"local service" in written
    rig.assert_clean()
