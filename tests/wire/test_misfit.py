"""Sentences about what does not fit: the same form whatever is wrong, and nothing of the peer's text in them."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003  (a field's type is read at run time)
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from rustunnel_py.wire.misfit import NAME_MAX, Misfit, allowed, fit, whole_numbers


class Inner(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    deep_one: Annotated[int, Meta(ge=1, le=5)]
    kind: Literal["http", "ws"] = "http"


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    port: Annotated[int, Meta(ge=1, le=65535, description="Its port.")]
    label: Annotated[str, Meta(min_length=1, max_length=9)] = "x"
    form: Annotated[str, Meta(pattern="^[a-z]+$")] | None = None
    long_form: Annotated[str, Meta(pattern="^" + "a?" * 50 + "$")] | None = None
    told: Annotated[str, Meta(pattern="^" + "a?" * 50 + "$", description="Some a.")] | None = None
    least: Annotated[float, Meta(ge=0)] = 0
    word: Literal["one", "two", "three"] = "one"
    flag: bool = False
    at: Annotated[datetime, Meta(tz=True)] | None = None
    headers: Annotated[dict[str, str | None], Meta(max_length=2)] | None = None
    keyed: dict[Annotated[str, Meta(max_length=2)], int] = {}
    inner: Inner | None = None
    many: Annotated[list[Inner], Meta(max_length=2)] = []
    pair: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "port: is missing"),
        ({"port": "80"}, "port: a whole number from 1 to 65535, not a text"),
        ({"port": 0}, "port: a whole number from 1 to 65535, not 0"),
        ({"port": 2**64}, "port: a whole number from 1 to 65535, not 18446744073709551616"),
        ({"port": 1.5}, "port: a whole number from 1 to 65535, not 1.5"),
        ({"port": False}, "port: a whole number from 1 to 65535, not false"),
        ({"port": None}, "port: a whole number from 1 to 65535, not null"),
        ({"label": ""}, "label: a text of 1 to 9 characters"),
        ({"label": 5}, "label: a text of 1 to 9 characters, not 5"),
        ({"form": "A"}, "form: a text in the form ^[a-z]+$ or null"),
        ({"long_form": "b"}, "long_form: a text in the form that the API's description gives or null"),
        ({"told": "b"}, "told: some a or null"),
        ({"told": 5}, "told: some a or null, not 5"),
        ({"least": -1}, "least: a number, at least 0, not -1"),
        ({"word": "four"}, "word: one of one, three, two"),
        ({"word": 5}, "word: one of one, three, two, not 5"),
        ({"flag": "true"}, "flag: true or false, not a text"),
        ({"at": "2025-06-01T12:00:00"}, "at: a time such as 2025-06-01T12:00:00Z or null"),
        ({"headers": {"A": 5}}, "headers: each of its values a text or null"),
        ({"headers": dict.fromkeys("abc")}, "headers: an object of at most 2 keys or null"),
        ({"headers": []}, "headers: an object of at most 2 keys or null, not a list"),
        ({"keyed": {"long": 5}}, "keyed: one of its keys cannot be used"),
        ({"inner": {}}, "inner.deepOne: is missing"),
        ({"inner": {"deepOne": 6}}, "inner.deepOne: a whole number from 1 to 5, not 6"),
        ({"inner": {"deepOne": 1, "deep_one": 1}}, "inner.deep_one: no such key; allowed: deepOne, kind"),
        ({"inner": 5}, "inner: an object or null, not 5"),
        ({"many": [{"deepOne": 1}, {"deepOne": 1, "kind": "tcp"}]}, "many[1].kind: http or ws"),
        ({"many": [{"deepOne": 1}] * 3}, "many: a list of at most 2 entries"),
        ({"many": [5]}, "many[0]: an object, not 5"),
        ({"pair": ["a", 5]}, "pair[1]: a text, not 5"),
        ([], "an object, not a list"),
        ("x", "an object, not a text"),
        (None, "an object, not null"),
    ],
)
def test_the_key_what_is_allowed_and_what_came(given: Any, said: str) -> None:
    value: Any = {"port": 1} | given if isinstance(given, dict) and given and "port" not in given else given
    with pytest.raises(Misfit) as caught:
        fit(value, Outer)
    assert str(caught.value) == said
    assert said == (f"{caught.value.key}: {caught.value.problem}" if caught.value.key else caught.value.problem)


@pytest.mark.parametrize("name", ["x" * 9000, "a` - at `$.port", "`", "", "a\n - at `$.inner.deepOne`", "\u202e"])
def test_a_key_that_the_peer_made_up_is_cut_and_misleads_nobody(name: str) -> None:
    with pytest.raises(Misfit) as caught:
        fit({"port": 1, name: 1}, Outer)
    assert "no such key" in caught.value.problem
    assert len(caught.value.key) <= NAME_MAX + len("inner.deepOne.")


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_no_text_of_the_peers_is_quoted(text: str) -> None:
    marked = f"<{text}>"
    for key in ("word", "port", "form", "at", "flag", "inner", "many"):
        with pytest.raises(Misfit) as caught:
            fit({"port": 1} | {key: marked}, Outer)
        assert caught.value.key == key
        assert marked not in str(caught.value)


def test_what_fits_comes_back() -> None:
    assert fit({"port": 80, "inner": {"deepOne": 2}}, Outer) == Outer(80, inner=Inner(2))


def test_whole_numbers_however_they_are_written() -> None:
    assert whole_numbers({"a": [1.0, {"b": 2e3}], "c": 1.5, "d": 1e300, "e": True, "f": "1.0"}) == {
        "a": [1, {"b": 2000}],
        "c": 1.5,
        "d": 1e300,
        "e": True,
        "f": "1.0",
    }
    assert isinstance(whole_numbers(3.0), int)
    assert isinstance(whole_numbers(2.0**54), float)


def test_what_is_allowed_without_bounds() -> None:
    kinds = msgspec.inspect.multi_type_info(
        [int, Annotated[int, Meta(le=3)], Annotated[str, Meta(min_length=2)], float]
    )
    assert [allowed(kind) for kind in kinds] == [
        "a whole number",
        "a whole number, at most 3",
        "a text of at least 2 characters",
        "a number",
    ]
