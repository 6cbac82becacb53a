"""The rustunnel dialect: routes, what they read, what they show. No rules."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import msgspec
from quart import Blueprint, Response, request

from rustunnel_py.api.caller import current
from rustunnel_py.errors import BadRequest, Denied, NotFound
from rustunnel_py.model.tunnel import Protocol
from rustunnel_py.wire import strict_json

if TYPE_CHECKING:
    from datetime import datetime

    from rustunnel_py.hub.accounts import Accounts
    from rustunnel_py.hub.registry import Registry, Tunnel
    from rustunnel_py.hub.sessions import Sessions
    from rustunnel_py.store.tokens import Token
    from rustunnel_py.store.tunnel_log import LogEntry, TunnelLog

BODY_MAX = 64 * 1024  # bytes; the largest body has a label and a scope
PAGE = 50  # entries, where the caller does not say
PAGE_MAX = 1000  # entries an answer, whatever the caller says
OFFSET_MAX = 2**53  # what every JSON reader can count to, and SQLite too

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_DIGITS = re.compile(r"[0-9]{1,20}")
_JSON_TYPE = re.compile(r"application/json(\s*;\s*charset=\"?utf-?8\"?)?\s*", re.IGNORECASE)


class WrongType(Denied):
    """A field of the body has the wrong type, is missing or unknown."""

    status = 422


class WrongMediaType(Denied):
    """The body is declared as something that is not read here."""

    status = 415


class TooLong(Denied):
    """The body is longer than any body that makes sense here."""

    status = 413


class StatusShown(msgspec.Struct):
    ok: bool
    active_sessions: int
    active_tunnels: int


class TunnelShown(msgspec.Struct):
    tunnel_id: str
    protocol: Literal["http", "tcp", "udp"]
    label: str
    public_url: str
    connected_since: str
    request_count: int
    client_addr: str


class TokenShown(msgspec.Struct):
    id: str
    token_hash: str
    label: str
    created_at: str
    last_used_at: str | None
    scope: str | None
    tunnel_count: int


class NewTokenShown(msgspec.Struct):
    id: str
    label: str
    token: str


class EntryShown(msgspec.Struct):
    id: str
    tunnel_id: str
    protocol: str
    label: str
    session_id: str
    token_id: str | None
    token_label: str | None
    registered_at: str
    unregistered_at: str | None


class HistoryShown(msgspec.Struct):
    total: int
    entries: list[EntryShown]


class NewTokenWanted(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /api/tokens."""

    label: str
    scope: str | None = None


def blueprint(registry: Registry, sessions: Sessions, accounts: Accounts, tunnel_log: TunnelLog) -> Blueprint:
    """The routes under /api. All but `status` are for callers with a token."""
    api = Blueprint("rustunnel", __name__, url_prefix="/api")

    @api.get("/status")
    async def status() -> Response:
        return answer(StatusShown(True, len(sessions), sum(1 for _ in registry.live())))

    @api.get("/tunnels")
    async def list_tunnels() -> Response:
        return answer([show_tunnel(registry, tunnel) for tunnel in registry.visible_to(current())])

    @api.get("/tunnels/<tunnel_id>")
    async def get_tunnel(tunnel_id: str) -> Response:
        wanted = parse_id(tunnel_id)
        for tunnel in registry.visible_to(current()):
            if tunnel.id == wanted:
                return answer(show_tunnel(registry, tunnel))
        raise NotFound("tunnel not found")

    @api.delete("/tunnels/<tunnel_id>")
    async def close_tunnel(tunnel_id: str) -> Response:
        try:
            sessions.close_visible(current(), parse_id(tunnel_id))
        except NotFound:
            raise NotFound("invalid tunnel id") from None  # the seed's words for an unknown id, too
        return Response(b"", 204)

    @api.get("/tokens")
    async def list_tokens() -> Response:
        accounts.require_admin(current())
        return answer([show_token(token) for token in accounts.list_tokens()])

    @api.post("/tokens")
    async def create_token() -> Response:
        accounts.require_admin(current())
        wanted = await parse_body(NewTokenWanted)
        token, secret = await accounts.create_token(wanted.label, wanted.scope)
        return answer(NewTokenShown(token.id, token.label, secret.reveal()), 201)

    @api.delete("/tokens/<token_id>")
    async def delete_token(token_id: str) -> Response:
        accounts.require_admin(current())
        await accounts.delete_token(parse_id(token_id))
        return Response(b"", 204)

    @api.get("/history")
    async def history() -> Response:
        caller = current()
        limit = min(parse_number("limit", PAGE, 1), PAGE_MAX)
        offset = parse_number("offset", 0, 0, OFFSET_MAX)
        protocol = parse_protocol()
        owner = None if caller.is_admin else caller.owner
        total, entries = await tunnel_log.history(owner, protocol, limit, offset)
        return answer(HistoryShown(total, [show_entry(entry) for entry in entries]))

    return api


def parse_id(text: str) -> str:
    """The id as the hub spells it; what is no UUID is nobody's id and finds nothing."""
    lowered = text.lower()
    return lowered if _UUID.fullmatch(lowered) else ""


def parse_number(name: str, default: int, least: int, most: int | None = None) -> int:
    """A query parameter. Raises BadRequest."""
    text = _parameter(name)
    if text is None:
        return default
    if not _DIGITS.fullmatch(text) or int(text) < least or (most is not None and int(text) > most):
        raise BadRequest(f"{name}: a whole number, at least {least}")
    return int(text)


def parse_protocol() -> str | None:
    text = _parameter("protocol")
    if text not in (None, "http", "tcp"):
        raise BadRequest("protocol: http or tcp")
    return text


def _parameter(name: str) -> str | None:
    values = request.args.getlist(name)
    if len(values) > 1:
        raise BadRequest(f"{name}: more than once")
    return values[0] if values else None


async def parse_body(shape: type[NewTokenWanted]) -> NewTokenWanted:
    """The JSON body. Raises WrongMediaType, TooLong, BadRequest (no JSON), WrongType (names the field)."""
    declared = request.headers.getlist("Content-Type")
    if len(declared) != 1 or not _JSON_TYPE.fullmatch(declared[0]):
        raise WrongMediaType("the body must be application/json")
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise WrongMediaType("the body must not be compressed")
    body = await request.get_data(as_text=False)
    try:
        return msgspec.convert(strict_json.loads(body, BODY_MAX), shape)
    except strict_json.JsonRefused as error:
        raise BadRequest(f"the body is not acceptable JSON: {error}") from None
    except msgspec.ValidationError as error:
        raise WrongType(_told(error)) from None


def _told(error: msgspec.ValidationError) -> str:
    """msgspec's sentence with the field first: `label: expected str, got int`."""
    sentence, _, path = str(error).replace("`", "").partition(" - at ")
    sentence = sentence[:200]  # it may quote the name of an unknown field
    field = path.removeprefix("$.").removeprefix("$")
    return f"{field}: {sentence[0].lower()}{sentence[1:]}" if field else sentence


def show_tunnel(registry: Registry, tunnel: Tunnel) -> TunnelShown:
    return TunnelShown(
        tunnel_id=tunnel.id,
        protocol=show_protocol(tunnel.protocol),
        label=str(tunnel.address),
        public_url=registry.public_url(tunnel),
        connected_since=show_instant(tunnel.registered_at),
        request_count=tunnel.requests,
        client_addr=str(tunnel.client_addr or ""),
    )


def show_protocol(protocol: Protocol) -> Literal["http", "tcp", "udp"]:
    """What kind of tunnel it is; `https` is only the scheme of an HTTP tunnel's URL."""
    match protocol:
        case Protocol.TCP:
            return "tcp"
        case Protocol.UDP:
            return "udp"
        case _:
            return "http"


def show_token(token: Token) -> TokenShown:
    return TokenShown(
        id=token.id,
        token_hash=token.hash,
        label=token.label,
        created_at=show_instant(token.created_at),
        last_used_at=None if token.last_used_at is None else show_instant(token.last_used_at),
        scope=token.scope,
        tunnel_count=token.tunnel_count,
    )


def show_entry(entry: LogEntry) -> EntryShown:
    return EntryShown(
        id=entry.id,
        tunnel_id=entry.tunnel_id,
        protocol=entry.protocol,
        label=entry.label,
        session_id=entry.session_id,
        token_id=entry.token_id,
        token_label=entry.token_label,
        registered_at=show_instant(entry.registered_at),
        unregistered_at=None if entry.unregistered_at is None else show_instant(entry.unregistered_at),
    )


def show_instant(instant: datetime) -> str:
    """ISO 8601, whole seconds, UTC, with Z."""
    return instant.strftime("%Y-%m-%dT%H:%M:%SZ")


def answer(shown: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(shown), status=status, content_type="application/json")
