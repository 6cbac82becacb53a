"""The yamux machine, frame by frame: what it says to what it is told (reliability 3.3)."""

from __future__ import annotations

import pytest

from rustunnel_py.errors import Closed, Crash, Refused, Reset, YamuxError
from rustunnel_py.wire import yamux
from rustunnel_py.wire.yamux import ACK, FIN, FRAME_PAYLOAD, INITIAL_WINDOW, RST, SYN, Limits, Role
from tests.support.muxpair import (
    Frame,
    Hearing,
    Side,
    data_frame,
    feed,
    go_away_frame,
    hear,
    ping_frame,
    split_frames,
    window_frame,
)

GO_AWAY_1 = Frame(3, 0, 0, 1)


def server(limits: Limits | None = None, high: int = 1 << 30) -> Side:
    """The accepting role, as our agent has it."""
    return Side(Role.SERVER, limits=limits, high=high)


def client(limits: Limits | None = None, high: int = 1 << 30) -> Side:
    """The opening role, as our server has it."""
    return Side(Role.CLIENT, limits=limits, high=high)


def opened(side: Side, first: bytes = b"0123456789abcdef", *, acknowledged: bool = True) -> Hearing:
    stream = side.session.open(first)
    hearing = hear(stream)
    side.trunk.take()
    if acknowledged:
        feed(side.session, window_frame(stream.id, 0, ACK))
    return hearing


def assert_violated(side: Side, answers: list[Frame]) -> None:
    assert answers[-1] == GO_AWAY_1
    assert len(side.endings) == 1
    assert isinstance(side.endings[0], Reset)
    cause = side.endings[0].__cause__
    assert isinstance(cause, YamuxError)
    assert cause.code == 1
    assert side.session.over
    assert side.session.open_streams == 0
    assert side.feed(ping_frame(1)) == []


# echo rows: the accepting role


def test_Y01_ping_is_answered_with_its_value() -> None:
    assert server().feed(ping_frame(7)) == [Frame(2, ACK, 0, 7)]


def test_Y02_window_update_opens_a_stream() -> None:
    side = server()
    assert side.feed(window_frame(1, 0, SYN)) == [Frame(1, ACK, 1, 0)]
    assert side.feed(data_frame(1, b"hello")) == []
    assert side.accepted[0].received == b"hello"
    stream = side.accepted[0].stream
    assert stream is not None
    assert stream.send(b"hello")
    assert side.trunk.frames() == [Frame(0, 0, 1, 5, b"hello")]


def test_Y03_data_opens_a_stream_and_the_first_frame_back_acknowledges() -> None:
    side = server()

    def echo(hearing: Hearing) -> None:
        stream = hearing.stream
        assert stream is not None
        hearing.on_data = stream.send

    side.on_accept = echo
    assert side.feed(data_frame(1, b"hello", SYN)) == [Frame(0, ACK, 1, 5, b"hello")]
    assert side.feed(data_frame(1, b"again")) == [Frame(0, 0, 1, 5, b"again")]


@pytest.mark.parametrize("role", list(Role))
def test_Y04_wrong_version(role: Role) -> None:
    side = Side(role)
    assert_violated(side, side.feed(Frame(0, 0, 1, 0, version=1).encode()))


@pytest.mark.parametrize("kind", [4, 9, 255])
def test_Y05_unknown_type(kind: int) -> None:
    side = client()
    hearing = opened(side)
    assert_violated(side, side.feed(Frame(kind, 0, 0, 0).encode()))
    assert isinstance(hearing.error, Reset)


def test_Y06_id_of_the_wrong_parity() -> None:
    side = server()
    assert_violated(side, side.feed(data_frame(2, b"x", SYN)))
    assert side.accepted == []


def test_Y06_an_agent_opens_towards_our_server() -> None:
    even = client()
    assert even.feed(data_frame(2, b"x", SYN), ping_frame(3)) == [Frame(0, RST, 2, 0), Frame(2, ACK, 0, 3)]
    assert even.session.refused == 1
    odd = client()
    assert_violated(odd, odd.feed(data_frame(3, b"x", SYN)))


def test_Y07_SYN_twice() -> None:
    side = server()
    side.feed(window_frame(1, 0, SYN))
    assert_violated(side, side.feed(window_frame(1, 0, SYN)))
    assert side.accepted[0].events == ["lost"]


def test_Y08_data_on_an_unknown_id_is_dropped_and_answered_by_RST() -> None:
    side = client()
    hearing = opened(side)
    answers = side.feed(data_frame(77, b"x" * 1000), data_frame(1, b"mine"), ping_frame(2))
    assert answers == [Frame(0, RST, 77, 0), Frame(2, ACK, 0, 2)]
    assert hearing.received == b"mine"
    assert side.session.ignored == 1


def test_Y08_too_many_of_them_end_the_session_and_a_minute_forgives() -> None:
    side = client()
    side.session.sweep(0)
    side.feed(data_frame(77, b"x") * yamux.UNKNOWN_A_MINUTE)
    side.session.sweep(59)
    assert not side.session.over
    side.session.sweep(60)
    side.feed(data_frame(77, b"x") * yamux.UNKNOWN_A_MINUTE)
    assert not side.session.over
    side.session.sweep(119)
    assert_violated(side, side.feed(data_frame(77, b"x")))


def test_Y08_what_was_under_way_to_a_stream_that_we_reset_costs_nothing() -> None:
    side = client()
    for _ in range(20):
        hearing = opened(side)
        assert hearing.stream is not None
        hearing.stream.reset()
        ident = hearing.stream.id
        assert side.trunk.frames() == [Frame(0, RST, ident, 0)]
        # a full window in small frames, a window update, its FIN: no RST for any of them, and no end
        late = data_frame(ident, b"x" * 1024) * 256 + window_frame(ident, 1) + data_frame(ident, b"", FIN)
        assert side.feed(late) == []
        assert hearing.received == b""
        assert hearing.events == []
    assert not side.session.over


def test_Y09_past_the_window() -> None:
    side = server()
    side.on_accept = lambda hearing: setattr(hearing, "pays", False)
    side.feed(data_frame(1, b"x" * INITIAL_WINDOW, SYN))
    assert len(side.accepted[0].received) == INITIAL_WINDOW
    assert_violated(side, side.feed(data_frame(1, b"x")))
    assert len(side.accepted[0].received) == INITIAL_WINDOW
    assert side.accepted[0].events == ["lost"]


def test_Y09_past_the_window_in_one_frame() -> None:
    side = client()
    hearing = opened(side)
    assert_violated(side, side.feed(data_frame(1, b"x" * (INITIAL_WINDOW + 1))))
    assert hearing.received == b""


def test_Y10_length_is_judged_before_the_payload_comes() -> None:
    side = server()
    side.feed(window_frame(1, 0, SYN))
    assert_violated(side, side.feed(Frame(0, 0, 1, 0xFFFFFFFF).encode()))


def test_Y10_also_for_a_stream_that_nobody_knows() -> None:
    side = client()
    assert_violated(side, side.feed(Frame(0, 0, 77, 0xFFFFFFFF).encode()))
    other = client()
    assert_violated(other, other.feed(Frame(0, 0, 77, INITIAL_WINDOW + 1).encode()))


def test_Y11_credit_beyond_32_bits() -> None:
    side = client()
    opened(side)
    assert_violated(side, side.feed(window_frame(1, 0xFFFFFFFF)))


@pytest.mark.parametrize("raw", [data_frame(0, b"x", SYN), window_frame(0, 0, SYN), data_frame(0), window_frame(0, 5)])
@pytest.mark.parametrize("role", list(Role))
def test_Y12_stream_0(role: Role, raw: bytes) -> None:
    side = Side(role)
    assert_violated(side, side.feed(raw))


def test_Y13_after_a_go_away_a_SYN_is_refused_and_old_streams_go_on() -> None:
    side = server()
    side.feed(data_frame(1, b"old", SYN))
    answers = side.feed(go_away_frame(0), data_frame(3, b"new", SYN), data_frame(1, b" still"))
    assert answers == [Frame(0, RST, 3, 0)]
    assert side.accepted[0].received == b"old still"
    assert len(side.accepted) == 1


def test_Y13_the_same_after_our_own() -> None:
    side = server()
    side.feed(data_frame(1, b"old", SYN))
    side.session.go_away()
    assert side.trunk.frames() == [Frame(3, 0, 0, 0)]
    assert side.feed(data_frame(3, b"new", SYN)) == [Frame(0, RST, 3, 0)]
    assert not side.session.over


@pytest.mark.parametrize("code", [0, 1, 2])
def test_Y13_a_stock_agents_go_away_is_not_the_end_of_its_streams(code: int) -> None:
    side = client()
    hearing = opened(side)
    side.feed(go_away_frame(code))
    assert side.session.goes_away
    assert side.session.peer_code == code
    assert not side.session.can_open()
    assert hearing.stream is not None
    assert hearing.stream.send(b"still")
    assert side.trunk.frames() == [Frame(0, 0, 1, 5, b"still")]
    side.feed(data_frame(1, b"answer", FIN))
    assert hearing.received == b"answer"
    assert not side.session.over
    hearing.stream.send_eof()
    assert not side.session.over  # not within the call
    side.later.run()
    assert len(side.endings) == 1


def test_Y13_a_stock_agent_that_complained_goes_on_taking_new_streams() -> None:
    side = client(Limits(error_is_final=False))
    side.feed(go_away_frame(1))
    assert side.session.peer_code == 1
    assert side.session.can_open()
    hearing = opened(side)
    assert hearing.stream is not None
    side.feed(go_away_frame(2))  # no place: that one counts
    assert not side.session.can_open()
    assert not side.session.over


def test_Y13_a_go_away_without_streams_ends_the_session() -> None:
    side = client()
    side.feed(go_away_frame(0))
    assert len(side.endings) == 1


def test_Y14_go_away_with_an_unknown_code_is_an_error() -> None:
    side = client()
    hearing = opened(side)
    side.feed(go_away_frame(77))
    assert isinstance(hearing.error, Reset)
    assert "77" in str(side.endings[0])


def test_Y15_RST_on_an_unknown_id() -> None:
    side = client()
    assert side.feed(data_frame(77, b"", RST), window_frame(79, 0, RST)) == []
    assert side.session.ignored == 2
    assert not side.session.over


def test_Y16_data_after_FIN_resets_that_stream() -> None:
    side = client()
    hearing = opened(side)
    other = opened(side)
    assert side.feed(data_frame(1, b"end", FIN), data_frame(1, b"more"), data_frame(3, b"ok")) == [Frame(0, RST, 1, 0)]
    assert hearing.received == b"end"
    assert hearing.events == ["eof", "lost"]
    assert isinstance(hearing.error, Reset)
    assert other.received == b"ok"


def test_Y16_data_after_both_FINs() -> None:
    side = client()
    hearing = opened(side)
    assert hearing.stream is not None
    hearing.stream.send_eof()
    side.feed(data_frame(1, b"end", FIN))
    assert side.session.open_streams == 0
    assert side.feed(data_frame(1, b"more")) == [Frame(0, RST, 1, 0)]
    assert hearing.events == ["eof"]


def test_Y17_pong_that_nobody_asked_for() -> None:
    side = client()
    assert side.feed(ping_frame(5, ACK)) == []
    assert (side.session.ignored, side.session.pongs) == (1, 0)
    side.session.ping(5)
    assert side.trunk.frames() == [Frame(2, SYN, 0, 5)]
    side.feed(ping_frame(6, ACK), ping_frame(5, ACK), ping_frame(5, ACK))
    assert (side.session.ignored, side.session.pongs) == (3, 1)


def test_Y18_more_SYNs_than_are_accepted() -> None:
    side = server(Limits(max_accepted=256))
    answers = side.feed(*(window_frame(ident, 0, SYN) for ident in range(1, 601, 2)))
    refused = [frame for frame in answers if frame.flags & RST]
    assert len(side.accepted) == 256
    assert [frame.stream for frame in refused] == list(range(513, 601, 2))
    assert not side.session.over


def test_Y18_a_flood_of_SYNs_ends_the_session() -> None:
    side = server(Limits(max_accepted=1))
    side.session.sweep(0)
    side.feed(*(window_frame(1 + 2 * n, 0, SYN) for n in range(1 + yamux.REFUSED_A_MINUTE)))
    assert not side.session.over
    assert_violated(side, side.feed(window_frame(5001, 0, SYN)))


def test_Y19_SYN_with_more_than_a_window() -> None:
    side = server()
    assert_violated(side, side.feed(data_frame(1, b"x" * (INITIAL_WINDOW + 1), SYN)))
    assert side.accepted == []


def test_Y20_rapid_reset() -> None:
    side = server()
    side.session.sweep(0)
    ident = 1
    for second in range(3):
        side.session.sweep(second)
        for _ in range(yamux.RESETS_A_SECOND):
            side.feed(window_frame(ident, 0, SYN), data_frame(ident, b"", RST))
            ident += 2
    assert not side.session.over
    assert all(hearing.events == ["lost"] for hearing in side.accepted)
    assert side.session.open_streams == 0
    assert_violated(side, side.feed(window_frame(ident, 0, SYN), data_frame(ident, b"", RST)))


def test_Y20_resets_of_streams_that_we_opened_are_never_too_many() -> None:
    side = client()
    side.session.sweep(0)
    for _ in range(yamux.RESETS_A_SECOND + 5):
        hearing = opened(side, acknowledged=False)
        assert hearing.stream is not None
        side.feed(data_frame(hearing.stream.id, b"", RST))
    assert not side.session.over
    assert side.session.unacknowledged == 0


def test_Y21_pongs_are_kept_to_a_few_while_the_trunk_is_full() -> None:
    side = server(high=1200)
    feed(side.session, b"".join(ping_frame(n) for n in range(100_000)))
    assert side.trunk.most == 1200
    side.trunk.take()
    answers = side.trunk.frames()
    assert [frame.length for frame in answers] == list(range(100_000 - yamux.PONGS_KEPT, 100_000))
    assert side.session.pings == 100_000


@pytest.mark.parametrize("empty", [window_frame(1, 0), window_frame(1, 1), data_frame(1)])
def test_Y22_frames_that_carry_nothing_are_capped(empty: bytes) -> None:
    side = client()
    hearing = opened(side)
    side.session.sweep(0)
    assert side.feed(empty * yamux.TINY_A_MINUTE) == []
    assert hearing.received == b""
    assert_violated(side, side.feed(empty))


@pytest.mark.parametrize("cut", range(1, 12))
def test_Y23_header_cut_at_each_byte(cut: int) -> None:
    side = server()
    raw = data_frame(1, b"hello", SYN) + data_frame(1, b" world")
    feed(side.session, raw, [cut, 12 - cut, 5, cut])
    assert side.accepted[0].received == b"hello world"
    assert side.trunk.credited == len(raw)


def test_Y23_a_thousand_frames_in_one_message_and_one_byte_a_message() -> None:
    raw = data_frame(1, b"", SYN) + b"".join(data_frame(1, b"%03d" % n) for n in range(1000)) + data_frame(1, b"", FIN)
    expected = b"".join(b"%03d" % n for n in range(1000))
    for pieces in ([], [1] * len(raw)):
        side = server()
        feed(side.session, raw, pieces)
        assert side.accepted[0].received == expected
        assert side.accepted[0].events == ["eof"]


def test_Y23_payload_is_delivered_as_it_comes() -> None:
    side = server()
    raw = data_frame(1, b"x" * 100, SYN | FIN)
    feed(side.session, raw[:50])
    assert side.accepted[0].pieces == [38]
    assert side.accepted[0].events == []
    feed(side.session, raw[50:])
    assert side.accepted[0].pieces == [38, 62]
    assert side.accepted[0].events == ["eof"]


@pytest.mark.parametrize("flags", [SYN | ACK, SYN | RST, FIN | RST, SYN | ACK | FIN | RST])
def test_Y24_impossible_flags(flags: int) -> None:
    side = server()
    assert_violated(side, side.feed(data_frame(1, b"", flags)))


def test_Y24_impossible_flags_of_a_ping() -> None:
    side = server()
    assert_violated(side, side.feed(ping_frame(1, SYN | ACK)))


def test_Y24_odd_acknowledgements_and_unknown_bits_change_nothing() -> None:
    side = client()
    hearing = opened(side)
    assert side.feed(window_frame(1, 0, ACK), window_frame(99, 0, ACK)) == []
    assert side.session.ignored == 2
    side.feed(data_frame(1, b"x", 0xFFF0), data_frame(1, b"y", ACK))
    assert hearing.received == b"xy"
    accepting = server()
    accepting.feed(window_frame(1, 0, SYN), data_frame(1, b"z", ACK))
    assert accepting.accepted[0].received == b"z"
    assert not accepting.session.over


def test_Y25_FIN_then_RST() -> None:
    side = client()
    hearing = opened(side)
    side.feed(data_frame(1, b"", FIN), data_frame(1, b"", RST))
    assert hearing.events == ["eof", "lost"]
    assert side.session.open_streams == 0


def test_Y25_RST_while_our_writer_is_blocked() -> None:
    side = client()
    hearing = opened(side)
    assert hearing.stream is not None
    assert not hearing.stream.send(b"x" * (INITIAL_WINDOW + 100_000))
    side.feed(data_frame(1, b"", RST))
    assert hearing.events == ["lost"]
    assert hearing.stream._pending is None
    assert side.session.open_streams == 0
    assert hearing.stream.send(b"more")
    hearing.stream.send_eof()
    hearing.stream.credit(10**6)
    hearing.stream.reset()
    assert side.feed(window_frame(1, 100_000)) == []


@pytest.mark.parametrize("ours_first", [True, False])
def test_Y25_FIN_both_ways_frees_the_stream(ours_first: bool) -> None:
    side = client()
    hearing = opened(side)
    assert hearing.stream is not None
    if ours_first:
        hearing.stream.send_eof()
    side.feed(data_frame(1, b"bye", FIN))
    if not ours_first:
        assert hearing.stream.send(b"still open")
        hearing.stream.send_eof()
    side.trunk.take()
    assert side.session.open_streams == 0
    assert hearing.events == ["eof"]
    hearing.stream.reset()
    assert side.trunk.frames() == []


def test_Y25_half_closed_with_nothing_coming_has_a_limit() -> None:
    side = client(Limits(half_closed_seconds=300))
    hearing = opened(side)
    other = opened(side)
    assert hearing.stream is not None
    side.session.sweep(0)
    hearing.stream.send_eof()
    side.session.sweep(1)
    for minute in range(1, 60):  # an hour of half-close in which a byte a minute comes
        side.feed(data_frame(1, b"."))
        side.session.sweep(60 * minute)
    assert hearing.events == []
    side.session.sweep(60 * 59 + 299)
    assert hearing.events == []
    side.trunk.take()
    side.session.sweep(60 * 59 + 300)
    assert hearing.events == ["lost"]
    assert side.trunk.frames() == [Frame(0, RST, 1, 0)]
    assert other.events == []


def test_Y25_an_end_behind_bytes_that_the_peer_does_not_take_has_the_limit_too() -> None:
    side = client(Limits(half_closed_seconds=300))
    hearing = opened(side)
    assert hearing.stream is not None
    hearing.stream.send(bytes(2 * INITIAL_WINDOW))
    hearing.stream.send_eof()
    side.session.sweep(0)
    for second in range(1, 900):  # as much leaves as is granted, so that the window looks the same each time
        side.feed(window_frame(1, 100))
        side.session.sweep(second)
    assert hearing.events == []
    side.session.sweep(899 + 299)
    assert hearing.events == []
    side.session.sweep(899 + 300)
    assert hearing.events == ["lost"]
    assert side.session.open_streams == 0


def test_Y25_nobody_is_silent_whose_bytes_wait_at_our_own_end() -> None:
    side = client(Limits(half_closed_seconds=300))
    hearing = opened(side)
    assert hearing.stream is not None
    hearing.pays = False
    hearing.stream.send_eof()
    side.feed(data_frame(1, bytes(1000)))
    for second in range(1000):
        side.session.sweep(second)
    assert hearing.events == []
    hearing.stream.credit(1000)
    side.session.sweep(1000)
    side.session.sweep(1299)
    assert hearing.events == []
    side.session.sweep(1300)
    assert hearing.events == ["lost"]


def test_Y25_the_limit_can_be_off() -> None:
    side = client(Limits(half_closed_seconds=None))
    hearing = opened(side)
    assert hearing.stream is not None
    hearing.stream.send_eof()
    side.session.sweep(0)
    side.session.sweep(1e9)
    assert hearing.events == []


def test_Y26_reused_ids_are_refused() -> None:
    side = server()
    side.feed(data_frame(1, b"", SYN | FIN))
    stream = side.accepted[0].stream
    assert stream is not None
    stream.send_eof()
    side.trunk.take()
    assert side.session.open_streams == 0
    assert side.feed(data_frame(1, b"", SYN)) == [Frame(0, RST, 1, 0)]
    assert len(side.accepted) == 1


def test_Y26_ids_may_come_out_of_order_but_only_once() -> None:
    side = server()
    side.feed(window_frame(5, 0, SYN), window_frame(1, 0, SYN), window_frame(3, 0, SYN))
    streams = [hearing.stream.id for hearing in side.accepted if hearing.stream]
    assert streams == [5, 1, 3]
    side.feed(data_frame(1, b"", RST))
    assert side.feed(window_frame(1, 0, SYN)) == [Frame(0, RST, 1, 0)]


def test_Y26_an_accepting_client_role_knows_even_ids() -> None:
    side = Side(Role.CLIENT, accepts=True)
    side.feed(window_frame(4, 0, SYN), window_frame(2, 0, SYN))
    assert len(side.accepted) == 2


def test_Y26_ids_past_half_the_range() -> None:
    side = server()
    side.feed(window_frame(2**31 + 1, 0, SYN), window_frame(2**32 - 1, 0, SYN))
    assert len(side.accepted) == 2
    assert len(side.session._gaps) == yamux.GAPS_KEPT


def test_Y26_exhaustion_drains_and_ends() -> None:
    side = client()
    side.session._next_id = 2**32 - 1
    hearing = opened(side)
    assert hearing.stream is not None
    assert hearing.stream.id == 2**32 - 1
    assert side.session.goes_away
    with pytest.raises(Refused):
        side.session.open(b"x")
    side.feed(data_frame(2**32 - 1, b"last", FIN))
    hearing.stream.send_eof()
    side.later.run()
    assert hearing.events == ["eof"]
    assert "used up" in str(side.endings[0])


@pytest.mark.parametrize("raw", [data_frame(1, b"hello")[:14], data_frame(1, b"hello")[:5]])
@pytest.mark.parametrize("how", ["eof", "lost"])
def test_Y29_the_trunk_dies_within_a_frame(raw: bytes, how: str) -> None:
    side = client()
    hearings = [opened(side) for _ in range(3)]
    feed(side.session, raw)
    if how == "eof":
        side.session.eof()
        assert "middle of a frame" in str(side.endings[0])
    else:
        side.session.lost(Closed("replaced"))
        assert isinstance(side.endings[0], Closed)
    for hearing in hearings:
        assert hearing.events == ["lost"]
        assert isinstance(hearing.error, Reset)
    side.session.lost(Reset("twice"))
    side.session.eof()
    side.session.room()
    side.session.sweep(1)
    side.session.ping(1)
    side.session.go_away()
    assert len(side.endings) == 1
    assert side.trunk.out == b""
    assert not side.session.can_open()


# opening


def test_the_first_bytes_go_with_the_SYN() -> None:
    side = client()
    side.session.open(b"0123456789abcdef")
    side.session.open(b"x")
    assert side.trunk.frames() == [Frame(0, SYN, 1, 16, b"0123456789abcdef"), Frame(0, SYN, 3, 1, b"x")]


def test_a_stream_without_first_bytes_opens_by_window_update() -> None:
    side = client()
    stream = side.session.open(b"")
    stream.send(b"x")
    assert side.trunk.frames() == [Frame(1, SYN, 1, 0), Frame(0, 0, 1, 1, b"x")]


def test_first_bytes_longer_than_a_frame_and_than_the_window() -> None:
    side = client()
    first = bytes(range(256)) * 2048
    stream = side.session.open(first)
    hearing = hear(stream)
    frames = side.trunk.frames()
    assert frames[0].flags == SYN
    assert max(frame.length for frame in frames) == FRAME_PAYLOAD
    assert sum(frame.length for frame in frames) == INITIAL_WINDOW
    frames += side.feed(window_frame(1, len(first), ACK))
    assert b"".join(frame.payload for frame in frames) == first
    assert hearing.events == []  # nobody was told to stop


def test_on_a_full_trunk_a_stream_opens_with_little() -> None:
    side = client(high=100)
    filler = side.session.open(b"x" * 100)
    assert filler.id == 1
    side.session.open(b"y" * 5000)
    opening = split_frames(bytes(side.trunk.out))[1]
    assert (opening.flags, opening.length) == (SYN, yamux.OPENING_MAX)
    taken = b"".join(frame.payload for frame in side.trunk.frames() + side.trunk.frames() if frame.stream == 3)
    assert taken == b"y" * 5000


def test_larger_windows_are_granted_with_the_SYN_and_the_ACK() -> None:
    limits = Limits(window=1 << 20)
    extra = (1 << 20) - INITIAL_WINDOW
    opening = client(limits)
    opening.session.open(b"id")
    assert opening.trunk.frames() == [Frame(0, SYN, 1, 2, b"id"), Frame(1, 0, 1, extra)]
    opening.session.open(b"")
    assert opening.trunk.frames() == [Frame(1, SYN, 3, extra)]
    accepting = server(limits)
    assert accepting.feed(data_frame(1, b"id", SYN)) == [Frame(1, ACK, 1, extra)]
    accepting.accepted[0].pays = False
    accepting.feed(*[data_frame(1, b"x" * 65_536)] * 15, data_frame(1, b"x" * 65_534))
    assert not accepting.session.over
    assert_violated(accepting, accepting.feed(data_frame(1, b"x" * 3)))


def test_a_window_below_the_specs_is_refused() -> None:
    with pytest.raises(ValueError, match="262144"):
        Limits(window=INITIAL_WINDOW - 1)


def test_at_most_400_open_and_256_unacknowledged() -> None:
    side = client()
    session = side.session
    for _ in range(256):
        assert session.can_open()
        session.open(b"id")
    assert session.unacknowledged == 256
    assert not session.can_open()
    with pytest.raises(Refused):
        session.open(b"id")
    side.feed(*(window_frame(1 + 2 * n, 0, ACK) for n in range(10)))
    assert side.free == 1
    assert session.unacknowledged == 246
    side.feed(*(data_frame(1 + 2 * n, b"x") for n in range(10, 256)))  # any frame of the peer acknowledges
    assert session.unacknowledged == 0
    for _ in range(144):
        session.open(b"id")
    assert session.open_streams == 400
    assert not session.can_open()
    assert side.free == 1


def test_streams_free_is_said_later_and_only_when_somebody_was_refused() -> None:
    side = client(Limits(max_streams=1))
    first = opened(side)
    assert first.stream is not None
    first.stream.reset()
    side.later.run()
    assert side.free == 0
    second = opened(side)
    assert second.stream is not None
    assert not side.session.can_open()
    second.stream.reset()
    assert side.free == 0
    side.later.run()
    assert side.free == 1
    assert side.session.can_open()


def test_a_side_that_accepts_nothing_refuses() -> None:
    side = Side(Role.SERVER, accepts=False)
    assert side.feed(data_frame(1, b"hello", SYN)) == [Frame(0, RST, 1, 0)]
    assert side.session.open_streams == 0


# sending


def test_nothing_is_ever_sent_past_the_window() -> None:
    side = client()
    hearing = opened(side, b"x" * 16)
    stream = hearing.stream
    assert stream is not None
    assert not stream.send(b"y" * 500_000)
    frames = side.trunk.frames()
    assert sum(frame.length for frame in frames) == INITIAL_WINDOW - 16
    assert all(frame.length <= FRAME_PAYLOAD for frame in frames)
    assert hearing.events == []
    assert [frame.length for frame in side.feed(window_frame(1, 100))] == [100]
    assert hearing.events == []
    rest = side.feed(window_frame(1, 1 << 20))
    assert sum(frame.length for frame in rest) == 500_000 - (INITIAL_WINDOW - 16) - 100
    assert hearing.events == ["room"]


def test_the_exact_window_is_taken_without_a_stop() -> None:
    side = client()
    hearing = opened(side, b"x" * 16)
    assert hearing.stream is not None
    assert hearing.stream.send(b"y" * (INITIAL_WINDOW - 16))
    assert not hearing.stream.send(b"z")
    side.trunk.take()
    assert side.feed(window_frame(1, 1)) == [Frame(0, 0, 1, 1, b"z")]
    assert hearing.events == []  # no window is left: room would only be a copy more
    side.feed(window_frame(1, 1000))
    assert hearing.events == ["room"]


def test_a_send_is_taken_whole_whoever_changes_the_buffer_afterwards() -> None:
    side = client()
    stream = side.session.open(b"x" * 16)
    buffer = bytearray(b"a" * 300_000)
    stream.send(memoryview(buffer))
    buffer[:] = b"b" * 300_000
    frames = side.trunk.frames() + side.feed(window_frame(1, 300_000))
    assert b"".join(frame.payload for frame in frames[1:]) == b"a" * 300_000


def test_FIN_waits_for_what_is_pending_and_room_is_said_before_all_is_forgotten() -> None:
    side = client()
    hearing = opened(side, b"x" * 16)
    stream = hearing.stream
    assert stream is not None
    stream.send(b"y" * INITIAL_WINDOW)
    stream.send_eof()
    stream.send(b"never")
    side.feed(data_frame(1, b"", FIN))
    assert side.session.open_streams == 1
    frames = side.feed(window_frame(1, 1000))
    assert frames == [Frame(0, 0, 1, 16, b"y" * 16), Frame(0, FIN, 1, 0)]
    assert hearing.events == ["eof", "room"]
    assert side.session.open_streams == 0


def test_room_is_said_to_a_stream_that_ended_with_its_window_used_up() -> None:
    """Its source waits to be paid for what was taken, whether or not more may be sent."""
    side = client(high=100_000)
    hearing = opened(side, b"x" * 16)
    assert hearing.stream is not None
    assert not hearing.stream.send(b"y" * (INITIAL_WINDOW - 16))
    hearing.stream.send_eof()
    raw = b""
    while side.trunk.out:
        assert hearing.events == []
        raw += side.trunk.take()
    assert hearing.events == ["room"]
    frames = split_frames(raw)
    assert sum(frame.length for frame in frames) == INITIAL_WINDOW - 16
    assert frames[-1] == Frame(0, FIN, 1, 0)


def test_rule_1_no_call_on_a_stream_calls_its_sink() -> None:
    side = client(high=10)
    hearing = opened(side)
    stream = hearing.stream
    assert stream is not None
    side.trunk._full = False
    stream.send(b"x" * 400_000)
    stream.credit(10)
    stream.send_eof()
    stream.reset()
    assert hearing.events == []
    side.later.run()
    side.trunk.take()
    assert hearing.events == []


def test_rule_4_a_full_trunk_stops_streams_and_room_serves_them_in_turn() -> None:
    side = client(high=200_000)
    hearings = [opened(side) for _ in range(3)]
    order: list[int] = []
    for hearing in hearings:
        stream = hearing.stream
        assert stream is not None
        hearing.on_room = lambda ident=stream.id: order.append(ident)
        assert stream.send(b"x" * 150_000) is (hearing is hearings[0])
    assert side.trunk.most < 200_000 + FRAME_PAYLOAD + 100
    sent = [0, 0, 0]
    raw = b""
    while side.trunk.out:
        raw += side.trunk.take()
    for frame in split_frames(raw):
        sent[frame.stream // 2] += frame.length
    assert sent == [150_000] * 3
    assert order == [3, 5]


def test_rule_4_one_long_sender_does_not_keep_others_waiting() -> None:
    side = client(high=100_000)
    long, short = opened(side), opened(side)
    assert long.stream is not None
    assert short.stream is not None
    side.feed(window_frame(1, 10_000_000))
    long.stream.send(b"x" * 1_000_000)
    short.stream.send(b"y" * 100)
    side.trunk.take()  # one round of both
    assert 3 in [frame.stream for frame in split_frames(side.trunk.take())]


def test_no_room_while_the_trunk_is_full_even_for_those_with_window() -> None:
    side = client(high=100)
    hearing = opened(side)
    assert hearing.stream is not None
    side.trunk._full = False
    side.session._blocked = False
    assert not hearing.stream.send(b"x" * 100)
    assert hearing.events == []
    feed(side.session, window_frame(1, 50))
    assert hearing.events == []
    side.trunk.take()
    assert hearing.events == ["room"]


def test_credit_is_told_at_half_a_window() -> None:
    side = client()
    hearing = opened(side)
    hearing.pays = False
    assert hearing.stream is not None
    side.feed(data_frame(1, b"x" * INITIAL_WINDOW))
    hearing.stream.credit(INITIAL_WINDOW // 2 - 1)
    assert side.trunk.frames() == []
    hearing.stream.credit(1)
    assert side.trunk.frames() == [Frame(1, 0, 1, INITIAL_WINDOW // 2)]
    hearing.stream.credit(10**9)  # a caller that counts wrong does not widen the window
    assert side.trunk.frames() == [Frame(1, 0, 1, INITIAL_WINDOW // 2)]
    side.feed(data_frame(1, b"x" * INITIAL_WINDOW))
    assert_violated(side, side.feed(data_frame(1, b"x")))


def test_no_credit_is_told_after_the_peers_FIN() -> None:
    side = client()
    hearing = opened(side)
    side.feed(data_frame(1, b"x" * INITIAL_WINDOW, FIN))
    assert hearing.stream is not None
    assert side.trunk.frames() == []
    hearing.stream.credit(1)
    assert side.trunk.frames() == []


# sinks that act within their callbacks


def test_rule_3_a_sink_may_reset_in_data() -> None:
    side = client()
    hearing = opened(side)
    stream = hearing.stream
    assert stream is not None
    hearing.on_data = lambda view: stream.reset()
    raw = data_frame(1, b"x" * 100, FIN) + data_frame(1, b"y" * 100) + ping_frame(4)
    feed(side.session, raw, [50])
    assert hearing.pieces == [38]
    assert hearing.events == []
    assert side.trunk.frames() == [Frame(0, RST, 1, 0), Frame(2, ACK, 0, 4)]


def test_rule_3_a_stream_that_was_reset_says_nothing_to_a_new_sink_either() -> None:
    side = client()
    first = opened(side)
    stream = first.stream
    assert stream is not None
    second = Hearing()

    def replace(view: memoryview) -> None:
        stream.reset()
        stream.sink = second

    first.on_data = replace
    feed(side.session, data_frame(1, b"x" * 100, FIN), [50])
    assert (len(first.received), len(second.received), second.events) == (38, 0, [])


def test_rule_3_a_sink_may_replace_itself_in_data() -> None:
    side = client()
    first = opened(side)
    stream = first.stream
    assert stream is not None
    second = Hearing(stream)
    first.on_data = lambda view: setattr(stream, "sink", second)
    feed(side.session, data_frame(1, b"abcdef", FIN), [14])
    assert (bytes(first.received), bytes(second.received)) == (b"ab", b"cdef")
    assert second.events == ["eof"]
    assert first.events == []


def test_rule_3_a_sink_may_reset_others_open_and_end_in_any_callback() -> None:
    side = client(high=100)
    first, second = opened(side), opened(side)
    assert first.stream is not None
    assert second.stream is not None
    victim, culprit = second.stream, first.stream
    side.trunk._full = side.session._blocked = False
    culprit.send(b"x" * 200)
    victim.send(b"y" * 200)

    def act() -> None:
        first.on_room = None
        victim.reset()
        side.session.open(b"new")
        culprit.send(b"z" * 300)
        culprit.send_eof()

    first.on_room = act
    side.trunk.take()
    side.trunk.take()
    assert first.events[0] == "room"
    assert second.events == []
    assert side.session.open_streams == 2


def test_rule_3_a_sink_may_reset_others_in_lost() -> None:
    side = client()
    first, second = opened(side), opened(side)
    victim = second.stream
    assert victim is not None

    class Vengeful(Hearing):
        def lost(self, error: object) -> None:
            assert victim is not None
            victim.reset()

    assert first.stream is not None
    first.stream.sink = Vengeful()
    side.session.eof()
    assert second.events == []
    assert side.session.crashes == 0


@pytest.mark.parametrize("where", ["data", "eof", "room"])
def test_rule_7_a_crashing_sink_loses_its_stream_only(where: str) -> None:
    side = client()
    hearing, other = opened(side), opened(side)

    def crash(*_: object) -> None:
        raise KeyError("oops")

    setattr(hearing, f"on_{where}", crash)
    assert hearing.stream is not None
    hearing.stream.send(b"x" * (INITIAL_WINDOW + 1))
    side.trunk.take()
    answers = side.feed(
        data_frame(1, b"x"), window_frame(1, 1000), data_frame(1, b"", FIN), data_frame(3, b"fine", FIN)
    )
    assert Frame(0, RST, 1, 0) in answers
    assert isinstance(hearing.error, Crash)
    assert isinstance(hearing.error.__cause__, KeyError)
    assert side.session.crashes == 1
    assert other.received == b"fine"
    assert other.events == ["eof"]


def test_rule_7_a_crash_in_lost_accept_or_ended_is_counted() -> None:
    def crash(*_: object) -> None:
        raise KeyError("oops")

    side = server()
    side.on_accept = crash
    assert side.feed(data_frame(1, b"x", SYN)) == [Frame(0, RST, 1, 0)]
    assert side.session.crashes == 1
    side.on_accept = None
    side.feed(data_frame(3, b"x", SYN), data_frame(5, b"x", SYN))
    setattr(side.accepted[1], "lost", crash)  # noqa: B010  (mypy: a method)
    side.session._ended = crash
    side.session.eof()
    assert side.session.crashes == 3
    assert side.accepted[2].events == ["lost"]


def test_a_crash_in_streams_free_is_counted() -> None:
    side = client(Limits(max_streams=1))
    hearing = opened(side)
    assert not side.session.can_open()
    assert hearing.stream is not None

    def crash() -> None:
        raise KeyError("oops")

    side.session._streams_free = crash
    hearing.stream.reset()
    side.later.run()
    assert side.session.crashes == 1


def test_an_accepted_stream_may_be_reset_at_once() -> None:
    side = server()
    side.on_accept = lambda hearing: hearing.stream.reset() if hearing.stream else None
    assert side.feed(data_frame(1, b"x", SYN), data_frame(1, b"y")) == [Frame(0, RST, 1, 0)]
    assert side.accepted[0].received == b""


def test_faces() -> None:
    side = client()
    hearing = opened(side)
    assert repr(side.session) == "<yamux client open: 1 streams>"
    assert repr(hearing.stream) == "<yamux stream 1: in 262144, out 262128, 0 pending>"
    side.session.eof()
    assert repr(side.session) == "<yamux client over: 0 streams>"
    assert "dead" in repr(hearing.stream)
