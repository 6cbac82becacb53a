"""How the server does, and what its API is: health, metrics, the OpenAPI document and its page."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import msgspec
from quart import Response, request

from rustunnel_py.api import openapi, pages
from rustunnel_py.api.caller import peer
from rustunnel_py.api.routes import Auth, Gives, Routes, answer
from rustunnel_py.hub.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from rustunnel_py.api.routes import Route
    from rustunnel_py.hub.metrics import Metrics

_FORWARDED = ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via")


class HealthShown(msgspec.Struct):
    """Whether it is well."""

    ok: bool


def add_routes(server: Routes, is_stopping: Callable[[], bool]) -> None:
    """Health, for whoever starts and stops servers."""

    @server.add(
        "GET", "/api/health/live", "Whether the server runs", gives={200: HealthShown}, auth=Auth.OPEN, tag="server"
    )
    async def live() -> Response:
        return answer(HealthShown(True))

    @server.add(
        "GET",
        "/api/health/ready",
        "Whether the server takes visitors",
        gives={200: HealthShown, 503: HealthShown},
        auth=Auth.OPEN,
        tag="server",
    )
    async def ready() -> Response:
        """503 from the first signal to stop on."""
        stopping = is_stopping()
        return answer(HealthShown(not stopping), 503 if stopping else 200)


def add_metrics(server: Routes, metrics: Metrics, public: bool, admit_admin: Callable[[], Awaitable[None]]) -> None:
    """`admit_admin` raises for whoever is no admin."""

    @server.add(
        "GET",
        "/metrics",
        "Numbers for Prometheus",
        gives={200: Gives("text/plain", "Prometheus's text format.")},
        auth=Auth.DOOR,
        errors=(401, 403, 421),
        tag="server",
    )
    async def show_metrics() -> Response:
        """From the machine itself without a token, from elsewhere with the admin token, or as `metrics.public` says."""
        if not public and ("Authorization" in request.headers or not _is_from_here()):
            await admit_admin()
        return Response(metrics.text(), content_type=CONTENT_TYPE)


def _is_from_here() -> bool:
    """Asked by a program of this machine, and not by a proxy on it that passes on what others ask."""
    try:
        loopback = ipaddress.ip_address(peer().ip).is_loopback
    except ValueError:
        return False
    by_page = "Origin" in request.headers or request.headers.get("Sec-Fetch-Site", "none") != "none"
    return loopback and not by_page and not any(name in request.headers for name in _FORWARDED)


def add_document(server: Routes, tables: Sequence[list[Route]], version: str, domain: str) -> None:
    """The document of all routes in `tables`, whenever they were added."""

    def document() -> openapi.Json:
        return openapi.document([route for table in tables for route in table], version, domain)

    @server.add(
        "GET",
        "/api/openapi.json",
        "This document",
        gives={200: Gives("application/json", "OpenAPI 3.1.")},
        auth=Auth.OPEN,
        tag="server",
    )
    async def openapi_document() -> Response:
        return answer(document())

    @server.add(
        "GET",
        "/api/docs",
        "This document as a page",
        gives={200: Gives("text/html", "A page.")},
        auth=Auth.OPEN,
        tag="server",
    )
    async def openapi_page() -> Response:
        return pages.page("REST API", openapi.page_body(document()), wide=True)
