"""The rs-tunnel dialect: `/v1` and `/healthz`. Routes, what they read, what they show; no rules.

Three kinds of callers: nobody yet (login), a user (an access token, or an API token in its place), and a machine (the
run token of one tunnel; a user's token will do). Each call is counted for its user, before that for its address.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, TypeAlias

from quart import Blueprint, Response, g, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter

from rustunnel_py.api import rs_tunnel_shapes as shapes
from rustunnel_py.api.caller import peer
from rustunnel_py.api.limits import CallLimits, LimitReached, tell_allowance
from rustunnel_py.api.rs_tunnel_login import CallbackRefused, login_routes, show_fault
from rustunnel_py.api.rs_tunnel_shapes import Invalid, answer, parse_body
from rustunnel_py.errors import BadCredentials, Denied, Forbidden, NotFound, StoreError, Unavailable
from rustunnel_py.hub.audit import AccessRefused, unheard, who_is
from rustunnel_py.hub.leases import QuotaReached
from rustunnel_py.hub.logins import LoginRefused
from rustunnel_py.model.access import Caller, Secret
from rustunnel_py.model.bucket import source_of

if TYPE_CHECKING:
    from quart.blueprints import BlueprintSetupState

    from rustunnel_py.api.caller import Doorkeeper
    from rustunnel_py.hub.accounts import Accounts
    from rustunnel_py.hub.audit import Note
    from rustunnel_py.hub.leases import Leases
    from rustunnel_py.hub.logins import Logins
    from rustunnel_py.hub.telemetry import Telemetry

AgentPlace: TypeAlias = Callable[[], tuple[str, str]]
"""Where agents connect (`host:port`), and the pin of its key."""

SHARED_LIMIT = 100  # calls a minute
LIMITS = {
    "rs_tunnel.live_telemetry": 600,
    "rs_tunnel.ingest": 1200,
    "rs_tunnel.create": 20,
    "rs_tunnel.login_start": 10,
    "rs_tunnel.login_status": 120,
    "rs_tunnel.login_exchange": 20,
    # A refresh that is refused costs the CLI its session, a heartbeat its tunnel: these are limited last.
    "rs_tunnel.login_refresh": 600,
    "rs_tunnel.heartbeat": 600,
}
NO_LOGIN = frozenset(
    f"rs_tunnel.{name}"
    for name in (
        "login_start",
        "login_status",
        "login_exchange",
        "login_refresh",
        "callback",
        "approval",
        "answer_approval",
    )
)
OPEN = frozenset({"rs_tunnel.healthz", "rs_tunnel.description"})
MACHINE = frozenset({"rs_tunnel.heartbeat", "rs_tunnel.heartbeat_of_nothing", "rs_tunnel.ingest"})
KEEP_ALIVE = "timeout=60"  # the CLI closes two seconds earlier; without the hint after four

_ONE_TUNNEL = re.compile("/v1/tunnels/[^/]+")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class TunnelName(BaseConverter):
    """An id or host name, where `/v1/tunnels/telemetry` is another route."""

    regex = r"(?!telemetry$)[^/]+"


def _know_tunnel_names(state: BlueprintSetupState) -> None:
    state.app.url_map.converters["tunnel_name"] = TunnelName


class Unauthorized(BadCredentials):
    def __init__(self, reason: str) -> None:
        super().__init__("Missing access token." if reason == "MISSING_AUTH" else "Invalid or expired access token.")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RsTunnel:
    """The use-cases behind `/v1`."""

    leases: Leases
    logins: Logins
    telemetry: Telemetry
    agent_place: AgentPlace
    note: Note = unheard


def owns_path(path: str) -> bool:
    """Whether errors under this path are told in this dialect."""
    return path in ("/v1", "/healthz") or path.startswith("/v1/")


def body_max(path: str) -> int:
    return shapes.INGEST_MAX if path.startswith("/v1/") and path.endswith("/telemetry") else shapes.BODY_MAX


def blueprint(parts: RsTunnel, accounts: Accounts, doorkeeper: Doorkeeper) -> Blueprint:
    api = Blueprint("rs_tunnel", __name__)
    api.record(_know_tunnel_names)
    leases, telemetry = parts.leases, parts.telemetry
    limits = CallLimits(SHARED_LIMIT, LIMITS)

    @api.before_request
    async def admit() -> None:
        endpoint = request.endpoint or ""
        if endpoint in OPEN:
            return
        if endpoint in NO_LOGIN:
            if request.method in ("GET", "HEAD"):
                doorkeeper.check_host()  # a page: a link to it may stand anywhere
            else:
                doorkeeper.check_origin()
            limits.take(endpoint, _address())
            return
        try:
            caller = await _authenticate(parts, doorkeeper, machine=endpoint in MACHINE)
        except BadCredentials:
            limits.take("wrong", _address())
            raise
        limits.take(endpoint, f"user {caller}")

    @api.errorhandler(Forbidden)
    async def forbidden(error: Forbidden) -> Response:
        caller = g.get("caller")
        if isinstance(caller, Caller):
            what = f"{request.method} {request.path}"
            parts.note(AccessRefused(who=who_is(caller), peer=str(peer()), what=what))
        return show_error(error)

    @api.after_request
    async def add_headers(response: Response) -> Response:
        tell_allowance(response)
        return _kept_alive(response)

    @api.get("/healthz")
    async def healthz() -> Response:
        return answer(shapes.OkShown())

    @api.get("/v1/openapi.json")
    async def description() -> Response:
        text = (resources.files(__package__) / "static" / "rs-tunnel.openapi.json").read_bytes()
        return Response(text, content_type="application/json; charset=utf-8")

    # tunnels

    @api.get("/v1/tunnels")
    async def list_tunnels() -> Response:
        owner = _caller().owner
        listed = await leases.all_of(owner) if shapes.parse_flag("includeInactive") else leases.alive_of(owner)
        return answer([shapes.show_tunnel(one) for one in listed])

    @api.post("/v1/tunnels")
    async def create() -> Response:
        wanted = await parse_body(shapes.NewTunnelWanted)
        made = await leases.create(_caller(), wanted.port, wanted.requested_slug, peer())
        return answer(shapes.show_new_tunnel(made, *parts.agent_place()))

    @api.delete("/v1/tunnels/<tunnel_name:id_or_host>")
    async def stop(id_or_host: str) -> Response:
        await leases.stop(_caller(), id_or_host, peer())
        return answer(shapes.OkShown())

    @api.post("/v1/tunnels//heartbeat")
    async def heartbeat_of_nothing() -> Response:
        return _error(400, "INVALID_TUNNEL_ID", "The tunnel id is empty.")

    @api.post("/v1/tunnels/<id_or_host>/heartbeat")
    async def heartbeat(id_or_host: str) -> Response:
        tunnel_id = _reported(parts, accounts, id_or_host)
        native = None if leases.is_leased(tunnel_id) else leases.native_term(tunnel_id)
        term = native or leases.heartbeat(tunnel_id)
        return answer(shapes.HeartbeatShown(True, shapes.show_instant(term.expires_at)))

    # telemetry

    @api.post("/v1/tunnels/<id_or_host>/telemetry")
    async def ingest(id_or_host: str) -> Response:
        sent = await parse_body(shapes.TelemetrySent, shapes.INGEST_MAX)
        tunnel_id = _reported(parts, accounts, id_or_host, slug=True)
        if not leases.is_active(tunnel_id):
            raise NotFound("Tunnel not found.")
        telemetry.post(
            tunnel_id, sent.region, shapes.parse_metrics(sent.metrics), map(shapes.parse_event, sent.requests)
        )
        return answer(shapes.OkShown())

    @api.get("/v1/tunnels/telemetry")
    async def live_telemetry() -> Response:
        ids = [one.id for one in leases.alive_of(_caller().owner)]
        return answer([shapes.show_snapshot(snapshot) for snapshot in telemetry.live(ids)])

    @api.get("/v1/tunnels/<id_or_host>/metrics")
    async def metrics(id_or_host: str) -> Response:
        first, last = shapes.parse_instant("from"), shapes.parse_instant("to")
        if first is None or last is None:
            raise Invalid("from" if first is None else "to", "is missing")
        if first > last:
            raise Invalid("from", "is after `to`")
        tunnel_id = await leases.any_id(_caller(), id_or_host)
        return answer([shapes.show_point(point) for point in await telemetry.points(tunnel_id, first, last)])

    @api.get("/v1/tunnels/<id_or_host>/requests")
    async def requests(id_or_host: str) -> Response:
        after, limit = shapes.parse_instant("after"), shapes.parse_limit()
        tunnel_id = await leases.any_id(_caller(), id_or_host)
        return answer([shapes.show_request(logged) for logged in await telemetry.requests(tunnel_id, after, limit)])

    login_routes(api, parts.logins, doorkeeper, _caller)
    return api


# who calls


def _address() -> str:
    return f"address {source_of(peer().ip)}" if peer().ip else "address unknown"


async def _authenticate(parts: RsTunnel, doorkeeper: Doorkeeper, *, machine: bool) -> str:
    """Set who calls, and give their user. Raises BadCredentials."""
    given = request.headers.getlist("Authorization")
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    token = token.strip(" ")
    if scheme.lower() != "bearer" or not token:
        doorkeeper.check_origin()
        raise Unauthorized("MISSING_AUTH")
    secret = Secret(token)
    if machine and (run := await parts.leases.run_pass(secret)) is not None:
        g.run_pass = run
        return run.owner
    try:
        g.caller = caller = await parts.logins.authenticate(secret, peer())
    except BadCredentials:
        raise Unauthorized("INVALID_TOKEN") from None
    return caller.owner


def _caller() -> Caller:
    caller = g.caller
    assert isinstance(caller, Caller)
    return caller


def _reported(parts: RsTunnel, accounts: Accounts, id_or_host: str, *, slug: bool = False) -> str:
    """The id of the tunnel that a machine call is about. Raises Forbidden, NotFound."""
    run = g.get("run_pass")
    if run is not None:
        if run.tunnel_id != id_or_host:
            raise Forbidden("This token is for another tunnel.")
        return str(run.tunnel_id)
    accounts.require_writer(_caller())
    if _UUID.fullmatch(id_or_host):
        slug = False
    return parts.leases.active_id(_caller(), id_or_host, slug=slug)


# errors


def show_error(error: Exception) -> Response:
    """Any error, in this dialect's shape."""
    match error:
        case Invalid():
            problems = shapes.FieldErrorsShown(
                [] if error.field else [error.problem], {error.field: [error.problem]} if error.field else {}
            )
            return _error(error.status, "INVALID_INPUT", str(error), problems)
        case LimitReached():
            return _error(429, "RATE_LIMIT_EXCEEDED", str(error))
        case QuotaReached():
            details = {"activeCount": error.active, "maxActive": error.most}
            return _error(409, "TUNNEL_LIMIT_REACHED", str(error), details)
        case Unavailable():
            return _show_unavailable(error)
        case LoginRefused():
            return _error(*show_fault(error.fault), str(error))
        case BadCredentials():
            reason = error.reason if isinstance(error, Unauthorized) else "INVALID_TOKEN"
            response = _error(401, "UNAUTHORIZED", str(error), {"reason": reason})
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        case NotFound():
            return _error(404, "TUNNEL_NOT_FOUND", str(error))
        case Forbidden():
            return _error(403, "FORBIDDEN", str(error))
        case CallbackRefused():
            return _error(error.status, error.code, str(error))
        case Denied():
            return _error(error.status, "INVALID_INPUT", str(error))
        case StoreError():
            return _error(503, "STORAGE_UNAVAILABLE", "The server cannot store anything just now; try again later.")
        case HTTPException():
            status = error.code or 500
            if status == 405 and request.method in ("GET", "HEAD") and _ONE_TUNNEL.fullmatch(request.path):
                status = 404  # the contract's word for it
            if status == 404 and request.method == "DELETE" and request.path.startswith("/v1/tunnels/"):
                return _error(404, "TUNNEL_NOT_FOUND", "Tunnel not found.")  # a name with a slash in it
            return _error(status, *_HTTP.get(status, ("INVALID_INPUT", "The request cannot be served.")))
        case _:
            return _error(500, "INTERNAL_ERROR", "Internal server error.")


def _show_unavailable(error: Unavailable) -> Response:
    match error.code:
        case "taken":
            return _error(409, "TUNNEL_SLUG_CONFLICT", str(error))
        case "malformed" | "reserved":
            return _error(400, "INVALID_SLUG", str(error))
        case "exhausted":
            return _error(503, "SLUG_EXHAUSTED", str(error))
        case "scope":
            return _error(403, "FORBIDDEN", str(error))
        case _:
            return _error(409, "TUNNEL_LIMIT_REACHED", str(error))


_HTTP = {
    404: ("NOT_FOUND", "There is no such route."),
    405: ("METHOD_NOT_ALLOWED", "This route does not take that method."),
    408: ("INVALID_INPUT", "The body came too slowly."),
    413: ("INVALID_INPUT", "The body is too long."),
    500: ("INTERNAL_ERROR", "Internal server error."),
}


def _error(status: int, code: str, message: str, details: object = None) -> Response:
    return _kept_alive(answer(shapes.ErrorShown(code, message, details), status))


def _kept_alive(response: Response) -> Response:
    response.headers["Keep-Alive"] = KEEP_ALIVE
    return response
