"""The strict reader, against RFC 8259 and reliability C01–C03."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustunnel_py.wire.strict_json import DEPTH_MAX, DIGITS_MAX, JsonRefused, loads
from tests.support.json_texts import ACCEPTED, REFUSED

LIMIT = 64 * 1024


@pytest.mark.parametrize("text", REFUSED)
def test_C01_texts_that_must_be_refused(text: bytes) -> None:
    with pytest.raises(JsonRefused):
        loads(text, LIMIT)


@pytest.mark.parametrize("text", ACCEPTED)
def test_C02_texts_that_must_be_accepted(text: bytes) -> None:
    assert loads(text, LIMIT) == json.loads(text)
    assert loads(text.decode(), LIMIT) == json.loads(text)


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_C03_depth(opening: str) -> None:
    per = opening.count("[") + opening.count("{")
    closing = opening.translate({ord("["): "]", ord("{"): "}"}).replace('"a":', "")[::-1]

    def nested(depth: int) -> str:
        return opening * (depth // per) + "1" + closing * (depth // per)

    assert loads(nested(DEPTH_MAX), LIMIT) is not None
    for depth in (DEPTH_MAX + 2, 1000, 100_000):
        for text in (nested(depth), opening * depth):
            with pytest.raises(JsonRefused, match="nested"):
                loads(text, 10**7)


def test_C03_brackets_in_strings_and_beside_each_other_are_no_depth() -> None:
    flat = b"[" + b",".join([b'[{"]":"[[[[\\"[["}]'] * 500) + b"]"
    assert loads(flat, LIMIT) == json.loads(flat)


def test_C03_depth_of_what_never_ends_a_string_is_found_in_no_time() -> None:
    for text in (b'["' + b"[" * 10**6, b'["\\' * 300_000, b'"[' * 500_000):
        with pytest.raises(JsonRefused):
            loads(text, 10**7)


@pytest.mark.parametrize("number", [b"1" * 1024 * 1024, b"-" + b"9" * 10_000, b"0." + b"1" * 10_000, b"1e999"])
def test_C03_numbers(number: bytes) -> None:
    with pytest.raises(JsonRefused, match="number"):
        loads(b"[" + number + b"]", 10**7)


def test_C03_the_longest_number() -> None:
    assert loads(b"9" * DIGITS_MAX, LIMIT) == 10**DIGITS_MAX - 1


def test_C03_size() -> None:
    assert loads(b'"' + b"x" * 98 + b'"', 100) == "x" * 98
    with pytest.raises(JsonRefused, match="100 bytes"):
        loads(b'"' + b"x" * 99 + b'"', 100)


def test_lone_surrogates_in_text_that_was_decoded_elsewhere() -> None:
    with pytest.raises(JsonRefused, match="surrogate"):
        loads('["\ud800"]', LIMIT)


def test_messages_quote_nothing() -> None:
    with pytest.raises(JsonRefused) as caught:
        loads(b'{"password":"hunter2",}', LIMIT)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer(kind: type[bytes]) -> None:
    assert loads(kind(b'{"a":[1]}'), LIMIT) == {"a": [1]}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
        max_leaves=20,
    ),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_whatever_is_written_is_read(value: object, ascii_only: bool) -> None:
    assert loads(json.dumps(value, ensure_ascii=ascii_only).encode(), 10**7) == value


@given(st.binary(max_size=60) | st.text('[]{}",:\\u0dD8e1-.tn ', max_size=40).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_read_as_the_standard_library_reads_them_or_refused(raw: bytes) -> None:
    try:
        value = loads(raw, LIMIT)
    except JsonRefused:
        return
    assert value == json.loads(raw)
