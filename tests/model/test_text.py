"""Text of peers made fit to be shown (reliability C21, C22)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustunnel_py.model.text import escape


@pytest.mark.parametrize("text", ["", "0.7.8", "naïve 日本語 😀", 'C:\\path "quoted" <b>', " spaces "])
def test_honest_text_is_shown_as_it_is(text: str) -> None:
    assert escape(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x00\x07\x7f\x9b", "\\x00\\x07\\x7f\\x9b"),
        ("evil\u202egnp.exe", "evil\\u202egnp.exe"),
        ("\u2066\u2069\u200f\u200b\ufeff", "\\u2066\\u2069\\u200f\\u200b\\ufeff"),
        ("\u2028\u2029\xa0", "\\u2028\\u2029\\xa0"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_C21_what_acts_is_escaped(text: str, shown: str) -> None:
    assert escape(text) == shown


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("abcdef", 6, "abcdef"),
        ("abcdefg", 6, "abcde…"),
        ("ab\ncd", 6, "ab\\ncd"),
        ("ab\ncde", 6, "ab\\nc…"),
        ("\x1b\x1b\x1b", 6, "\\x1b…"),
        ("\u202e\u202e", 6, "…"),
        ("abc", 1, "…"),
        ("abc", 0, ""),
    ],
)
def test_C21_the_limit_counts_what_is_shown(text: str, limit: int, shown: str) -> None:
    assert escape(text, limit) == shown


def test_C21_a_client_version_of_10_kB() -> None:
    assert len(escape("1\x1b" * 5000)) <= 200


@given(st.text(st.characters(), max_size=50), st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_whatever_comes_the_result_is_short_and_printable(text: str, limit: int) -> None:
    shown = escape(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
