"""The one strict reader of JSON that a peer wrote: control frames and API bodies (reliability C03).

RFC 8259 and nothing beside it: strict UTF-8 without a byte order mark, no key twice, no NaN or Infinity, no number
that a double or 64 bits cannot hold, no lone surrogates, bounded size and depth. What comes back is plain data, for
`msgspec.convert`. (msgspec's own decoder takes the last of two equal keys, and skips what it does not know unread.)
"""

from __future__ import annotations

import json
import math
import re
from typing import NoReturn, TypeAlias

from rustunnel_py.errors import WireError

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"

DEPTH_MAX = 64
"""Nothing we read nests more than four deep; Python's own reader gives up somewhere near a thousand."""
DIGITS_MAX = 20
"""2**64 - 1 has 20; converting a longer one costs quadratic time and serves nobody."""
FLOAT_MAX = 64
"""Characters of a number with a fraction or an exponent; a double prints in 25."""

_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonRefused(WireError):
    """No JSON, or JSON that we do not take. The message quotes nothing of the input."""


def loads(data: bytes | bytearray | memoryview | str, max_bytes: int) -> JsonValue:
    """The value of one JSON text of at most `max_bytes` (of characters, where it is text). Raises JsonRefused."""
    if len(data) > max_bytes:
        raise JsonRefused(f"longer than {max_bytes} bytes")
    text = data if isinstance(data, str) else _decode(data)
    if text.count("[") + text.count("{") > DEPTH_MAX and _depth(text) > DEPTH_MAX:
        raise JsonRefused(f"nested deeper than {DEPTH_MAX}")
    try:
        value: JsonValue = _DECODER.decode(text)
    except JsonRefused:
        raise
    except (ValueError, RecursionError) as error:
        raise JsonRefused("not JSON") from error
    if _SURROGATE.search(text) or isinstance(data, str):
        _check_text(value)
    return value


def _decode(data: bytes | bytearray | memoryview) -> str:
    try:
        return str(data, "utf-8", "strict")
    except UnicodeDecodeError as error:
        raise JsonRefused("not UTF-8") from error


def _depth(text: str) -> int:
    """How deep brackets nest outside strings; for what is no JSON anything."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        if bracket in "[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise JsonRefused("a key twice in one object")
    return members


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > DIGITS_MAX:
        raise JsonRefused("a number too large")
    return int(digits)


def _float(text: str) -> float:
    number = float(text) if len(text) <= FLOAT_MAX else math.inf
    if math.isinf(number):
        raise JsonRefused("a number too large")
    return number


def _constant(name: str) -> NoReturn:
    raise JsonRefused("NaN or Infinity")


def _check_text(value: JsonValue) -> None:
    """Lone surrogates can be written as escapes, and can never be sent on or stored."""
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise JsonRefused("half a surrogate pair") from error
    elif isinstance(value, list):
        for item in value:
            _check_text(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key)
            _check_text(item)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant, strict=True
)
