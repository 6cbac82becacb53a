from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from rustunnel_py.errors import Hop, HopError
from rustunnel_py.hub.converse import SENT_AT_ONCE, Conversation, converse
from rustunnel_py.model.tunnel import Peer
from rustunnel_py.model.visit import Visit, VisitKind
from rustunnel_py.wire.http1 import REQUEST_LIMITS, judge_request
from tests.support.fake_link import FakeLink
from tests.support.fed_connection import FedPump

if TYPE_CHECKING:
    from rustunnel_py.wire.http1 import RequestHead

PEER = Peer("192.0.2.1", 1)


def request(body: int = 0) -> RequestHead:
    return judge_request(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % body, REQUEST_LIMITS)


class Talk:
    """A conversation in a task, and what it has heard."""

    def __init__(self, link: FakeLink, body: bytes = b"") -> None:
        self.link = link
        self.body = body
        self.heard: list[bytes] = []
        self.ended = False
        self.error: HopError | None = None
        self.reply: Conversation | None = None
        self.reading = trio.Event()

    async def run(self) -> None:
        visit = Visit("0" * 32, "t", VisitKind.HTTP, PEER, PEER)
        try:
            async with converse(FedPump(), self.link, visit, request(len(self.body)), self.body) as self.reply:
                await self.reading.wait()
                async for data in self.reply:
                    self.heard.append(data)
        except HopError as error:
            self.error = error
        self.ended = True


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_what_is_read_is_paid_for_and_no_sooner() -> None:
    talk = Talk(FakeLink())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.run)
        await settled()
        exchange = talk.link.exchanges[0]
        assert exchange.finished
        exchange.reply(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        await settled()
        assert (talk.heard, exchange.uncredited) == ([], 3)
        talk.reading.set()
        await settled()
        assert (talk.heard, exchange.uncredited) == ([b"abc"], 0)
        exchange.reply(b"def")
        await settled()
    assert (talk.heard, talk.ended, talk.error) == ([b"abc", b"def"], True, None)
    assert not exchange.was_reset


async def test_a_long_body_waits_for_room() -> None:
    talk = Talk(FakeLink(room=SENT_AT_ONCE), b"x" * (2 * SENT_AT_ONCE + 1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.run)
        await settled()
        exchange = talk.link.exchanges[0]
        assert len(exchange.body) == SENT_AT_ONCE
        exchange.give_room()
        await settled()
        assert bytes(exchange.body) == talk.body
        assert exchange.finished
        nursery.cancel_scope.cancel()
    assert exchange.was_reset


@pytest.mark.parametrize("when", ["before", "without a reply", "in the body"])
async def test_what_fails_is_raised(when: str) -> None:
    failure = HopError(Hop.LOCAL_SERVICE, 502, "cut-reply", "Cut.")
    talk = Talk(FakeLink(refusal=failure if when == "before" else None))
    talk.reading.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.run)
        await settled()
        if when != "before":
            exchange = talk.link.exchanges[0]
            if when == "in the body":
                exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
                await settled()
            exchange.fail(failure)
    assert talk.ended
    assert talk.error is failure
    assert talk.heard == ([b"abc"] if when == "in the body" else [])


async def test_leaving_early_resets() -> None:
    link = FakeLink()
    async with trio.open_nursery() as nursery:
        talk = Talk(link)
        nursery.start_soon(talk.run)
        await settled()
        link.exchanges[0].reply(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        await settled()
        nursery.cancel_scope.cancel()
    assert link.exchanges[0].was_reset
