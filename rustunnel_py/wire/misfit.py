"""JSON values into shapes, and the one sentence about what does not fit: which key, what is allowed, what came instead.

    port: a whole number from 1 to 65535, not a text
    edit.times: is missing
    requests[3].protocol: http or ws

A key is its path as in JavaScript. No text of the peer's is quoted, since it may be a secret or hold the words that
have a meaning on the wire; names of keys that nobody knows are, cut short. (msgspec's own sentences name a missing
key in the middle, without a path at the top level, and say of a wrong word only that it is wrong.)
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec
from msgspec import inspect

from rustunnel_py.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Hashable

    from rustunnel_py.wire.strict_json import JsonValue

NAME_MAX = 64  # characters shown of a key that the peer made up
PATTERN_MAX = 80  # characters of a regular expression that a person reads; longer ones stand in the description
_NUMBER_MAX = 40  # characters shown of a number; a double prints in 25

T = TypeVar("T")

_SENTENCE = re.compile(r"(?P<said>.*?)(?: - at (?P<keys>`key` in )?`\$\.?(?P<path>[^`]*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_STEP = re.compile(r"(?P<name>[^.\[\]]+)|\[(?P<index>[0-9]+)\]|(?P<any>\[\.\.\.\])")


class Misfit(WireError):
    """`key` is the path of what does not fit, empty where it is all of it; `problem` the rest of the sentence."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}" if key else problem)
        self.key = key
        self.problem = problem


def fit(value: JsonValue, shape: type[T]) -> T:
    """The value as a `shape`, strictly: no text for a number, no number for a truth value. Raises Misfit."""
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise _misfit(str(error), value, _kind_of(cast("Hashable", shape))) from None


@cache
def _kind_of(shape: Hashable) -> inspect.Type:
    """It takes half a millisecond, and there are as many as this package has shapes."""
    return inspect.type_info(shape)


def whole_numbers(value: JsonValue) -> JsonValue:
    """The same with whole numbers for those that are written with a fraction or exponent: 3.0 is one in JSON.

    Only up to 2**53, where a double still tells them apart.
    """
    if isinstance(value, dict):
        return {key: whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole_numbers(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    return value


def allowed(kind: inspect.Type) -> str:
    """What a value of this type may be, in a few words: `a whole number from 1 to 100 or null`."""
    match kind:
        case inspect.Metadata(
            type=inspect.StrType(pattern=str(pattern)), extra_json_schema={"description": str(said)}
        ) if len(pattern) > PATTERN_MAX:
            return said[0].lower() + said[1:].removesuffix(".")
        case inspect.Metadata(type=inner):
            return allowed(inner)
        case inspect.UnionType(types=kinds):
            words = [allowed(one) for one in kinds if not isinstance(one, inspect.NoneType)]
            return " or ".join([*words, "null"] if inspect.NoneType() in kinds else words)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType(ge=low, le=high):
            return f"a whole number{_range(low, high)}"
        case inspect.FloatType(ge=low, le=high):
            return f"a number{_range(low, high)}"
        case inspect.StrType(min_length=low, max_length=high, pattern=pattern):
            return f"a text{_sizes(low, high, 'characters')}{_form(pattern)}"
        case inspect.LiteralType(values=values):
            words = [str(value) for value in values]
            return " or ".join(words) if len(words) < 3 else f"one of {', '.join(words)}"
        case inspect.DateTimeType():
            return "a time such as 2025-06-01T12:00:00Z"
        case inspect.ListType(min_length=low, max_length=high) | inspect.VarTupleType(min_length=low, max_length=high):
            return f"a list{_sizes(low, high, 'entries')}"
        case inspect.DictType(min_length=low, max_length=high):
            return f"an object{_sizes(low, high, 'keys')}"
        case _:
            return "an object"


def _range(low: float | None, high: float | None) -> str:
    if high is None:
        return "" if low is None else f", at least {low}"
    return f", at most {high}" if low is None else f" from {low} to {high}"


def _sizes(low: int | None, high: int | None, things: str) -> str:
    if high is None:
        return f" of at least {low} {things}" if low else ""
    return f" of {low} to {high} {things}" if low else f" of at most {high} {things}"


def _form(pattern: str | None) -> str:
    if pattern is None:
        return ""
    return f" in the form {pattern}" if len(pattern) <= PATTERN_MAX else " in the form that the API's description gives"


def _misfit(message: str, value: JsonValue, kind: inspect.Type) -> Misfit:
    sentence = _SENTENCE.fullmatch(message)
    said, path = (sentence["said"], sentence["path"] or "") if sentence else (message, "")
    missing, unknown = _MISSING.fullmatch(said), _UNKNOWN.fullmatch(said)
    if missing is not None:
        return Misfit(_below(path, missing["name"]), "is missing")
    found = _find(path, value, kind)
    if unknown is not None:
        name = unknown["name"][:NAME_MAX]
        return Misfit(_below(path, name), f"no such key{_keys_of(found)}")
    key = path.removesuffix("[...]")
    if found is None:
        return Misfit(key, "cannot be used")  # no path of ours: it stands in what the peer wrote
    if sentence is not None and sentence["keys"]:
        return Misfit(key, "one of its keys cannot be used")
    words = allowed(found.kind)
    if key != path:
        return Misfit(key, f"each of its values {words}")
    got = _got(found)
    return Misfit(key, f"{words}, not {got}" if got else words)


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


class _Found:
    """What stands at a path: the type that is wanted there, and what came. Values of an object are not told apart."""

    __slots__ = ("kind", "value")

    def __init__(self, kind: inspect.Type, value: JsonValue) -> None:
        self.kind = kind
        self.value = value


def _find(path: str, value: JsonValue, kind: inspect.Type) -> _Found | None:
    for step in _STEP.finditer(path):
        kind = _plain(kind)
        try:
            match kind:
                case inspect.StructType(fields=fields) if step["name"] and isinstance(value, dict):
                    kind = next(field.type for field in fields if field.encode_name == step["name"])
                    value = value[step["name"]]
                case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item) if isinstance(value, list):
                    kind, value = item, value[int(step["index"])]
                case inspect.DictType(value_type=item):
                    kind = item
                case _:
                    return None
        except (StopIteration, LookupError, TypeError):
            return None
    return _Found(kind, value)


def _plain(kind: inspect.Type) -> inspect.Type:
    """Without descriptions and null; of several the first."""
    while True:
        match kind:
            case inspect.Metadata(type=inner):
                kind = inner
            case inspect.UnionType(types=kinds):
                kind = next(one for one in kinds if not isinstance(one, inspect.NoneType))
            case _:
                return kind


def _keys_of(found: _Found | None) -> str:
    kind = None if found is None else _plain(found.kind)
    if not isinstance(kind, inspect.StructType):
        return ""
    return f"; allowed: {', '.join(field.encode_name for field in kind.fields)}"


def _got(found: _Found) -> str:
    """What came, where that says more than what is allowed."""
    match found.value:
        case None:
            return "null"
        case bool(truth):
            return "true" if truth else "false"
        case int() | float():
            return str(found.value)[:_NUMBER_MAX]
        case str():
            texts = inspect.StrType | inspect.LiteralType | inspect.DateTimeType
            return "" if isinstance(_plain(found.kind), texts) else "a text"
        case list():
            return "" if isinstance(_plain(found.kind), inspect.ListType | inspect.VarTupleType) else "a list"
        case _:
            return "" if isinstance(_plain(found.kind), inspect.DictType) else "an object"
