"""Heads of streams between our own server and agent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustunnel_py.wire import stream_head
from rustunnel_py.wire.stream_head import HEAD_MAX, BadStreamHead, StreamHead

HEAD = StreamHead("3f0c3c53-5c1c-4f4e-8a57-0d8a5d6d3c11", "[2001:db8::1]:54321")


def test_a_head_is_its_length_and_a_json_array() -> None:
    text = b'["3f0c3c53-5c1c-4f4e-8a57-0d8a5d6d3c11","[2001:db8::1]:54321"]'
    assert stream_head.encode(HEAD) == bytes([0, len(text)]) + text


@given(st.text(max_size=40), st.text(max_size=40), st.binary(max_size=40))
def test_what_was_encoded_is_cut_off_whatever_follows(tunnel_id: str, visitor: str, rest: bytes) -> None:
    head = StreamHead(tunnel_id, visitor)
    raw = stream_head.encode(head)
    assert stream_head.cut(raw + rest) == (head, len(raw))
    for size in range(len(raw)):
        assert stream_head.cut(bytearray(raw[:size])) is None


def test_the_longest_addresses_fit() -> None:
    longest = StreamHead("f" * 36, "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%interface0]:65535")
    assert len(stream_head.encode(longest)) < HEAD_MAX


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b'["t"]', b'["t", "v", 1]', b'["t", 5]', b'{"tunnel_id":"t","visitor":"v"}', b"\xff", b'["t","\xff"]'],
)
def test_what_is_no_head_is_refused(text: bytes) -> None:
    with pytest.raises(BadStreamHead):
        stream_head.cut(len(text).to_bytes(2, "big") + text + b"rest")


def test_a_head_that_is_too_long_is_refused_before_it_has_come() -> None:
    with pytest.raises(BadStreamHead, match="513"):
        stream_head.cut((HEAD_MAX + 1).to_bytes(2, "big"))


@given(st.binary(max_size=600))
def test_any_bytes_are_a_head_or_incomplete_or_refused(raw: bytes) -> None:
    try:
        found = stream_head.cut(raw)
    except BadStreamHead:
        return
    if found is not None:
        assert 2 <= found[1] <= len(raw)
