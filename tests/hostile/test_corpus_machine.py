"""The corpus against the machines of `wire/http1` alone: cut, judge, read, render; whole and in pieces (H63)."""

from __future__ import annotations

from dataclasses import dataclass, field

import h11
import pytest

from rustunnel_py.errors import HttpError
from rustunnel_py.wire.http1 import (
    REPLY_LIMITS,
    REQUEST_LIMITS,
    UNTIL_CLOSE,
    BodyReader,
    Headers,
    ReplyHead,
    RequestBlock,
    RequestHead,
    find_head_end,
    find_reply_head_end,
    forwarded_lines,
    judge_reply,
    judge_request,
    render_request,
    skip_leading_empty_lines,
)
from tests.hostile.corpus import CASES, REPLY_CASES, Case, Forwarded, ReplyCase

TUNNEL = "abc.localhost"
OURS = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"x-real-ip", b"forwarded")


@dataclass
class Arrived:
    """What reached the agent of one request."""

    head: RequestHead
    wire: bytes
    body: bytearray = field(default_factory=bytearray)
    trailers: Headers = ()
    complete: bool = False

    def data(self, data: memoryview) -> None:
        self.body += data

    def end(self, trailers: Headers) -> None:
        self.trailers = trailers
        self.complete = True


class Door:
    """A visitor's connection, as simple as one can be: no replies but those that refuse."""

    def __init__(self) -> None:
        self.arrived: list[Arrived] = []
        self.status = 0
        self._input = bytearray()
        self._looked = 0
        self._last: RequestBlock | None = None
        self._reader: BodyReader | None = None
        self._shut = False

    def feed(self, data: bytes) -> None:
        self._input += data
        try:
            while not self._shut and self._input and self._step():
                pass
        except HttpError as error:
            self.status = error.status
            self._shut = True

    def _step(self) -> bool:
        if self._reader is not None:
            used = self._reader.feed(memoryview(bytes(self._input)))
            del self._input[:used]
            if self._reader.done:
                self._reader = None
                self._shut = not self.arrived[-1].head.keep_alive
            return used > 0
        start = skip_leading_empty_lines(self._input)
        end = find_head_end(self._input, max(start, self._looked), REQUEST_LIMITS)
        if end < 0:
            self._looked = len(self._input)
            return False
        head = judge_request(self._input[start:end], REQUEST_LIMITS, self._last)
        del self._input[:end]
        self._looked = 0
        self._last = head.block
        self._take(head)
        return True

    def _take(self, head: RequestHead) -> None:
        if head.host != TUNNEL:
            self.status = 404
            self._shut = True
            return
        about = forwarded_lines("203.0.113.9", "http", head.block.host_line, 8080)
        arrived = Arrived(head, render_request(head, None, about, body=head.body))
        self.arrived.append(arrived)
        if head.body:
            self._reader = BodyReader(head.body, arrived, REQUEST_LIMITS)
        else:
            arrived.complete = True
            self._shut = head.is_upgrade or not head.keep_alive


def lines_of(wire: bytes) -> list[tuple[bytes, bytes]]:
    assert wire.endswith(b"\r\n\r\n")
    return [(name, value) for name, _, value in (line.partition(b": ") for line in wire[:-4].split(b"\r\n")[1:])]


def check_forwarded(arrived: Arrived, want: Forwarded) -> None:
    head = arrived.head
    assert (head.method, head.target, bytes(arrived.body)) == (want.method, want.target, want.body)
    assert arrived.complete
    assert arrived.trailers == want.trailers
    assert head.is_upgrade == want.upgrade
    assert arrived.wire.startswith(b"%b %b HTTP/1.1\r\n" % (want.method, want.target))
    lines = lines_of(arrived.wire)
    names = [name.lower() for name, _ in lines]
    for line in want.has:
        name, _, value = line.replace(b"{host}", TUNNEL.encode()).partition(b": ")
        assert [v for n, v in lines if n.lower() == name.lower()] == [value]
    assert not set(names) & set(want.lacks)
    for name in OURS:
        assert names.count(name) == 1
    assert {n.lower(): v for n, v in lines}[b"x-forwarded-for"] == b"203.0.113.9"
    check_h11_agrees(arrived)


def check_h11_agrees(arrived: Arrived) -> None:
    peer = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    peer.receive_data(arrived.wire)
    event = peer.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (arrived.head.method, arrived.head.target)
    assert [(bytes(n), bytes(v)) for n, v in event.headers.raw_items()] == lines_of(arrived.wire)


def play(case: Case, size: int) -> Door:
    raw = case.bytes_for(TUNNEL)
    door = Door()
    for at in range(0, len(raw), size):
        door.feed(raw[at : at + size])
    return door


def test_the_corpus_is_large_and_its_ids_are_unique() -> None:
    ids = [case.id for case in CASES] + [case.id for case in REPLY_CASES]
    assert len(CASES) >= 320
    assert len(ids) == len(set(ids))
    assert all(case.id.startswith(case.row + "-") for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_case(case: Case) -> None:
    door = play(case, 1 << 30)
    expect = case.expect
    complete = [arrived for arrived in door.arrived if arrived.complete]
    assert len(complete) == len(expect.forwarded)
    for arrived, want in zip(complete, expect.forwarded, strict=True):
        check_forwarded(arrived, want)
    if len(door.arrived) > len(complete):
        assert expect.begun or expect.waits
    if expect.statuses:
        assert door.status in expect.statuses
    else:
        assert door.status == 0


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_H63_every_split_gives_the_same(case: Case) -> None:
    whole = play(case, 1 << 30)
    # A byte at a time where that ends soon, else the size of small packets.
    for size in (1, 2, 3, 7) if len(case.raw) < 3000 else (1460,):
        split = play(case, size)
        assert split.status == whole.status
        assert [(a.wire, a.body, a.trailers, a.complete) for a in split.arrived] == [
            (a.wire, a.body, a.trailers, a.complete) for a in whole.arrived
        ]


class Local:
    """The server's side of one stream to the local service."""

    def __init__(self, method: bytes) -> None:
        self.method = method
        self.interim: list[int] = []
        self.head: ReplyHead | None = None
        self.body = bytearray()
        self.complete = False
        self.error: HttpError | None = None
        self.surplus = False
        self._input = bytearray()
        self._looked = 0
        self._reader: BodyReader | None = None

    def data(self, data: memoryview) -> None:
        self.body += data

    def end(self, trailers: Headers) -> None:
        self.complete = True

    def feed(self, data: bytes) -> None:
        self._input += data
        try:
            while self.error is None and self._input and self._step():
                pass
        except HttpError as error:
            self.error = error

    def eof(self) -> None:
        if self._reader is not None and self._reader.end_of_input():
            assert self.complete

    def _step(self) -> bool:
        if self.complete:
            self.surplus = True
            return False
        if self._reader is not None:
            used = self._reader.feed(memoryview(bytes(self._input)))
            del self._input[:used]
            return used > 0
        end = find_reply_head_end(self._input, self._looked, REPLY_LIMITS)
        if end < 0:
            self._looked = len(self._input)
            return False
        self._looked = 0
        head = judge_reply(self._input[:end], self.method, REPLY_LIMITS)
        del self._input[:end]
        if head.status < 200:
            if head.status in (100, 103):
                self.interim.append(head.status)
            return True
        self.head = head
        if head.body:
            self._reader = BodyReader(head.body, self, REPLY_LIMITS)
        else:
            self.complete = True
        return True


@pytest.mark.parametrize("size", [1 << 30, 1, 5], ids=["whole", "bytes", "fives"])
@pytest.mark.parametrize("case", REPLY_CASES, ids=[case.id for case in REPLY_CASES])
def test_reply(case: ReplyCase, size: int) -> None:
    raw = case.raw
    if size < 1460 < len(raw) / 2:
        size = 1460
    local = Local(case.method)
    for at in range(0, len(raw), size):
        local.feed(raw[at : at + size])
    if case.closes:
        local.eof()
    expect = case.expect
    assert tuple(local.interim) == expect.interim
    if not expect.relayed:
        assert local.head is None
        # Silence and a cut head have no error of their own: the link sees the end, or a deadline.
        assert local.error is None if case.closes and case.id != "H61-0.9" else local.error is not None
        if local.error is not None:
            assert local.error.status == 502
        return
    assert local.head is not None
    assert (local.head.status, bytes(local.body)) == (expect.status, expect.body)
    assert local.complete == (not expect.cut)
    assert (local.complete and local.head.keep_alive and not local.surplus) == expect.reusable
    if local.head.body == UNTIL_CLOSE:
        assert not local.head.keep_alive
