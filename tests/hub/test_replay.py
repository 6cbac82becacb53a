from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

import pytest
import trio
import trio.testing

from rustunnel_py.config import InspectConfig
from rustunnel_py.errors import BadRequest, Forbidden, Hop, HopError, NotFound, Unavailable
from rustunnel_py.hub import replay
from rustunnel_py.hub.gate import Answer, Gate, NeedBody, Pass, Slow
from rustunnel_py.hub.replay import Edit, Replayed
from tests.support.inspected import OWNER, READER, STRANGER, Inspected, inspected
from tests.support.visitor_rig import HOST, get, post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from rustunnel_py.hub.gate import Verdict
    from rustunnel_py.hub.registry import Tunnel
    from rustunnel_py.model.capture import Capture
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.wire.http1 import RequestHead

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
OTHER = b"HTTP/1.1 201 Created\r\nX-New: 1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nnew\r\n0\r\nX-T: 1\r\n\r\n"


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Inspected]:
    async with inspected(tmp_path) as at:
        yield at


async def captured(at: Inspected, request: bytes, reply: bytes = OK) -> Capture:
    at.rig.link.answer = reply
    at.rig.send(request)
    return (await at.inspector.recent(OWNER, at.tunnel_id, 1))[0]


async def forgotten(at: Inspected) -> None:
    """Everything is in the store and nothing in memory."""
    await at.inspector.write()
    ring = at.inspector._rings.by_tunnel[at.tunnel_id]
    for recording in list(ring):
        ring.remove(recording)


async def replayed(at: Inspected, capture: Capture, edit: Edit | None = None, times: int = 1) -> list[Replayed]:
    """Replay, with the fake link answering as it goes."""
    results: list[Replayed] = []

    async def ask() -> None:
        results.extend(await at.inspector.replay(OWNER, at.tunnel_id, capture.id, edit, times))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        while not results:
            await trio.testing.wait_all_tasks_blocked()
            at.rig.link.run()
            await trio.lowlevel.checkpoint()
    return results


async def test_from_memory_it_goes_out_as_it_was(at: Inspected) -> None:
    original = await captured(at, post(b'{"password":"hunter2"}', "Authorization: Bearer abc", target="/login?token=t"))
    at.rig.link.answer = OTHER
    (result,) = await replayed(at, original)
    sent = at.rig.exchange.canonical.decode()
    assert sent.startswith(f"POST /login?token=t HTTP/1.1\r\nHost: {HOST}\r\n")
    assert "Authorization: Bearer abc\r\n" in sent
    assert "X-Forwarded-For: 203.0.113.7\r\n" in sent
    assert sent.endswith('\r\n\r\n{"password":"hunter2"}')
    new = result.capture
    assert (new.status, new.response_body, new.origin) == (201, b"new", original.id)
    assert new.request_body == b'{"password":"[redacted]"}'
    assert new.response_trailers == ((b"X-T", b"1"),)
    assert new.path == "/login?token=[redacted]"
    assert result.difference.status == (200, 201)
    assert result.difference.response_body is not None
    assert result.difference.request_body is None
    assert (await at.inspector.get(OWNER, at.tunnel_id, new.id)) == new


async def test_an_edit(at: Inspected) -> None:
    original = await captured(at, post(b"old", "X-A: 1", "X-B: 2"))
    edit = Edit(method=b"PUT", path=b"/new", headers=((b"x-a", None), (b"X-B", b"3"), (b"X-C", b"4")), body=b"newer")
    await replayed(at, original, edit)
    sent = at.rig.exchange.canonical.decode()
    assert sent.startswith("PUT /new HTTP/1.1\r\n")
    assert "X-A" not in sent
    assert "X-B: 3\r\nX-C: 4\r\n" in sent
    assert sent.endswith("Content-Length: 5\r\n\r\nnewer")


async def test_several_times(at: Inspected) -> None:
    original = await captured(at, get("/"))
    results = await replayed(at, original, times=3)
    assert len({result.capture.id for result in results}) == 3
    assert len(at.rig.link.exchanges) == 4
    for times in (0, replay.TIMES_MAX + 1):
        with pytest.raises(BadRequest):
            await at.inspector.replay(OWNER, at.tunnel_id, original.id, None, times)


async def test_from_the_store_what_was_redacted_is_asked_for_by_name(at: Inspected) -> None:
    original = await captured(at, post(b"password=x", "Authorization: Bearer abc", target="/?token=t"))
    await forgotten(at)
    with pytest.raises(BadRequest, match="header Authorization, query token, body"):
        await at.inspector.replay(OWNER, at.tunnel_id, original.id)
    edit = Edit(path=b"/?token=u", headers=((b"authorization", b"Bearer new"),), body=b"password=y")
    (result,) = await replayed(at, original, edit)
    assert result.capture.status == 200
    assert b"Bearer new" in at.rig.exchange.canonical


async def test_a_clipped_body_is_refused_unless_edited(tmp_path: Path) -> None:
    async with inspected(tmp_path, InspectConfig(body_max_bytes=4)) as at:
        original = await captured(at, post(b"too long"))
        for _ in range(2):
            with pytest.raises(BadRequest, match="not kept in full"):
                await at.inspector.replay(OWNER, at.tunnel_id, original.id)
            await at.inspector.write()
        assert len(await replayed(at, original, Edit(body=b"short"))) == 1


@pytest.mark.parametrize(
    "edit",
    [
        Edit(headers=((b"Host", b"other.example.test"),)),
        Edit(headers=((b"Host", None),)),
        Edit(headers=((b"X-A", b"1\r\nX-B: 2"),)),
        Edit(headers=((b"bad name", b"1"),)),
        Edit(method=b"CONNECT"),
        Edit(method=b"GET / HTTP/1.1\r\nX: y\r\n\r\nGET"),
        Edit(path=b"http://127.0.0.1:4041/api/tokens"),
        Edit(path=b"/a b"),
        Edit(path=b"no-slash"),
        Edit(headers=((b"Upgrade", b"websocket"), (b"Host", b"127.0.0.1:4041"))),
    ],
)
async def test_A17_A18_it_is_judged_like_a_visitors_and_goes_to_its_own_tunnel_only(at: Inspected, edit: Edit) -> None:
    original = await captured(at, get("/"))
    with pytest.raises(BadRequest):
        await at.inspector.replay(OWNER, at.tunnel_id, original.id, edit)
    assert len(at.rig.link.exchanges) == 1


async def test_A17_who_may_not(at: Inspected) -> None:
    original = await captured(at, get("/"))
    with pytest.raises(NotFound):
        await at.inspector.replay(STRANGER, at.tunnel_id, original.id)
    with pytest.raises(Forbidden):
        await at.inspector.replay(READER, at.tunnel_id, original.id)
    await at.inspector.write()
    at.rig.registry.release(at.rig.tunnel)
    with pytest.raises(Unavailable, match="ended"):
        await at.inspector.replay(OWNER, at.tunnel_id, original.id)


async def test_A17_an_upgrade_is_refused(at: Inspected) -> None:
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    upgrade = get("/", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key)
    original = await captured(at, upgrade, b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
    for _ in range(2):
        with pytest.raises(BadRequest, match="WebSocket"):
            await at.inspector.replay(OWNER, at.tunnel_id, original.id)
        await forgotten(at)


async def test_A17_too_many_at_once(at: Inspected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "REPLAYS_AT_ONCE", 1)
    original = await captured(at, get("/"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(at.inspector.replay, OWNER, at.tunnel_id, original.id))
        while len(at.rig.link.exchanges) < 2:
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Unavailable):
            await at.inspector.replay(OWNER, at.tunnel_id, original.id)
        (going_on,) = await at.inspector.open_ones(READER, at.tunnel_id)
        assert (going_on.origin, going_on.is_open) == (original.id, True)
        nursery.cancel_scope.cancel()
    assert await at.inspector.open_ones(OWNER, at.tunnel_id) == []
    assert at.rig.exchange.was_reset
    assert (await at.inspector.recent(OWNER, at.tunnel_id, 1))[0].status == 499
    assert len(await replayed(at, original)) == 1


async def test_what_fails_is_part_of_the_record(at: Inspected) -> None:
    original = await captured(at, get("/"))
    at.rig.link.refusal = HopError(Hop.AGENT, 501, "not-carried", "Not by this agent.")
    (result,) = await replayed(at, original)
    assert (result.capture.status, result.capture.hop, result.capture.code) == (501, "agent", "not-carried")
    at.rig.link.refusal = None
    at.rig.link.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    assert (await replayed(at, original))[0].capture.status == 200


async def test_a_local_service_that_does_not_answer(at: Inspected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "ANSWER_SECONDS", 0.0)
    original = await captured(at, get("/"))
    at.rig.link.answer = None
    (result,) = await replayed(at, original)
    assert (result.capture.status, result.capture.code) == (504, "too-slow")
    assert at.rig.exchange.was_reset


class Judge:
    """A policy that says what a test wants."""

    holds: ClassVar[bool] = True

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.left = 0

    def judge(self, tunnel: Tunnel, visit: Visit, head: RequestHead | None) -> Verdict:
        return self.verdict

    def leave(self, visit: Visit) -> None:
        self.left += 1


@pytest.mark.parametrize("slow", ["body", "thread", "at once"])
async def test_it_passes_the_tunnels_gate(at: Inspected, slow: str) -> None:
    original = await captured(at, post(b"body"))
    passed = Pass(add=((b"X-Added", b"1"),))
    verdicts: dict[str, Verdict] = {
        "body": NeedBody(10, lambda body: passed),
        "thread": Slow(lambda: passed),
        "at once": passed,
    }
    judge = Judge(verdicts[slow])
    at.rig.tunnel.gate = Gate([judge])
    (result,) = await replayed(at, original)
    assert result.capture.status == 200
    assert b"X-Added: 1" in at.rig.exchange.canonical
    assert judge.left == 1


async def test_a_gate_that_refuses(at: Inspected) -> None:
    original = await captured(at, get("/"))
    at.rig.tunnel.gate = Gate([Judge(Answer(HopError(Hop.EDGE, 429, "too-many-requests", "Slow down.")))])
    (result,) = await replayed(at, original)
    assert (result.capture.status, result.capture.code) == (429, "too-many-requests")
    assert len(at.rig.link.exchanges) == 1
