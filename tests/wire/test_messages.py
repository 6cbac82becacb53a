from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rustunnel_py.wire.messages import FRAMES_A_CALL, Allowance, EventWatcher, FrameWatcher, Seen


def frame(opcode: int, payload: bytes, *, fin: bool = True, mask: bytes = b"", rsv1: bool = False) -> bytes:
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big") if size < 65536 else b""
    length = length or b"\x7f" + size.to_bytes(8, "big")
    first = bytes([opcode | (0x80 if fin else 0) | (0x40 if rsv1 else 0)])
    if mask:
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        length = bytes([length[0] | 0x80]) + length[1:]
    return first + length + mask + payload


def fed(watcher: FrameWatcher | EventWatcher, data: bytes, step: int) -> list[Seen]:
    seen: list[Seen] = []
    for at in range(0, len(data), step):
        seen += watcher.feed(memoryview(data[at : at + step]))
    return seen


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 9, 10]), st.binary(max_size=120), st.booleans()), max_size=6),
    st.integers(1, 50),
)
@settings(max_examples=100, deadline=None)
def test_frames_are_seen_whatever_the_split(messages: list[tuple[int, bytes, bool]], step: int) -> None:
    data = b"".join(
        frame(opcode, payload, mask=b"\x01\xfe\x80\x33" if mask else b"") for opcode, payload, mask in messages
    )
    watcher = FrameWatcher(Allowance(10_000, 100))
    kinds = {1: "text", 2: "binary", 9: "ping", 10: "pong"}
    assert fed(watcher, data, step) == [Seen(kinds[opcode], len(load), load) for opcode, load, _ in messages]
    assert watcher.count == len(messages)
    assert watcher.watching


def test_fragments_with_a_ping_between_are_one_message() -> None:
    data = frame(1, b"one ", fin=False) + frame(9, b"p") + frame(0, b"two", mask=b"abcd")
    assert fed(FrameWatcher(Allowance(99, 9)), data, 3) == [Seen("ping", 1, b"p"), Seen("text", 7, b"one two")]


def test_a_long_message_is_kept_to_the_cap_and_counted_in_full() -> None:
    watcher = FrameWatcher(Allowance(10, 100))
    seen = fed(watcher, frame(2, b"x" * 70_000) + frame(1, b"more", rsv1=True), 4096)
    assert seen == [Seen("binary", 70_000, b"x" * 10), Seen("text", 4, b"", True)]


def test_past_the_number_that_is_kept_messages_are_counted() -> None:
    watcher = FrameWatcher(Allowance(1000, 3))
    assert len(fed(watcher, frame(1, b"x") * 10, 7)) == 3
    assert watcher.count == 10


def test_what_is_no_websocket_ends_the_watching() -> None:
    for bad in (frame(3, b"x"), frame(0, b"no start"), frame(9, b"x", fin=False), frame(1, b"a", fin=False) * 2):
        watcher = FrameWatcher(Allowance(99, 9))
        fed(watcher, bad, 100)
        assert not watcher.watching
        assert watcher.feed(memoryview(frame(1, b"later"))) == []


def test_a_flood_of_tiny_frames_is_not_watched() -> None:
    watcher = FrameWatcher(Allowance(99, 9))
    fed(watcher, frame(1, b"") * (FRAMES_A_CALL + 1), 64 * 1024)
    assert not watcher.watching


@given(st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r"]), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_events_are_seen_whatever_the_split(end: bytes, step: int) -> None:
    events = [b"data: one", b": keep", b"event: x" + end[: len(end) // 2] + b"data: two"]
    watcher = EventWatcher(Allowance(1000, 100))
    seen = fed(watcher, b"".join(event + end for event in events) + b"data: cut", step)
    assert [one.content.strip(b"\r\n") for one in seen] == events
    assert watcher.count == 3


def test_events_past_the_cap_are_counted() -> None:
    watcher = EventWatcher(Allowance(20, 2))
    seen = fed(watcher, b"data: 0123456789\n\n" * 50, 7)
    assert [(one.size, len(one.content)) for one in seen] == [(18, 18), (18, 2)]
    assert watcher.count == 50
