"""Windows that grow for who passes bytes on fast, within bounds (our server and our agent with each other)."""

from __future__ import annotations

from rustunnel_py.wire.yamux import ACK, BUSY_GRANTS, INITIAL_WINDOW, Limits, Role
from tests.support.muxpair import Frame, Hearing, Side, data_frame, feed, hear, window_frame

HALF = INITIAL_WINDOW // 2
GROWING = Limits(grown_window=4 * INITIAL_WINDOW, growth=4 * INITIAL_WINDOW)


def client(limits: Limits) -> Side:
    return Side(Role.CLIENT, limits=limits, high=1 << 30)


def opened(side: Side) -> Hearing:
    stream = side.session.open(b"0123456789abcdef")
    hearing = hear(stream)
    side.trunk.take()
    feed(side.session, window_frame(stream.id, 0, ACK))
    return hearing


def grants(side: Side, hearing: Hearing, times: int, size: int = HALF) -> list[int]:
    """The credits that so many halves of a window bring, each passed on at once."""
    assert hearing.stream is not None
    found = []
    for _ in range(times):
        for frame in side.feed(data_frame(hearing.stream.id, bytes(size))):
            assert frame == Frame(1, 0, hearing.stream.id, frame.length)
            found.append(frame.length)
    return found


def test_a_busy_stream_doubles_its_window_up_to_the_bound() -> None:
    side = client(GROWING)
    hearing = opened(side)
    assert grants(side, hearing, BUSY_GRANTS) == [HALF] * (BUSY_GRANTS - 1) + [HALF + INITIAL_WINDOW]
    assert sum(grants(side, hearing, 10 * BUSY_GRANTS)) == 10 * BUSY_GRANTS * HALF + 2 * INITIAL_WINDOW
    whole = data_frame(1, bytes(4 * INITIAL_WINDOW - HALF))  # what was not told yet may be out
    assert side.session.open_streams == 1
    side.feed(whole)
    assert side.endings == []


def test_a_stream_whose_bytes_are_passed_on_slowly_keeps_its_window() -> None:
    side = client(GROWING)
    hearing = opened(side)
    for second in range(10):
        side.session.sweep(second)
        assert grants(side, hearing, BUSY_GRANTS - 1) == [HALF] * (BUSY_GRANTS - 1)


def test_all_streams_together_grow_by_no_more_than_the_bound_and_an_end_gives_it_back() -> None:
    side = client(GROWING)
    many = [opened(side) for _ in range(4)]
    extra = [sum(grants(side, hearing, 8 * BUSY_GRANTS)) - 8 * BUSY_GRANTS * HALF for hearing in many]
    assert extra == [3 * INITIAL_WINDOW, INITIAL_WINDOW, 0, 0]
    assert many[0].stream is not None
    many[0].stream.reset()
    side.trunk.take()
    assert sum(grants(side, many[2], BUSY_GRANTS)) == BUSY_GRANTS * HALF + INITIAL_WINDOW


def test_no_growth_without_a_budget() -> None:
    side = client(Limits())
    hearing = opened(side)
    assert grants(side, hearing, 4 * BUSY_GRANTS) == [HALF] * (4 * BUSY_GRANTS)
