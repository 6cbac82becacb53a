"""The rustunnel dialect: routes, what they read, what they show. No rules."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003  (a field's type is read at run time)
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from quart import Response  # noqa: TC002  (handlers are looked at by Quart)

from rustunnel_py.api.caller import actor, current
from rustunnel_py.api.routes import (
    Auth,
    Gives,
    Routes,
    answer,
    nothing,
    parse_body,
    parse_id,
    parse_query,
    show_instant,
    show_instant_or_none,
)
from rustunnel_py.errors import NotFound
from rustunnel_py.hub.accounts import LABEL_MAX, NOT_BLANK, SCOPE_MAX, TUNNELS_MAX
from rustunnel_py.hub.audit import EVENTS  # noqa: TC001  (read at run time)
from rustunnel_py.model import scope as scopes
from rustunnel_py.model.access import Role
from rustunnel_py.model.tunnel import Protocol

if TYPE_CHECKING:
    from rustunnel_py.hub.accounts import Accounts
    from rustunnel_py.hub.audit import Audit
    from rustunnel_py.hub.registry import Registry, Tunnel
    from rustunnel_py.hub.sessions import Sessions
    from rustunnel_py.store.audit import AuditRow
    from rustunnel_py.store.tokens import Token
    from rustunnel_py.store.tunnel_log import LogEntry, TunnelLog

PAGE = 50  # entries, where the caller does not say
PAGE_MAX = 1000  # entries an answer, whatever the caller says
OFFSET_MAX = 2**53  # what every JSON reader can count to, and SQLite too

_TOKEN_ID_OR_ADMIN = "^([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|admin)$"

Limit = Annotated[
    int,
    Meta(ge=1, le=2**53, description=f"More than {PAGE_MAX} is {PAGE_MAX}."),
]
Cursor = Annotated[str, Meta(description="`next` of the page before.", pattern="^[1-9][0-9]{0,17}$")] | None


class StatusShown(msgspec.Struct):
    """Whether the server is well."""

    ok: bool
    active_sessions: int
    active_tunnels: int


class TunnelShown(msgspec.Struct):
    """A tunnel that is served now."""

    tunnel_id: str
    protocol: Literal["http", "tcp", "udp"]
    label: str
    public_url: str
    connected_since: str
    request_count: int
    client_addr: str


class TokenShown(msgspec.Struct):
    """A token without its secret. `role` and what follows come with `details`; null is no limit."""

    id: str
    token_hash: str
    label: str
    created_at: str
    last_used_at: str | None
    scope: str | None
    tunnel_count: int
    role: Literal["agent", "read", "admin"] | UnsetType = UNSET
    expires_at: str | UnsetType | None = UNSET
    max_tunnels: int | UnsetType | None = UNSET
    protocols: list[str] | UnsetType | None = UNSET
    reads: str | UnsetType | None = UNSET


class NewTokenShown(msgspec.Struct):
    """`token` is shown here only."""

    id: str
    label: str
    token: str


class EntryShown(msgspec.Struct):
    """One registration."""

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
    """`total` counts all that match."""

    total: int
    entries: list[EntryShown]


class AuditShown(msgspec.Struct):
    """One event. `details` has `event` again, `who`, `peer`, and what belongs to this kind of event."""

    id: str
    at: str
    event: str
    owner: str | None
    token_id: str | None
    details: msgspec.Raw


class AuditPage(msgspec.Struct):
    """`next` is the cursor of the following page; null: this is the last one."""

    entries: list[AuditShown]
    next: str | None


class NewTokenWanted(msgspec.Struct, forbid_unknown_fields=True):
    """A token to be made. All but `label` may be left out."""

    label: Annotated[
        str,
        Meta(
            description="For people.",
            extra_json_schema={"minLength": 1, "maxLength": LABEL_MAX, "pattern": NOT_BLANK},
        ),
    ]
    scope: Annotated[
        str | None,
        Meta(
            description="Patterns with commas between: `ci-*`, `pr-??`, `tcp:20000-20010`. null: every name and port.",
            extra_json_schema={"maxLength": SCOPE_MAX, "pattern": scopes.PATTERN},
        ),
    ] = None
    role: Annotated[
        Literal["agent", "read", "admin"],
        Meta(
            description="`agent` opens tunnels and sees its own, `read` only sees (`reads`), `admin` may do everything."
        ),
    ] = "agent"
    reads: (
        Annotated[
            str,
            Meta(
                pattern=_TOKEN_ID_OR_ADMIN,
                description="With the role `read`: the id of a token, or `admin`, whose tunnels, history and captures "
                "it sees. null: its own, of which a token that only reads has none.",
            ),
        ]
        | None
    ) = None
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None
    max_tunnels: Annotated[
        int | None,
        Meta(description="Tunnels at a time.", extra_json_schema={"minimum": 1, "maximum": TUNNELS_MAX}),
    ] = None
    protocols: (
        Annotated[
            list[Literal["http", "tcp"]],
            Meta(description="Which tunnels it may open. null: all.", min_length=1, max_length=2),
        ]
        | None
    ) = None


class TokensQuery(msgspec.Struct):
    """How much of each token."""

    details: Annotated[bool, Meta(description="Role and limits, too.")] = False


class HistoryQuery(msgspec.Struct):
    """Which registrations."""

    limit: Limit = PAGE
    offset: Annotated[int, Meta(ge=0, le=OFFSET_MAX)] = 0
    protocol: Literal["http", "tcp"] | None = None


class AuditQuery(msgspec.Struct):
    """Which events."""

    limit: Limit = PAGE
    cursor: Cursor = None
    event: Literal[EVENTS] | None = None  # type: ignore[valid-type]


def add_routes(
    api: Routes,
    registry: Registry,
    sessions: Sessions,
    accounts: Accounts,
    tunnel_log: TunnelLog,
    audit: Audit | None,
) -> None:
    """The routes of the page that this dialect was written from, and `audit`. No audit log: no such route."""

    @api.add("GET", "/status", "Health check", gives={200: StatusShown}, auth=Auth.OPEN, tag="server")
    async def status() -> Response:
        return answer(StatusShown(True, len(sessions), sum(1 for _ in registry.live())))

    @api.add("GET", "/tunnels", "List the tunnels that are served now", gives={200: list[TunnelShown]})
    async def list_tunnels() -> Response:
        return answer([show_tunnel(registry, tunnel) for tunnel in registry.visible_to(current())])

    @api.add("GET", "/tunnels/{tunnel_id}", "Show one tunnel", gives={200: TunnelShown}, errors=(404,))
    async def get_tunnel(tunnel_id: str) -> Response:
        wanted = parse_id(tunnel_id)
        for tunnel in registry.visible_to(current()):
            if tunnel.id == wanted:
                return answer(show_tunnel(registry, tunnel))
        raise NotFound("tunnel not found")

    @api.add("DELETE", "/tunnels/{tunnel_id}", "Close a tunnel", gives={204: NOTHING}, errors=(403, 404))
    async def close_tunnel(tunnel_id: str) -> Response:
        """By force: whoever visits it is cut off, and its address is free."""
        asking = actor()
        try:
            sessions.close_visible(asking.caller, parse_id(tunnel_id), asking.peer)
        except NotFound:
            raise NotFound("invalid tunnel id") from None  # the seed's words for an unknown id, too
        return nothing()

    @api.add(
        "GET",
        "/tokens",
        "List the tokens",
        query=TokensQuery,
        gives={200: list[TokenShown]},
        auth=Auth.ADMIN,
        tag="tokens",
    )
    async def list_tokens() -> Response:
        details = parse_query(TokensQuery).details
        return answer([show_token(token, details=details) for token in accounts.list_tokens()])

    @api.add(
        "POST",
        "/tokens",
        "Make a token",
        body=NewTokenWanted,
        gives={201: NewTokenShown},
        auth=Auth.ADMIN,
        errors=(404, 409),
        tag="tokens",
    )
    async def create_token() -> Response:
        """The raw token is in this answer and nowhere else."""
        wanted = await parse_body(NewTokenWanted)
        token, secret = await accounts.create_token(
            wanted.label,
            wanted.scope,
            role=Role(wanted.role),
            expires_at=wanted.expires_at,
            max_tunnels=wanted.max_tunnels,
            protocols=None if wanted.protocols is None else tuple(wanted.protocols),
            reads=None if wanted.reads is None else wanted.reads.lower(),
            by=actor(),
        )
        return answer(NewTokenShown(token.id, token.label, secret.reveal()), 201)

    @api.add(
        "DELETE",
        "/tokens/{token_id}",
        "Delete a token",
        gives={204: NOTHING},
        auth=Auth.ADMIN,
        errors=(404,),
        tag="tokens",
    )
    async def delete_token(token_id: str) -> Response:
        """Whoever is connected with it is disconnected at once."""
        await accounts.delete_token(parse_id(token_id), by=actor())
        return nothing()

    @api.add(
        "GET", "/history", "Registrations, newest first", query=HistoryQuery, gives={200: HistoryShown}, tag="history"
    )
    async def history() -> Response:
        caller, query = current(), parse_query(HistoryQuery)
        owner = None if caller.is_admin else caller.owner
        total, entries = await tunnel_log.history(owner, query.protocol, min(query.limit, PAGE_MAX), query.offset)
        return answer(HistoryShown(total, [show_entry(entry) for entry in entries]))

    if audit is not None:
        _add_audit(api, audit)


def _add_audit(api: Routes, audit: Audit) -> None:
    @api.add(
        "GET",
        "/audit",
        "Who did what, newest first",
        query=AuditQuery,
        gives={200: AuditPage},
        auth=Auth.ADMIN,
        tag="history",
    )
    async def list_audit() -> Response:
        query = parse_query(AuditQuery)
        limit = min(query.limit, PAGE_MAX)
        rows = await audit.page(parse_cursor(query.cursor), query.event, limit + 1)
        more = len(rows) > limit
        rows = rows[:limit]
        return answer(AuditPage([show_event(row) for row in rows], str(rows[-1].seq) if more else None))


NOTHING = Gives(None, "Done.")


def parse_cursor(text: str | None) -> int | None:
    return None if text is None else int(text)


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


def show_token(token: Token, *, details: bool = False) -> TokenShown:
    shown = TokenShown(
        id=token.id,
        token_hash=token.hash,
        label=token.label,
        created_at=show_instant(token.created_at),
        last_used_at=show_instant_or_none(token.last_used_at),
        scope=token.scope,
        tunnel_count=token.tunnel_count,
    )
    if details:
        shown.role = token.role.value
        shown.expires_at = show_instant_or_none(token.expires_at)
        shown.max_tunnels = token.max_tunnels
        shown.protocols = None if token.protocols is None else list(token.protocols)
        shown.reads = token.reads
    return shown


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
        unregistered_at=show_instant_or_none(entry.unregistered_at),
    )


def show_event(row: AuditRow) -> AuditShown:
    return AuditShown(
        id=row.id,
        at=show_instant(row.at),
        event=row.event,
        owner=row.owner,
        token_id=row.token_id,
        details=msgspec.Raw(row.details.encode()),
    )
