from __future__ import annotations

import gc
import gzip
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from rustunnel_py.config import InspectConfig
from rustunnel_py.errors import Forbidden, Hop, HopError, NotFound, StoreError, Unavailable
from rustunnel_py.hub import inspector as inspector_module
from rustunnel_py.model.capture import Capture, Kind
from rustunnel_py.store.captures import Captures, Filter
from tests.support import secrets40
from tests.support.fake_link import FakeLink
from tests.support.fed_connection import FedConnection
from tests.support.inspected import ADMIN, NOW, OWNER, READER, STRANGER, Inspected, inspected, inspector_of
from tests.support.visitor_rig import get, post
from tests.wire.test_messages import frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Inspected]:
    async with inspected(tmp_path) as at:
        yield at


async def last(at: Inspected) -> Capture:
    return (await at.inspector.recent(OWNER, at.tunnel_id, 1))[0]


def visit(at: Inspected, request: bytes, reply: bytes | None = OK) -> None:
    at.rig.link.answer = reply
    at.rig.send(request)


# what is kept of an exchange


async def test_an_exchange_in_full(at: Inspected) -> None:
    connection = at.rig.connect()
    connection.feed(post(b"hello", "X-One: 1", "x-TWO: 2", "X-One: 3", target="/a?b=1"))
    at.rig.pump.now += 0.25
    at.rig.exchange.reply(b"HTTP/1.1 201 Made\r\nX-Reply: yes\r\nContent-Length: 5\r\n\r\nwor")
    at.rig.pump.now += 0.5
    at.rig.exchange.reply(b"ld")
    capture = await last(at)
    assert (capture.method, capture.path, capture.minor, capture.scheme) == ("POST", "/a?b=1", 1, "http")
    assert capture.request_headers == (
        (b"Host", b"app.example.test"),
        (b"Content-Length", b"5"),
        (b"X-One", b"1"),
        (b"x-TWO", b"2"),
        (b"X-One", b"3"),
    )
    assert (capture.request_body, capture.request_bytes, capture.request_clipped) == (b"hello", 5, False)
    assert (capture.status, capture.reason, capture.response_body) == (201, "Made", b"world")
    assert capture.response_headers == ((b"X-Reply", b"yes"), (b"Content-Length", b"5"))
    assert (capture.queue_ms, capture.agent_ms, capture.first_byte_ms, capture.duration_ms) == (0, 250, 250, 750)
    assert str(capture.visitor) == "203.0.113.7:50000"
    assert (capture.hop, capture.code, capture.kind, capture.host) == (None, None, Kind.HTTP, "app.example.test")
    assert at.rig.told[-1][4] == capture.id.replace("-", "")


async def test_bodies_to_the_cap_and_true_counts(tmp_path: Path) -> None:
    async with inspected(tmp_path, InspectConfig(body_max_bytes=10)) as at:
        connection = at.rig.connect()
        connection.feed(post(b"x" * 25)[:-20])
        connection.feed(b"x" * 20)
        at.rig.exchange.reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n9\r\nefghijklm\r\n")
        at.rig.exchange.reply(b"0\r\nX-After: all\r\n\r\n")
        capture = await last(at)
        assert (capture.request_body, capture.request_bytes, capture.request_clipped) == (b"x" * 10, 25, True)
        assert (capture.response_body, capture.response_bytes, capture.response_clipped) == (b"abcdefghij", 13, True)
        assert capture.response_trailers == ((b"X-After", b"all"),)


async def test_A16_binary_bodies_stay_as_they_are(at: Inspected) -> None:
    noise = bytes(range(256)) * 3
    visit(at, post(noise), b"HTTP/1.1 200 OK\r\nContent-Length: 768\r\n\r\n" + noise)
    await at.inspector.write()
    stored = await at.captures.get(at.tunnel_id, (await last(at)).id)
    assert stored is not None
    assert (stored.request_body, stored.response_body) == (noise, noise)


async def test_one_connection_one_id(at: Inspected) -> None:
    at.rig.link.answer = OK
    connection = at.rig.send(get("/1"))
    at.rig.send(get("/2"), connection)
    at.rig.send(get("/3"))
    third, second, first = await at.inspector.recent(OWNER, at.tunnel_id)
    assert first.connection_id == second.connection_id != third.connection_id


async def test_the_hop_that_failed(at: Inspected) -> None:
    at.rig.send(get("/"))
    at.rig.exchange.fail(HopError(Hop.LOCAL_SERVICE, 502, "local-service-refused", "Nobody listens there."))
    capture = await last(at)
    assert (capture.status, capture.hop, capture.code) == (502, "local service", "local-service-refused")
    assert b"Nobody listens there." in capture.response_body
    assert (b"X-Request-Id", capture.id.replace("-", "").encode()) in capture.response_headers


async def test_a_cut_reply_and_a_visitor_who_left(at: Inspected) -> None:
    at.rig.send(get("/cut"))
    at.rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    at.rig.exchange.reply_eof()
    capture = await last(at)
    assert (capture.status, capture.code, capture.response_bytes) == (200, "cut-reply", 4)
    connection = at.rig.send(get("/left"))
    connection.lose()
    capture = await last(at)
    assert (capture.status, capture.hop, capture.code) == (499, None, "visitor-left")


async def test_what_cut_a_reply_is_told(at: Inspected) -> None:
    beginning = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n" + b"x" * 400
    connection = at.rig.connect(FedConnection(high_water=100))
    visitor = connection.sink

    async def told(end: Callable[[], object]) -> tuple[int, str | None, str | None]:
        end()
        capture = await last(at)
        assert capture.response_bytes == 400
        return capture.status, capture.hop, capture.code

    at.rig.send(get(), connection)
    at.rig.exchange.reply(beginning)
    assert await told(visitor.end) == (200, "edge", "server-stopped")  # type: ignore[attr-defined]
    connection = at.rig.send(get(), at.rig.connect(FedConnection(high_water=100)))
    at.rig.exchange.reply(beginning)
    assert await told(lambda: connection.expire(at.rig.pump)) == (200, None, "slow-reader")
    connection = at.rig.send(get())
    at.rig.exchange.reply(beginning)
    connection.expire(at.rig.pump)
    assert await told(lambda: connection.expire(at.rig.pump)) == (200, "local service", "stalled-reply")
    connection = at.rig.send(get())
    at.rig.exchange.reply(beginning)
    assert await told(connection.lose) == (200, None, "visitor-left")


async def test_a_websocket_and_its_messages(at: Inspected) -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", KEY)
    connection = at.rig.send(get("/ws", *upgrade))
    at.rig.exchange.reply(SWITCHING + frame(1, b"hello"))
    connection.feed(frame(1, b'{"token":"SECRET"}', mask=b"abcd") + frame(9, b"p", mask=b"abcd"))
    connection.lose()
    capture = await last(at)
    assert (capture.status, capture.kind) == (101, Kind.WEBSOCKET)
    assert (capture.messages_forth, capture.messages_back) == (2, 1)
    assert [(m.forth, m.kind, m.content) for m in capture.messages] == [
        (False, "text", b"hello"),
        (True, "text", b'{"token":"[redacted]"}'),
        (True, "ping", b"p"),
    ]
    assert capture.messages[1].size == 18
    assert (capture.request_bytes, capture.response_bytes) == (31, 7)


async def test_an_event_stream_and_its_events(at: Inspected) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    at.rig.send(get("/events"))
    at.rig.exchange.reply(head + b"d\r\ndata: one\n\nda\r\n")
    at.rig.pump.now += 2
    at.rig.exchange.reply(b"9\r\nta: two\n\n\r\n0\r\n\r\n")
    capture = await last(at)
    assert (capture.kind, capture.messages_back) == (Kind.EVENTS, 2)
    assert [(m.content, m.at_ms) for m in capture.messages] == [(b"data: one\n\n", 0), (b"data: two\n\n", 2000)]


# memory and store


async def test_the_newest_500_and_older_ones_from_the_store(tmp_path: Path) -> None:
    async with inspected(tmp_path, InspectConfig(ring_size=5)) as at:
        for number in range(4):
            visit(at, get(f"/{number}"))
        await at.inspector.write()
        for number in range(4, 8):
            visit(at, get(f"/{number}"))
        shown = await at.inspector.recent(OWNER, at.tunnel_id, 50)
        assert [capture.path for capture in shown] == [f"/{number}" for number in range(7, -1, -1)]
        first = await at.inspector.page(OWNER, at.tunnel_id, None, 3)
        second = await at.inspector.page(OWNER, at.tunnel_id, first.cursor, 3)
        third = await at.inspector.page(OWNER, at.tunnel_id, second.cursor, 3)
        paths = [capture.path for page in (first, second, third) for capture in page.captures]
        assert paths == [f"/{number}" for number in range(7, -1, -1)]
        assert third.cursor is None


async def test_what_is_overwritten_before_its_turn_is_counted(tmp_path: Path) -> None:
    async with inspected(tmp_path, InspectConfig(ring_size=3, rows_per_second=2)) as at:
        for number in range(5):
            visit(at, get(f"/{number}"))
        assert at.inspector.not_stored(at.tunnel_id) == 2
        await at.inspector.write()
        status = at.inspector.status()
        assert (status.not_stored, status.stored, status.waiting, status.in_store) == (2, 2, 1, 2)
        found = await at.captures.search(at.tunnel_id, Filter(), None, 10)
        assert [capture.path for capture in found.captures] == ["/4", "/3"]
        await at.inspector.write()
        assert at.inspector.status().stored == 3


async def test_the_rate_is_shared_evenly(tmp_path: Path) -> None:
    async with inspected(tmp_path, InspectConfig(rows_per_second=6)) as at:
        other = at.rig.add_tunnel("other.example.test", at.rig.link)
        visit(at, get("/quiet", host="other.example.test"))
        for number in range(20):
            visit(at, get(f"/{number}"))
        await at.inspector.write()
        assert at.captures.shares[other.id].rows == 1
        assert at.captures.shares[at.tunnel_id].rows == 5


async def test_two_busy_tunnels_get_the_same(tmp_path: Path) -> None:
    async with inspected(tmp_path, InspectConfig(rows_per_second=6)) as at:
        other = at.rig.add_tunnel("other.example.test", at.rig.link)
        for number in range(20):
            visit(at, get(f"/{number}", host="other.example.test"))
            visit(at, get(f"/{number}"))
        await at.inspector.write()
        assert [at.captures.shares[one].rows for one in (other.id, at.tunnel_id)] == [3, 3]


async def test_memory_only(tmp_path: Path) -> None:
    async with inspected(tmp_path, InspectConfig(rows_per_second=0)) as at:
        visit(at, get("/"))
        await at.inspector.write()
        await at.inspector.flush()
        assert (await last(at)).path == "/"
        at.rig.registry.release(at.rig.tunnel)
        await at.inspector.write()
        status = at.inspector.status()
        assert (status.in_memory, status.stored, status.in_store) == (0, 0, 0)


async def test_the_bytes_over_all_tunnels_are_bounded(tmp_path: Path) -> None:
    bound = 2 * 2**20
    async with inspected(tmp_path, InspectConfig(ring_bytes=bound)) as at:
        hosts = [f"t{number}.example.test" for number in range(10)]
        for host in hosts:
            at.rig.add_tunnel(host, at.rig.link)
        body = b"x" * 16_384
        for number in range(400):
            visit(at, post(body, host=hosts[number % 10]))
        status = at.inspector.status()
        assert status.bytes_in_memory <= bound
        assert status.in_memory > 90


async def test_an_ended_tunnel_is_written_out_and_freed_and_stays_readable(at: Inspected) -> None:
    for number in range(3):
        visit(at, get(f"/{number}"))
    at.rig.registry.release(at.rig.tunnel)
    await at.inspector.write()
    assert at.inspector.status().in_memory == 0
    assert [capture.path for capture in await at.inspector.recent(OWNER, at.tunnel_id)] == ["/2", "/1", "/0"]
    with pytest.raises(NotFound):
        await at.inspector.recent(STRANGER, at.tunnel_id)


async def test_an_exchange_that_outlives_its_tunnel_is_kept(at: Inspected) -> None:
    visit(at, get("/before"))
    at.rig.send(get("/long"))
    exchange = at.rig.exchange
    at.rig.registry.release(at.rig.tunnel)
    await at.inspector.write()
    exchange.reply(OK)
    await at.inspector.write()
    assert [capture.path for capture in await at.inspector.recent(OWNER, at.tunnel_id)] == ["/long", "/before"]
    assert at.inspector.status().in_memory == 0


async def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    async with inspected(tmp_path) as at:
        visit(at, get("/old"))
        await at.inspector.write()
        old = await last(at)
    async with inspected(tmp_path) as again:
        visit(again, get("/new"))
        assert (await last(again)).seq > old.seq
        assert (await again.inspector.get(OWNER, old.tunnel_id, old.id)) == old


async def test_run_writes_every_second_and_at_the_end(at: Inspected) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at.inspector.run)
        visit(at, get("/"))
        with trio.fail_after(10):
            while at.inspector.status().stored == 0:
                await trio.lowlevel.checkpoint()
        visit(at, get("/late"))
        nursery.cancel_scope.cancel()
    assert at.inspector.status().waiting == 0


# redaction


async def test_forty_secrets_are_nowhere(at: Inspected) -> None:
    connection = at.rig.connect()
    body = secrets40.request_body()
    lines = [*secrets40.request_headers(), "Content-Type: application/json"]
    connection.feed(post(body, *lines, target=secrets40.target()))
    answer = secrets40.response_body()
    head = ["HTTP/1.1 200 OK", "Content-Type: text/html", "Content-Encoding: gzip", "Transfer-Encoding: chunked"]
    head += [*secrets40.response_headers(), "Trailer: X-Session-Token"]
    at.rig.exchange.reply("\r\n".join(head).encode() + b"\r\n\r\n%x\r\n%b\r\n" % (len(answer), answer))
    at.rig.exchange.reply(b"0\r\n" + secrets40.trailer().encode() + b"\r\n\r\n")
    visit(at, post(secrets40.form(), "Content-Type: application/x-www-form-urlencoded"))
    stream = secrets40.events()
    visit(at, get("/e"), None)
    at.rig.exchange.reply(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(stream), stream)
    )
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", KEY)
    socket = at.rig.send(get("/ws", *upgrade))
    at.rig.exchange.reply(SWITCHING)
    socket.feed(frame(1, secrets40.message(), mask=b"abcd"))
    with at.inspector.look_on(OWNER, at.tunnel_id) as viewer:
        socket.lose()
        recording = await viewer.next()
        assert recording is not None
        told = [repr(await at.inspector.view(recording)), repr(recording)]
    await at.inspector.write()
    told.append(repr(await at.inspector.recent(OWNER, at.tunnel_id)))
    found = await at.captures.search(at.tunnel_id, Filter(), None, 10)
    assert len(found.captures) == 4
    told += [repr(found), at.bytes_on_disk().decode("latin-1")]
    told += [
        gzip.decompress(capture.response_body).decode()
        for capture in found.captures
        if capture.response_headers[1:2] and capture.response_headers[1][1] == b"gzip"
    ]
    assert len(told) == 6
    assert [text.index(secrets40.PLANTED) for text in told if secrets40.PLANTED in text] == []


async def test_tiers_by_host_and_by_tunnel(tmp_path: Path) -> None:
    async with inspected(tmp_path, InspectConfig(redact_hosts=("bare.*=none", "*=strict"))) as at:
        bare = at.rig.add_tunnel("bare.example.test", at.rig.link)
        visit(at, get("/?token=x", host="bare.example.test"))
        assert (await at.inspector.recent(OWNER, bare.id))[0].path == "/?token=x"
        visit(at, get("/?a=x"))
        assert (await last(at)).path == "/?a=[redacted]"
        at.inspector.set_tier(OWNER, at.tunnel_id, "standard")
        assert (await last(at)).path == "/?a=x"


# searching


async def test_searching(at: Inspected) -> None:
    visit(at, get("/items?page=1", "X-Kind: blue"))
    visit(at, post(b"some Words here", target="/items"), b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    for stored in (False, True):
        if stored:
            await at.inspector.write()

        async def paths(stored: bool = stored, **wanted: object) -> list[str]:
            found = await at.inspector.search(OWNER, at.tunnel_id, Filter(**wanted))  # type: ignore[arg-type]
            return [capture.path for capture in found.captures]

        assert await paths(method="post") == ["/items"]
        assert await paths(statuses=(200, 299)) == ["/items?page=1"]
        assert await paths(path="ITEMS?") == ["/items?page=1"]
        assert await paths(header="x-kind: BLUE") == ["/items?page=1"]
        assert await paths(header="x-kind: red") == []
        assert await paths(header="x-ki") == ["/items?page=1"]
        assert await paths(header="blue") == []
        assert await paths(body=b"words HERE") == ["/items"]
        assert await paths(since=NOW - timedelta(days=1)) == ["/items", "/items?page=1"]
        assert await paths(until=NOW - timedelta(days=1)) == []
        assert await paths(method="GET", body=b"words") == []


async def test_the_right_words_for_what_is_not_found(at: Inspected) -> None:
    other = at.rig.add_tunnel("other.example.test", at.rig.link)
    visit(at, get("/"))
    capture = await last(at)
    for _ in range(2):
        with pytest.raises(NotFound, match="request does not belong to this tunnel"):
            await at.inspector.get(OWNER, other.id, capture.id)
        with pytest.raises(NotFound, match="request not found"):
            await at.inspector.get(OWNER, at.tunnel_id, "00000000-0000-4000-8000-000000000000")
        with pytest.raises(NotFound, match="request not found"):
            await at.inspector.get(OWNER, at.tunnel_id, "no id")
        with pytest.raises(NotFound, match="tunnel not found"):
            await at.inspector.get(STRANGER, at.tunnel_id, capture.id)
        assert await at.inspector.get(ADMIN, at.tunnel_id, capture.id.replace("-", "")) == capture
        await at.inspector.write()


# changing


async def test_what_is_deleted_while_the_writer_waits_stays_deleted(at: Inspected) -> None:
    visit(at, get("/"))
    wanted = (await last(at)).id
    async with trio.open_nursery() as nursery, at.inspector._writer.writing:
        nursery.start_soon(at.inspector.delete, OWNER, at.tunnel_id, wanted)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(at.inspector.write)
        await trio.testing.wait_all_tasks_blocked()
    assert await at.inspector.recent(OWNER, at.tunnel_id) == []


async def test_delete_and_pin(at: Inspected) -> None:
    for number in range(3):
        visit(at, get(f"/{number}"))
    kept = (await at.inspector.recent(OWNER, at.tunnel_id))[2]
    assert (await at.inspector.pin(OWNER, at.tunnel_id, kept.id)).pinned
    assert (await at.inspector.get(OWNER, at.tunnel_id, kept.id)).pinned
    gone = (await at.inspector.recent(OWNER, at.tunnel_id))[0]
    await at.inspector.delete(OWNER, at.tunnel_id, gone.id)
    assert [(c.path, c.pinned) for c in await at.inspector.recent(OWNER, at.tunnel_id)] == [("/1", False), ("/0", True)]
    with pytest.raises(NotFound):
        await at.inspector.delete(OWNER, at.tunnel_id, gone.id)
    for refused in (at.inspector.delete, at.inspector.pin):
        with pytest.raises(Forbidden):
            await refused(READER, at.tunnel_id, kept.id)
        with pytest.raises(NotFound):
            await refused(STRANGER, at.tunnel_id, kept.id)


async def test_pins_are_bounded(at: Inspected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspector_module, "PINNED_MAX", 1)
    visit(at, get("/1"))
    visit(at, get("/2"))
    two, one = await at.inspector.recent(OWNER, at.tunnel_id)
    await at.inspector.pin(OWNER, at.tunnel_id, one.id)
    await at.inspector.pin(OWNER, at.tunnel_id, one.id)
    with pytest.raises(Unavailable):
        await at.inspector.pin(OWNER, at.tunnel_id, two.id)
    await at.inspector.pin(OWNER, at.tunnel_id, one.id, pinned=False)
    assert (await at.inspector.pin(OWNER, at.tunnel_id, two.id)).pinned


async def test_what_is_imported_is_redacted_and_new(at: Inspected) -> None:
    visit(at, get("/own"))
    own = await last(at)
    foreign = replace(own, path="/?token=x", request_body=b"password=abc", pinned=True, captured_at=NOW)
    made = await at.inspector.import_(OWNER, at.tunnel_id, [foreign])
    assert (made[0].path, made[0].request_body, made[0].imported) == (
        "/?token=[redacted]",
        b"password=[redacted]",
        True,
    )
    assert made[0].id != own.id
    assert await at.inspector.get(OWNER, at.tunnel_id, made[0].id) == made[0]
    assert [one.id for one in await at.inspector.recent(OWNER, at.tunnel_id)] == [made[0].id, own.id]


async def test_a_difference(at: Inspected) -> None:
    visit(at, get("/a", "X-A: 1"))
    visit(at, get("/a", "X-A: 2"), b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\noh")
    new, old = await at.inspector.recent(OWNER, at.tunnel_id)
    found = await at.inspector.diff(OWNER, at.tunnel_id, old.id, new.id)
    assert (found.method, found.path, found.status) == (None, None, (200, 500))
    assert [(c.name, c.old, c.new) for c in found.request_headers] == [("x-a", (b"1",), (b"2",))]
    assert found.response_body is not None
    assert found.response_body.at == 1


# retention


async def test_D12_retention_by_number_age_and_bytes(tmp_path: Path) -> None:
    async with inspected(tmp_path, InspectConfig(keep_per_tunnel=4, keep_days=7)) as at:
        for number in range(10):
            visit(at, get(f"/{number}"))
        oldest = (await at.inspector.recent(OWNER, at.tunnel_id, 50))[-1]
        await at.inspector.write()
        await at.inspector.pin(OWNER, at.tunnel_id, oldest.id)
        await at.inspector.prune()
        found = await at.captures.search(at.tunnel_id, Filter(), None, 50)
        assert [capture.path for capture in found.captures] == ["/9", "/8", "/7", "/0"]
        at.now[0] += timedelta(days=8)
        await at.inspector.prune()
        found = await at.captures.search(at.tunnel_id, Filter(), None, 50)
        assert [capture.path for capture in found.captures] == ["/0"]


async def test_D12_retention_by_bytes_in_all(tmp_path: Path) -> None:
    async with inspected(tmp_path, InspectConfig(keep_bytes=20_000)) as at:
        for number in range(30):
            visit(at, post(b"x" * 1000, target=f"/{number}"))
        await at.inspector.write()
        await at.inspector.prune()
        status = at.inspector.status()
        assert 10_000 < status.bytes_in_store <= 20_000


# trouble


class Sick:
    """The database of a disk that is full."""

    def __init__(self, at: Inspected) -> None:
        self._well = at.store.captured
        self.ill = True

    async def write(self, work: object) -> object:
        if self.ill:
            raise StoreError("the database said: database or disk is full")
        return await self._well.write(work)  # type: ignore[arg-type]

    async def read(self, work: object) -> object:
        if self.ill:
            raise StoreError("the database said: disk I/O error")
        return await self._well.read(work)  # type: ignore[arg-type]


async def test_D01_F15_traffic_goes_on_and_captures_recover(at: Inspected) -> None:
    sick = Sick(at)
    inspector = inspector_of(at.rig, Captures(sick), InspectConfig(ring_size=3), at.now)  # type: ignore[arg-type]
    await inspector.start()
    for number in range(5):
        visit(at, get(f"/{number}"))
    await inspector.write()
    await inspector.prune()
    assert inspector.status().lossy
    assert [capture.path for capture in await inspector.recent(OWNER, at.tunnel_id)] == ["/4", "/3", "/2"]
    assert len((await inspector.page(OWNER, at.tunnel_id)).captures) == 3
    sick.ill = False
    await inspector.write()
    status = inspector.status()
    assert (status.lossy, status.waiting, status.not_stored, status.in_store) == (False, 0, 2, 3)
    assert len((await inspector.page(OWNER, at.tunnel_id)).captures) == 3
    sick.ill = True
    with pytest.raises(StoreError):
        await inspector.page(OWNER, at.tunnel_id)


async def test_D03_a_batch_that_was_written_all_the_same_is_written_once(at: Inspected) -> None:
    visit(at, get("/"))
    capture = await last(at)
    await at.captures.write([capture], {at.tunnel_id: "owner"})
    await at.inspector.write()
    await at.captures.load()
    assert at.captures.shares[at.tunnel_id].rows == 1


async def test_D11_a_clock_that_is_set_does_not_change_the_order(at: Inspected) -> None:
    visit(at, get("/first"))
    await at.inspector.write()
    at.now[0] -= timedelta(days=1)
    await at.inspector.write()
    visit(at, get("/second"))
    await at.inspector.write()
    second, first = await at.inspector.recent(OWNER, at.tunnel_id)
    assert (first.path, second.path) == ("/first", "/second")
    assert second.captured_at < first.captured_at


# looking on


async def test_a_viewer_hears_and_a_slow_one_is_told_what_it_missed(at: Inspected) -> None:
    with at.inspector.look_on(OWNER, at.tunnel_id) as viewer:
        for number in range(300):
            visit(at, get(f"/{number}"))
        first = await viewer.next()
        assert first is not None
        assert (await at.inspector.view(first)).path == "/44"
        assert viewer.take_missed() == 44
        assert viewer.take_missed() == 0
        at.inspector.end_views("t")
        heard = 0
        while await viewer.next() is not None:
            heard += 1
        assert heard == 255


async def test_viewers_are_of_the_owner_and_bounded(at: Inspected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspector_module, "VIEWERS_OF_ONE_MAX", 1)
    with pytest.raises(NotFound), at.inspector.look_on(STRANGER, at.tunnel_id):
        pass
    with (
        at.inspector.look_on(OWNER, at.tunnel_id),
        pytest.raises(Unavailable),
        at.inspector.look_on(OWNER, at.tunnel_id),
    ):
        pass
    with at.inspector.look_on(OWNER, at.tunnel_id):
        pass


async def test_a_view_ends_with_its_tunnel(at: Inspected) -> None:
    with at.inspector.look_on(READER, at.tunnel_id) as viewer:
        at.rig.registry.release(at.rig.tunnel)
        await at.inspector.write()
        assert await viewer.next() is None


async def test_nothing_of_a_visitor_is_kept_alive(at: Inspected) -> None:
    assert isinstance(at.rig.link, FakeLink)
    visit(at, get("/"))
    ring = at.inspector._rings.by_tunnel[at.tunnel_id]
    held = gc.get_referents(*ring)
    assert b"GET" in held  # what it is about: the recording's own attributes
    assert not any(type(value).__name__ in ("FedConnection", "Visit", "Turn", "Visitor") for value in held)
