"""Credentials of a request, once: the bearer token becomes a Caller; where a request without one may come from.

Only the `Authorization` header counts, never a query parameter or a cookie. Requests without it are held to two
rules more, which stop web pages of other origins (every tunnel is one): the Host must be one of ours, since a page
can make its own name resolve to this machine (DNS rebinding), and the browser must not say `Sec-Fetch-Site:
cross-site`. A page cannot send the header itself: that takes a CORS grant, and none is given.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from quart import g, has_websocket_context, request, websocket

from rustunnel_py.errors import BadCredentials, Denied, Forbidden
from rustunnel_py.hub.audit import Actor
from rustunnel_py.model.access import Caller, Secret
from rustunnel_py.model.tunnel import Peer

if TYPE_CHECKING:
    from quart.wrappers.base import BaseRequestWebsocket

    from rustunnel_py.hub.accounts import Accounts

_SAME_SITE = frozenset({"same-origin", "none"})  # what browsers say of their own page's, or of a typed address


class Misdirected(Denied):
    """The Host names somebody else."""

    status = 421


@dataclass(frozen=True, slots=True)
class Doorkeeper:
    """`domain` is server.domain, `origin` server.dashboard_origin: their hosts may be asked without a token."""

    accounts: Accounts
    domain: str
    origin: str | None

    async def admit(self) -> None:
        """Set the current request's Caller. Raises BadCredentials, Forbidden, Misdirected."""
        given = asked().headers.getlist("Authorization")
        if not given:
            self.check_origin()
            raise BadCredentials("missing token")
        scheme, _, token = given[0].partition(" ")
        if len(given) > 1 or scheme.lower() != "bearer":
            token = ""  # judged all the same: one answer, one amount of work
        g.caller = await self.accounts.authenticate(Secret(token.strip(" ")), peer())

    def check_origin(self) -> None:
        """For a request without a token. Raises Misdirected, Forbidden."""
        self.check_host()
        if asked().headers.get("Sec-Fetch-Site", "none") not in _SAME_SITE:
            raise Forbidden("requests of other web sites are refused")

    def check_host(self) -> None:
        """For a page that links may lead to. Raises Misdirected."""
        host = _host_name(asked().headers.get("Host", ""))
        if not self._is_ours(host):
            raise Misdirected(
                "this host name is not one of the dashboard's; if it should be, set server.dashboard_origin"
            )

    def _is_ours(self, host: str) -> bool:
        if host in ("localhost", self.domain):
            return True
        if self.origin is not None and host == urlsplit(self.origin).hostname:
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True


def asked() -> BaseRequestWebsocket:
    """What is being handled, a request or the opening of a WebSocket."""
    return websocket if has_websocket_context() else request


def current() -> Caller:
    """The caller of the request that is being handled."""
    caller = g.caller
    assert isinstance(caller, Caller)
    return caller


def actor() -> Actor:
    """The same, with where the request comes from."""
    return Actor(current(), peer())


def peer() -> Peer:
    """Who sent the request, not the trusted proxy that passed it on; unknown where there is no socket."""
    client = asked().scope.get("client")
    return Peer("", 0) if client is None else Peer(client[0], client[1])


def _host_name(host: str) -> str:
    """A Host header without its port and the brackets of IPv6, in lower case; empty where it is none."""
    name = host.strip().lower()
    if name.startswith("["):
        name, bracket, rest = name[1:].partition("]")
        return name if bracket and (not rest or rest.startswith(":")) else ""
    return name.partition(":")[0].removesuffix(".")
