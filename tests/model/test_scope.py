from __future__ import annotations

import re
from fnmatch import fnmatchcase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustunnel_py.errors import BadRequest
from rustunnel_py.model.scope import PATTERN, parse_scope, scope_of


@pytest.mark.parametrize(
    ("pattern", "label", "allowed"),
    [
        ("app", "app", True),
        ("app", "app2", False),
        ("APP", "app", True),
        ("ci-*", "ci-", True),
        ("ci-*", "ci-7", True),
        ("ci-*", "xci-7", False),
        ("*", "anything", True),
        ("pr-??", "pr-12", True),
        ("pr-??", "pr-1", False),
        ("pr-??", "pr-123", False),
        ("*-a*b", "x-aabab", True),
        ("tcp:*", "app", False),
        ("x, app ,y", "app", True),
    ],
)
def test_labels(pattern: str, label: str, allowed: bool) -> None:
    assert parse_scope(pattern).allows_label(label) is allowed


@pytest.mark.parametrize(
    ("pattern", "port", "allowed"),
    [
        ("tcp:20000", 20000, True),
        ("tcp:20000", 20001, False),
        ("tcp:20000-20010", 20010, True),
        ("tcp:20000-20010", 20011, False),
        ("tcp:20010-20000", 20005, True),
        ("tcp:*", 1, True),
        ("*", 20000, False),
        ("app,tcp:1-2", 2, True),
    ],
)
def test_ports(pattern: str, port: int, allowed: bool) -> None:
    assert parse_scope(pattern).allows_port(port) is allowed


@pytest.mark.parametrize(
    "text", ["", " , ", "a.b", "tcp:", "tcp:0", "tcp:70000", "tcp:a", "udp:1", "ä", "a b", "x" * 64, "[a]"]
)
def test_what_is_no_scope(text: str) -> None:
    with pytest.raises(BadRequest, match="scope"):
        parse_scope(text)
    if text:
        assert scope_of(text) is not None  # a stored one that cannot be read allows nothing
        assert not scope_of(text).allows_label("a")  # type: ignore[union-attr]


def test_no_scope_is_no_limit() -> None:
    assert scope_of(None) is None


@settings(max_examples=200, deadline=None)
@given(st.text("ab*?-", max_size=12), st.text("ab-", max_size=12))
def test_wildcards_are_those_of_the_shell(pattern: str, label: str) -> None:
    wanted = pattern or "a"
    assert parse_scope(wanted).allows_label(label) is fnmatchcase(label, wanted)


@settings(max_examples=100, deadline=None)
@given(st.from_regex(PATTERN, fullmatch=True))
def test_the_described_grammar_is_the_one_that_is_read(text: str) -> None:
    scope = parse_scope(text)
    assert scope.labels or scope.ports


def test_a_pathological_pattern_is_quick() -> None:
    assert not parse_scope("*a" * 31).allows_label("a" * 62 + "b")


@pytest.mark.parametrize(
    ("scope", "made"),
    [
        ("ci-*", "ci-q7w8e9r0t1y"),
        ("app,pr-??", "pr-q7"),
        ("*", "q7w8e9r0t1y"),
        ("app", None),
        ("a*b*c", "aq7w8e9r0t1ybc"),
    ],
)
def test_a_name_within_a_scope(scope: str, made: str | None) -> None:
    assert parse_scope(scope).label_from("q7w8e9r0t1y") == made
    assert made is None or parse_scope(scope).allows_label(made)


def test_a_name_within_a_scope_is_no_longer_than_a_label() -> None:
    made = parse_scope("x" * 60 + "*").label_from("q7w8e9r0t1y")
    assert made is not None
    assert re.fullmatch("x{60}q7w", made)
