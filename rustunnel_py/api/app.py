"""The app: mounts the dialects, knows who calls, turns every error into JSON, and adds the headers.

It is served by `api/serve.py`, without a lifespan: nothing here needs one.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import structlog
from quart import Response, request, websocket
from quart_trio import QuartTrio
from quart_trio.wrappers import TrioRequest
from werkzeug.exceptions import HTTPException, MethodNotAllowed

import rustunnel_py
from rustunnel_py.api import captures, observe, pages, rs_tunnel, rustunnel
from rustunnel_py.api.caller import Doorkeeper, actor, asked, current
from rustunnel_py.api.routes import BODY_MAX, Auth, ErrorShown, Routes, answer
from rustunnel_py.errors import BadCredentials, Denied, Forbidden, NotFound, StoreError
from rustunnel_py.hub.audit import AccessRefused, unheard
from rustunnel_py.model.text import escape

if TYPE_CHECKING:
    from collections.abc import Callable

    from quart import Quart

    from rustunnel_py.api.rs_tunnel import RsTunnel
    from rustunnel_py.hub.accounts import Accounts
    from rustunnel_py.hub.audit import Audit
    from rustunnel_py.hub.inspector import Inspector
    from rustunnel_py.hub.metrics import Metrics
    from rustunnel_py.hub.registry import Registry
    from rustunnel_py.hub.sessions import Sessions
    from rustunnel_py.store.tunnel_log import TunnelLog

BODY_SECONDS = 10  # a whole body; the longest has 64 KiB

# For everyone, with or without a token, under any Host: they tell nothing about anybody.
OPEN = frozenset({"static_files.static_file"})

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def build_app(
    *,
    registry: Registry,
    sessions: Sessions,
    accounts: Accounts,
    tunnel_log: TunnelLog,
    domain: str,
    dashboard_origin: str | None = None,
    is_stopping: Callable[[], bool] = lambda: False,
    rs_tunnel_parts: RsTunnel | None = None,
    audit: Audit | None = None,
    metrics: Metrics | None = None,
    metrics_public: bool = False,
    inspector: Inspector | None = None,
) -> Quart:
    """The REST API. `is_stopping` is asked by /api/health/ready: true from the first signal on.

    `rs_tunnel_parts` None: without `/v1`; so it is with the other parts.
    """
    app = QuartTrio(__name__, static_folder=None)
    app.request_class = _SizedRequest
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.config["MAX_CONTENT_LENGTH"] = BODY_MAX
    app.config["BODY_TIMEOUT"] = BODY_SECONDS
    app.url_map.converters["capture"] = captures.CaptureIdConverter
    app.url_map.merge_slashes = False  # `//api` is another path, not a redirect
    doorkeeper = Doorkeeper(accounts, domain, dashboard_origin)

    @app.before_request
    async def admit() -> None:
        if request.scope["path"].startswith("//"):
            raise NotFound("not found")  # what is looked at here begins with one slash, whatever came
        if request.blueprint == "rs_tunnel":
            return  # it has callers of its own
        if request.routing_exception is None and request.endpoint not in free:
            await doorkeeper.admit()

    @app.before_websocket
    async def admit_websocket() -> None:
        if websocket.routing_exception is None:
            await doorkeeper.admit()

    @app.after_request
    async def add_headers(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)  # a page has a policy of its own
        if response.status_code == 204:
            response.headers.pop("Content-Length", None)  # RFC 9110 section 8.6
            response.headers.pop("Content-Type", None)
        return response

    async def admit_admin() -> None:
        await doorkeeper.admit()
        guard(Auth.ADMIN)

    def guard(auth: Auth) -> None:
        try:
            if auth is Auth.ADMIN:
                accounts.require_admin(current())
            elif auth is Auth.WRITER:
                accounts.require_writer(current())
        except Forbidden:
            if audit is not None:
                by, what = actor(), f"{request.method} {request.path}"
                audit.note(AccessRefused(who=by.who, peer=str(by.peer), what=what))
            raise

    api = Routes("rustunnel", "/api", guard)
    server = Routes("server", "", guard)
    rustunnel.add_routes(api, registry, sessions, accounts, tunnel_log, audit)
    if inspector is not None:
        captures.add_routes(api, inspector, registry, unheard if audit is None else audit.note)
    observe.add_routes(server, is_stopping)
    if metrics is not None:
        observe.add_metrics(server, metrics, metrics_public, admit_admin)
    observe.add_document(server, [api.table, server.table], rustunnel_py.__version__, domain)
    free = OPEN | api.open_endpoints | server.open_endpoints
    app.register_blueprint(api.blueprint)
    app.register_blueprint(server.blueprint)
    app.register_blueprint(pages.static_files())
    if rs_tunnel_parts is not None:
        app.register_blueprint(rs_tunnel.blueprint(rs_tunnel_parts, accounts, doorkeeper))
    _handle_errors(app)
    return app


class _SizedRequest(TrioRequest):
    """A request whose body may be as long as its route needs."""

    def __init__(self, method: str, scheme: str, path: str, *args: Any, **more: Any) -> None:
        most = captures.body_max(path)
        if most is not None:
            more["max_content_length"] = most
        elif rs_tunnel.owns_path(path):
            more["max_content_length"] = rs_tunnel.body_max(path)
        super().__init__(method, scheme, path, *args, **more)


def _handle_errors(app: Quart) -> None:
    @app.errorhandler(Denied)
    async def denied(error: Denied) -> Response:
        if rs_tunnel.owns_path(asked().path):
            return rs_tunnel.show_error(error)
        response = show_error(error.status, str(error))
        if isinstance(error, BadCredentials):
            response.headers["WWW-Authenticate"] = "Bearer"
        return response

    @app.errorhandler(StoreError)
    async def store(error: StoreError) -> Response:
        log.error("an API call failed in the store", path=escape(asked().path), error=str(error))
        if rs_tunnel.owns_path(asked().path):
            return rs_tunnel.show_error(error)
        return show_error(503, "the server cannot store anything just now; try again later")

    @app.errorhandler(HTTPException)
    async def http(error: HTTPException) -> Response:
        if rs_tunnel.owns_path(asked().path):
            response = rs_tunnel.show_error(error)
        else:
            response = show_error(error.code or 500, _SENTENCES.get(error.code or 500, error.name.lower()))
        if isinstance(error, MethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        return response

    @app.errorhandler(Exception)
    async def unexpected(error: Exception) -> Response:
        error_id = secrets.token_hex(8)
        method, path = escape(asked().method), escape(asked().path)
        log.error("an API call failed", id=error_id, method=method, path=path, exc_info=error)
        if rs_tunnel.owns_path(asked().path):
            return rs_tunnel.show_error(error)
        return answer(ErrorShown("internal server error", error_id), 500)


_SENTENCES = {404: "not found", 405: "method not allowed", 408: "the body came too slowly", 413: "the body is too long"}


def show_error(status: int, message: str) -> Response:
    return answer(ErrorShown(message), status)
