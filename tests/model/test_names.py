"""Host labels: one rule set for registration and routing (C12)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustunnel_py.errors import Unavailable
from rustunnel_py.model.names import generated_label, is_reserved_for, judge_label, scope_patterns


@pytest.mark.parametrize("wish", ["abc", "a-b", "0a0", "www", "123", "a" * 63, "xn--bcher-kva"])
def test_C12_a_legal_label_is_taken_as_it_is(wish: str) -> None:
    assert judge_label(wish) == wish


def test_C12_labels_are_compared_in_lower_case() -> None:
    assert judge_label("My-App") == "my-app"


@pytest.mark.parametrize(
    "wish",
    [
        "", "a", "ab", "a" * 64, "-ab", "ab-", "a.b", "*", "_acme-challenge", "xn--", "☃☃☃", "abc\x00", "abc\n",
        "a b", "abc.", "ａｂｃ", "abc/", "İstanbul",
    ],
)  # fmt: skip
def test_C12_anything_else_is_refused_with_the_rule(wish: str) -> None:
    with pytest.raises(Unavailable, match="3 to 63 letters") as caught:
        judge_label(wish)
    assert caught.value.code == "malformed"


def test_another_dialect_may_have_shorter_labels() -> None:
    assert judge_label("a", shortest=1) == "a"


@given(st.binary(min_size=8, max_size=32))
@settings(max_examples=200, deadline=None)
def test_a_generated_label_is_a_legal_label_of_11_characters(randomness: bytes) -> None:
    label = generated_label(randomness)
    assert len(label) == 11
    assert judge_label(label) == label


def test_a_generated_label_wants_enough_randomness() -> None:
    with pytest.raises(ValueError, match="8 random bytes"):
        generated_label(b"1234567")


def test_a_reserved_label_needs_a_scope_that_names_it_literally() -> None:
    reserved = {"www", "api"}
    assert is_reserved_for("www", reserved, None)
    assert is_reserved_for("www", reserved, "*")
    assert is_reserved_for("www", reserved, "w*, api")
    assert not is_reserved_for("www", reserved, "app-*, WWW")
    assert not is_reserved_for("shop", reserved, None)


def test_scope_patterns_are_trimmed_and_folded() -> None:
    assert scope_patterns(" App-* ,, b ") == ["app-*", "b"]
    assert scope_patterns(None) == []
