"""F17: what is forwarded of the corpus, read again by Node: it sees the same requests as we do, and nothing between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11
import pytest

from tests.hostile.corpus import CASES, Case
from tests.support.fake_link import OK
from tests.support.node_judge import Judgement, judge
from tests.support.visitor_rig import HOST, Rig

if TYPE_CHECKING:
    from collections.abc import Callable

FORWARDING = [case for case in CASES if case.expect.forwarded and not any(one.upgrade for one in case.expect.forwarded)]


@dataclass(slots=True)
class Read:
    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    trailers: list[tuple[bytes, bytes]]
    body: bytes


def forwarded(case: Case) -> list[bytes]:
    """The requests that reached the agent whole, as the bytes that a local service would read."""
    rig = Rig()
    rig.link.answer = OK
    connection = rig.connect()
    connection.feed(case.bytes_for(HOST))
    rig.link.run()
    return [bytes(exchange.canonical) for exchange in rig.link.exchanges if exchange.finished]


def by_h11(raw: bytes) -> list[Read]:
    """All requests of one kept connection; nothing may be left over."""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=256 * 1024)
    server.receive_data(raw)
    server.receive_data(b"")
    found: list[Read] = []
    while not isinstance(event := server.next_event(), h11.ConnectionClosed):
        assert isinstance(event, h11.Request), event
        body = bytearray()
        request, event = event, server.next_event()
        while isinstance(event, h11.Data):
            body += event.data
            event = server.next_event()
        assert isinstance(event, h11.EndOfMessage)
        headers = [(bytes(name), bytes(value)) for name, value in request.headers.raw_items()]
        trailers = [(bytes(name), bytes(value)) for name, value in event.headers.raw_items()]
        found.append(Read(bytes(request.method), bytes(request.target), headers, trailers, bytes(body)))
        server.send(h11.Response(status_code=204, headers=[]))
        server.send(h11.EndOfMessage())
        if server.our_state is h11.MUST_CLOSE:
            break
        server.start_next_cycle()
    assert server.trailing_data[0] == b""
    return found


@pytest.fixture(scope="module")
def verdicts() -> tuple[dict[str, bytes], dict[str, Judgement], frozenset[bytes]]:
    sent = {f"{case.row}-{case.id}": b"".join(forwarded(case)) for case in FORWARDING}
    judgements, methods = judge(sent)
    return sent, judgements, methods


@pytest.mark.parametrize("case", FORWARDING, ids=lambda case: f"{case.row}-{case.id}")
def test_F17_node_and_h11_agree_on_what_is_forwarded(
    case: Case, verdicts: tuple[dict[str, bytes], dict[str, Judgement], frozenset[bytes]]
) -> None:
    sent, judgements, methods = verdicts
    key = f"{case.row}-{case.id}"
    ours, theirs = by_h11(sent[key]), judgements[key]
    assert len(ours) == len(case.expect.forwarded)
    if any(one.method not in methods for one in ours):
        assert theirs.error == "HPE_INVALID_METHOD"  # Node serves the methods of a list; a tunnel is method-blind
        return
    assert theirs.error is None
    read = [Read(one.method, one.target, one.headers, one.trailers, one.body) for one in theirs.requests]
    assert [comparable(one) for one in read] == [comparable(one) for one in ours]


def comparable(one: Read) -> tuple[object, ...]:
    lower: Callable[[list[tuple[bytes, bytes]]], list[tuple[bytes, bytes]]] = lambda pairs: [  # noqa: E731
        (name.lower(), value) for name, value in pairs
    ]
    return one.method, one.target, lower(one.headers), lower(one.trailers), one.body


def test_F17_enough_of_the_corpus_reaches_the_judges() -> None:
    assert len(FORWARDING) > 60


def test_the_judge_sees_what_is_wrong() -> None:
    """A judge that says yes to everything is none."""
    smuggled = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    two = b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n"
    judgements, _ = judge({"smuggled": smuggled, "two": two})
    assert judgements["smuggled"].error is not None
    assert [one.target for one in judgements["two"].requests] == [b"/1", b"/2"]
