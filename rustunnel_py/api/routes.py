"""Routes that say what they take and give: one declaration serves a request, guards it, and is its documentation.

    @routes.get("/history", "Registrations, newest first", query=HistoryQuery, gives=HistoryShown)
    async def history() -> Response: ...

A query's and a body's shape are msgspec structs. What is declared wrongly shows in the tests: they ask every
route with every kind of token, and hold each answer against the document that is made of the declarations.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
from quart import Blueprint, Response, request

from rustunnel_py.errors import BadRequest, Denied
from rustunnel_py.wire import strict_json
from rustunnel_py.wire.misfit import Misfit, allowed, fit, whole_numbers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BODY_MAX = 64 * 1024  # bytes, where a route says nothing else; a label and a scope

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_DIGITS = re.compile(r"[0-9]{1,20}")  # as many as any bound has, and some zeros before
_JSON_TYPE = re.compile(r"application/json(\s*;\s*charset=\"?utf-?8\"?)?\s*", re.IGNORECASE)
DATE = re.compile(
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})$"
)

T = TypeVar("T", bound=msgspec.Struct)


class WrongType(Denied):
    """A field of the body has the wrong type, is missing or unknown."""

    status = 422


class WrongMediaType(Denied):
    """The body is declared as something that is not read here."""

    status = 415


class TooLong(Denied):
    """The body is longer than any body that makes sense here."""

    status = 413


class Auth(enum.Enum):
    """Who may call. ANYONE: who has a token; what they see is the hub's to say. DOOR: it has rules of its own."""

    OPEN = "open"
    ANYONE = "anyone"
    WRITER = "writer"
    ADMIN = "admin"
    DOOR = "door"


class ErrorShown(msgspec.Struct):
    """Every error. `id` finds it in the server's log, for errors that are nobody's fault but the server's."""

    error: str
    id: str | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class Gives:
    """An answer that is not JSON, or has no body: its media type."""

    media: str | None
    description: str


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path. `gives` maps statuses to a struct type, a tuple of those (one of them), or Gives."""

    name: str
    method: Literal["GET", "POST", "PUT", "DELETE", "PATCH"]
    path: str
    summary: str
    auth: Auth
    query: type[msgspec.Struct] | None
    body: Any
    body_required: bool
    gives: dict[int, Any]
    errors: tuple[int, ...]
    tag: str
    description: str = ""

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.path)


class Routes:
    """The routes under one prefix. `guard` refuses callers by role; it raises Forbidden."""

    def __init__(self, name: str, prefix: str, guard: Callable[[Auth], None]) -> None:
        self.blueprint = Blueprint(name, __name__, url_prefix=prefix)
        self.table: list[Route] = []
        self._prefix = prefix
        self._guard = guard

    @property
    def open_endpoints(self) -> frozenset[str]:
        """Those that are served without looking for a token."""
        free = (Auth.OPEN, Auth.DOOR)
        return frozenset(f"{self.blueprint.name}.{route.name}" for route in self.table if route.auth in free)

    def add(
        self,
        method: Literal["GET", "POST", "PUT", "DELETE", "PATCH"],
        path: str,
        summary: str,
        *,
        gives: dict[int, Any],
        auth: Auth = Auth.ANYONE,
        query: type[msgspec.Struct] | None = None,
        body: Any = None,
        body_required: bool = True,
        errors: tuple[int, ...] = (),
        tag: str = "tunnels",
    ) -> Callable[[Callable[..., Awaitable[Response]]], Callable[..., Awaitable[Response]]]:
        """Serve a path with the decorated function; `{name}` in it is an argument."""

        def declare(handler: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
            name = handler.__name__
            description = " ".join((handler.__doc__ or "").split())
            self.table.append(
                Route(
                    name,
                    method,
                    self._prefix + re.sub(r"\{\w+:", "{", path),
                    summary,
                    auth,
                    query,
                    body,
                    body_required,
                    gives,
                    errors,
                    tag,
                    description,
                )
            )

            async def serve(**arguments: str) -> Response:
                self._guard(auth)
                return await handler(**arguments)

            self.blueprint.add_url_rule(
                re.sub(r"\{([\w:]+)\}", r"<\1>", path), endpoint=name, view_func=serve, methods=[method]
            )
            return handler

        return declare


# what comes in


def parse_id(text: str) -> str:
    """The id as the hub spells it; what is no UUID is nobody's id and finds nothing."""
    lowered = text.lower()
    return lowered if _UUID.fullmatch(lowered) else ""


def parse_query(shape: type[T]) -> T:
    """The query's parameters, strictly. Raises BadRequest; unknown ones are ignored."""
    fields: dict[str, object] = {}
    for field in msgspec.structs.fields(shape):
        values = request.args.getlist(field.encode_name)
        if len(values) > 1:
            raise BadRequest(f"{field.encode_name}: more than once")
        if values:
            fields[field.encode_name] = _value(field.encode_name, values[0], msgspec.inspect.type_info(field.type))
        elif field.required:
            raise BadRequest(f"{field.encode_name}: is missing")
    return msgspec.convert(fields, shape)


def _value(name: str, text: str, kind: msgspec.inspect.Type) -> object:
    """What a text stands for. BadRequest says what is allowed, as `misfit` does of bodies."""
    while isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    if isinstance(kind, msgspec.inspect.UnionType):
        return _value(name, text, next(one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType)))
    match kind:
        case msgspec.inspect.IntType(ge=low, le=high):
            if _DIGITS.fullmatch(text) and (low or 0) <= int(text) <= (int(text) if high is None else high):
                return int(text)
        case msgspec.inspect.BoolType():
            if text in ("true", "false"):
                return text == "true"
        case msgspec.inspect.LiteralType():
            if text in kind.values:
                return text
        case msgspec.inspect.DateTimeType():
            return parse_instant(name, text)
        case msgspec.inspect.StrType(min_length=low, max_length=high, pattern=pattern):
            fits = (low or 0) <= len(text) <= (len(text) if high is None else high)
            if fits and (pattern is None or re.search(pattern, text)):
                return text
        case _:
            raise TypeError(f"no query parameter can be a {kind}")
    raise BadRequest(f"{name}: {allowed(kind)}")


def parse_instant(name: str, text: str) -> datetime:
    """ISO 8601 with a time zone. Raises BadRequest."""
    if DATE.fullmatch(text):
        try:
            return msgspec.convert(text.upper().replace(" ", "T"), datetime).astimezone(UTC)
        except (msgspec.ValidationError, OverflowError, ValueError):
            pass
    raise BadRequest(f"{name}: a time such as 2025-06-01T12:00:00Z")


async def has_body() -> bool:
    return bool(await request.get_data(True, False))


def check_json_type() -> None:
    """Raises WrongMediaType."""
    declared = request.headers.getlist("Content-Type")
    if len(declared) != 1 or not _JSON_TYPE.fullmatch(declared[0]):
        raise WrongMediaType("the body must be application/json")
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise WrongMediaType("the body must not be compressed")


async def read_body(most: int) -> bytes:
    """Raises TooLong."""
    body: bytes = await request.get_data(True, False)  # type: ignore[assignment]
    if len(body) > most:
        raise TooLong("the body is too long")
    return body


async def parse_body(shape: type[T], most: int = BODY_MAX) -> T:
    """The JSON body. Raises WrongMediaType, TooLong, BadRequest (no JSON), WrongType (names the field)."""
    check_json_type()
    body = await request.get_data(as_text=False)
    try:
        return fit(whole_numbers(strict_json.loads(body, most)), shape)
    except strict_json.JsonRefused as error:
        raise BadRequest(f"the body is not acceptable JSON: {error}") from None
    except Misfit as misfit:
        raise WrongType(f"{misfit.key or 'the body'}: {misfit.problem}") from None


# what goes out


def show_instant(instant: datetime) -> str:
    """An instant in UTC in ISO 8601: whole seconds, with Z."""
    return instant.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"  # strftime writes the year 1 as 1


def show_instant_or_none(instant: datetime | None) -> str | None:
    return None if instant is None else show_instant(instant)


def answer(shown: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(shown), status=status, content_type="application/json")


def nothing() -> Response:
    return Response(b"", 204)
