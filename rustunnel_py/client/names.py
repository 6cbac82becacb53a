"""What the agent asks for, tunnel by tunnel, and what it was given: names are kept as long as the process lives."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rustunnel_py.client.config import HttpTunnel, Tunnel
from rustunnel_py.wire.control import RegisterTunnel

if TYPE_CHECKING:
    from rustunnel_py.client.local import LocalService
    from rustunnel_py.wire.control import TunnelRegistered

GIVEN_NAME_TRIES = 5
"""So often a name that was made for us is asked for again after it was refused; then any other will do."""

_URL = re.compile(
    r"(?P<scheme>https?|tcp|udp|p2p)://(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?P<port>:[0-9]{1,5})?/?"
)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(slots=True)
class Wish:
    """One tunnel of the configuration, as it is asked for now. `served_once`: it was registered before."""

    tunnel: Tunnel
    service: LocalService
    name: str | None = None
    port: int | None = None
    served_once: bool = False
    refusals: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.tunnel, HttpTunnel):
            self.name = self.tunnel.subdomain
        else:
            self.port = self.tunnel.port

    @property
    def chosen(self) -> bool:
        """The user chose the name or the port; the agent may not take another."""
        tunnel = self.tunnel
        return (tunnel.subdomain if isinstance(tunnel, HttpTunnel) else tunnel.port) is not None

    @property
    def shown(self) -> str | None:
        """The name or the port that is asked for, for a line on the screen."""
        return self.name if self.port is None else f"port {self.port}"

    def frame(self, request_id: str, *, https: bool) -> RegisterTunnel:
        tunnel = self.tunnel
        # Taking over is for the first time only: two agents that both insist would take the name from each other for
        # ever.
        take_over = tunnel.take_over and not self.served_once
        if isinstance(tunnel, HttpTunnel):
            return RegisterTunnel(
                request_id=request_id,
                protocol="https" if https else "http",
                subdomain=self.name,
                local_addr=tunnel.local.address,
                take_over=take_over,
                host_header=tunnel.sent_host,
                proxy_protocol=tunnel.proxy_protocol,
            )
        return RegisterTunnel(
            request_id=request_id,
            protocol="tcp",
            subdomain=None,
            local_addr=tunnel.local.address,
            port=self.port,
            take_over=take_over,
            proxy_protocol=tunnel.proxy_protocol,
        )

    def given(self, answer: TunnelRegistered) -> None:
        """Ask for the same again from now on."""
        self.served_once = True
        self.refusals = 0
        if isinstance(self.tunnel, HttpTunnel):
            url = _URL.fullmatch(answer.public_url)
            label = url["host"].partition(".")[0].lower() if url is not None else ""
            if _LABEL.fullmatch(label):
                self.name = label
        elif answer.assigned_port:
            self.port = answer.assigned_port

    def refused(self) -> bool:
        """Count a refusal; True: give the name up and ask for any other."""
        self.refusals += 1
        if self.chosen or self.refusals < GIVEN_NAME_TRIES or self.shown is None:
            return False
        self.name = self.port = None
        self.refusals = 0
        return True


def usable(public_url: str) -> bool:
    """A URL of the kinds that tunnels have, with nothing in it that a terminal or a browser could be tricked by."""
    return _URL.fullmatch(public_url) is not None


def other_scheme(public_url: str) -> str | None:
    """The same host by the other scheme, where it can be known: both edges are on their schemes' own ports."""
    url = _URL.fullmatch(public_url)
    if url is None or url["port"] is not None or url["scheme"] not in ("http", "https"):
        return None
    return f"{'http' if url['scheme'] == 'https' else 'https'}://{url['host']}"
