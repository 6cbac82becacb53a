"""What the registry asks of the edges that listen on a port of their own per tunnel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rustunnel_py.errors import RustunnelError

if TYPE_CHECKING:
    from rustunnel_py.hub.registry import Tunnel


class PortTaken(RustunnelError):
    """Another program, or another tunnel, listens there."""


class Ports(Protocol):
    def open(self, tunnel: Tunnel, port: int) -> None:
        """Listen on `port` for `tunnel`, at once, on every public address. Raises PortTaken."""

    def close(self, port: int) -> None:
        """Stop listening; visits that are under way go on, and end as their link says."""
