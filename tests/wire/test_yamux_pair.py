"""Two yamux machines in conversation over a pretend wire: any cut, any order, any fullness."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustunnel_py.wire.yamux import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    INITIAL_WINDOW,
    PING,
    PROTOCOL_ERROR,
    RST,
    SYN,
    WINDOW_UPDATE,
    Limits,
)
from tests.support.muxpair import Frame, MuxPair, Writer, body, echo, feed, hear

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.muxpair import Hearing, Side


@pytest.mark.parametrize("piece", [1, 7, 13, 100, None])
def test_Y23_echo_in_pieces(piece: int | None) -> None:
    pair = MuxPair()
    pair.server.on_accept = echo
    writers = [Writer(pair.client.session.open(b""), body(n, 1500 * n)) for n in range(4)]
    for writer in writers:
        writer.go()
    pair.settle(piece)
    for n, writer in enumerate(writers):
        assert writer.hearing.received == body(n, 1500 * n)
        assert writer.hearing.events == ["eof"]
    assert pair.client.session.open_streams == pair.server.session.open_streams == 0


@pytest.mark.parametrize("window", [INITIAL_WINDOW, 1 << 20])
def test_bulk_both_ways_with_windows(window: int) -> None:
    pair = MuxPair(limits=Limits(window=window))
    pair.server.on_accept = echo
    blob = body(1, 100_000) * 20
    writer = Writer(pair.client.session.open(b""), blob, 50_000)
    writer.go()
    pair.settle(30_000)
    assert writer.hearing.received == blob
    assert writer.hearing.events[-1] == "eof"
    # what was buffered in the machines is bounded by the window that the peer gave
    assert pair.client.trunk.most <= window + 50_000


@pytest.mark.parametrize("piece", [None, 100, 4096])
def test_Y28_both_sides_full_and_a_ping(piece: int | None) -> None:
    pair = MuxPair(high=4096)
    pair.server.on_accept = echo
    blobs = [body(n, 3000) * 100 for n in range(4)]
    writers = [Writer(pair.client.session.open(b""), blob, 20_000) for blob in blobs]
    for writer in writers:
        writer.go()
    assert len(pair.client.trunk.out) >= 4096
    pair.client.session.ping(1)
    pair.server.session.ping(2)
    pair.settle(piece)
    for writer, blob in zip(writers, blobs, strict=True):
        assert writer.hearing.received == blob
        assert writer.hearing.events[-1] == "eof"
    assert pair.client.session.pongs == pair.server.session.pongs == 1
    # what leaves in one go is one frame a full trunk, and small frames
    assert pair.client.trunk.most < 4096 + 65_536 + 4096


def test_Y27_a_stream_that_nobody_reads_does_not_slow_the_others() -> None:
    rounds = {}
    for stalled in (False, True):
        pair = MuxPair(high=64 * 1024)
        accepted = 0

        def accept(hearing: Hearing, stalled: bool = stalled) -> None:
            nonlocal accepted
            accepted += 1
            if stalled and accepted == 1:
                hearing.pays = False
            else:
                echo(hearing)

        pair.server.on_accept = accept
        first = Writer(pair.client.session.open(b"first"), b"" if not stalled else b"z" * 2_000_000)
        others = [Writer(pair.client.session.open(b""), body(n, 1000) * 30) for n in range(99)]
        for writer in [first, *others]:
            writer.go()
        count = 0
        while pair.move(16 * 1024):
            count += 1
        for n, writer in enumerate(others):
            assert writer.hearing.received == body(n, 1000) * 30
        if stalled:
            assert first.hearing.received == b""
            assert len(pair.server.accepted[0].received) == INITIAL_WINDOW
        rounds[stalled] = count
    # The stalled stream's own window passes once; beyond that it takes nothing from the others.
    assert rounds[True] <= rounds[False] + INITIAL_WINDOW // (16 * 1024) + 10


def test_T01_half_close_goes_on_for_as_long_as_bytes_move() -> None:
    pair = MuxPair()
    client = hear(pair.client.session.open(b"request"))
    assert client.stream is not None
    client.stream.send_eof()
    pair.settle()
    server = pair.server.accepted[0]
    assert server.events == ["eof"]
    assert server.stream is not None
    blob = body(3, 100_000) * 100
    writer = Writer(server.stream, blob)
    now = 0.0
    for side in (pair.client, pair.server):
        side.session.sweep(now)
    writer.go()
    while pair.move(1000):
        now += 1
        pair.client.session.sweep(now)
        pair.server.session.sweep(now)
    assert client.received == blob
    assert client.events == ["eof"]
    assert pair.client.session.open_streams == 0


def test_a_reset_reaches_the_other_side_and_frees_both() -> None:
    pair = MuxPair()
    client = hear(pair.client.session.open(b"request"))
    pair.settle()
    assert client.stream is not None
    client.stream.reset()
    pair.settle()
    assert pair.server.accepted[0].events == ["lost"]
    assert client.events == []
    assert pair.client.session.open_streams == pair.server.session.open_streams == 0


@given(
    bodies=st.lists(st.binary(max_size=3000), min_size=1, max_size=5),
    pieces=st.lists(st.integers(1, 5000), min_size=1, max_size=30),
    high=st.sampled_from([64, 4096, 1 << 30]),
    chunk=st.integers(1, 2000),
)
@settings(max_examples=100, deadline=None)
def test_any_cut_of_any_conversation(bodies: list[bytes], pieces: list[int], high: int, chunk: int) -> None:
    pair = MuxPair(high=high)
    pair.server.on_accept = echo
    writers = [Writer(pair.client.session.open(b""), blob, chunk) for blob in bodies]
    for writer in writers:
        writer.go()
    for piece in cycle(pieces):
        if not pair.move(piece):
            break
    for writer, blob in zip(writers, bodies, strict=True):
        assert writer.hearing.received == blob
        assert writer.hearing.events[-1] == "eof"
    for side in (pair.client, pair.server):
        assert side.session.open_streams == 0
        assert side.session.crashes == 0
        assert not side.session.over


# Mostly what a peer may say, so that a conversation lasts until something in it is wrong; sometimes anything.
@given(
    raw=st.lists(
        st.tuples(
            st.sampled_from([0] * 19 + [1]),
            st.sampled_from([DATA] * 6 + [WINDOW_UPDATE] * 2 + [PING, PING, GO_AWAY, 4]),
            st.one_of(st.sampled_from([0, 0, SYN, SYN, SYN | FIN, ACK, FIN, RST]), st.integers(0, 15)),
            st.one_of(st.sampled_from([1, 3, 5]), st.integers(0, 6)),
            st.one_of(st.integers(0, 30), st.integers(0, 300), st.integers(0, 300), st.integers(0, 2**32 - 1)),
        ),
        max_size=30,
    ),
    pieces=st.lists(st.integers(1, 50), min_size=1, max_size=20),
    seat=st.sampled_from(["client", "server"]),
)
@settings(max_examples=300, deadline=None)
def test_any_frames_end_in_order_or_in_a_go_away(
    raw: list[tuple[int, int, int, int, int]], pieces: list[int], seat: str
) -> None:
    """Hostile bytes raise nothing, and the same bytes in other pieces are heard and answered in the same way."""

    def run(cuts: Iterable[int]) -> tuple[list[tuple[bytes, list[str]]], list[Frame]]:
        pair = MuxPair()
        side: Side = getattr(pair, seat)
        hearings = side.accepted
        if seat == "client":
            hearings = [hear(side.session.open(b"id")) for _ in range(2)]
        stream = b"".join(
            v.to_bytes(1, "big") + k.to_bytes(1, "big") + f.to_bytes(2, "big") + i.to_bytes(4, "big") +
            n.to_bytes(4, "big") + (b"p" * n if n <= 300 and k == 0 else b"")
            for v, k, f, i, n in raw
        )  # fmt: skip
        feed(side.session, stream, cuts)
        side.later.run()
        assert side.session.crashes == 0
        assert len(side.endings) == side.session.over
        return [(bytes(h.received), h.events) for h in hearings], _without_acknowledgements(side, in_one_call=not cuts)

    assert run(cycle(pieces)) == run([])


def _without_acknowledgements(side: Side, *, in_one_call: bool) -> list[Frame]:
    """What the session sent, but for the acknowledgements of streams, which are judged here.

    They leave at the end of each call. So whether a stream that dies young was acknowledged depends on the cuts: with a
    reset or a violation in the same call it never is.
    """
    sent = side.trunk.frames()
    acknowledgements = [frame for frame in sent if frame.kind <= WINDOW_UPDATE and frame.flags & ACK]
    assert all((frame.kind, frame.flags, frame.length) == (WINDOW_UPDATE, ACK, 0) for frame in acknowledgements)
    acknowledged = [frame.stream for frame in acknowledgements]
    accepted = {h.stream.id: "lost" not in h.events for h in side.accepted if h.stream is not None}
    assert len(set(acknowledged)) == len(acknowledged)
    alive = {ident for ident, lives in accepted.items() if lives}
    assert alive <= set(acknowledged) <= (alive if in_one_call else set(accepted))
    if side.session.over and side.session.peer_code is None:
        assert sent[-1] == Frame(GO_AWAY, 0, 0, PROTOCOL_ERROR)
    return [frame for frame in sent if frame not in acknowledgements]
