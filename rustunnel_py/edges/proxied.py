"""Who really came, where a trusted proxy stands before the edge: only then forwarding headers are believed.

An outer proxy is trusted by its address alone. Of `X-Forwarded-For` the last address that is no trusted
proxy is the visitor: what stands left of it, the visitor may have written himself (H59).
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, TypeAlias

from rustunnel_py.model.tunnel import Peer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rustunnel_py.wire.http1 import Headers

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOST = re.compile(rb"(?:[A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")

HOPS_MAX = 16  # addresses looked at, from the right; a longer chain of trusted proxies is a mistake


class TrustedProxies:
    """The address ranges of proxies that are believed."""

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._networks = tuple(networks)

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, ip: str) -> bool:
        try:
            address = ipaddress.ip_address(ip)
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def visitor(self, headers: Headers, proxy: Peer) -> Peer:
        """The visitor whom `proxy` speaks for; the proxy itself where it names nobody that can be believed."""
        chain = [
            item.strip()
            for name, value in headers
            if name.lower() == b"x-forwarded-for"
            for item in value.decode("latin-1").split(",")
        ]
        found = proxy
        for item in reversed(chain[-HOPS_MAX:]):
            ip = _address(item)
            if ip is None:
                break
            found = Peer(ip, 0)
            if ip not in self:
                break
        return found

    def host(self, headers: Headers, host: bytes) -> bytes:
        """Which host the visitor asked the proxy for: the last `X-Forwarded-Host`, else `host`.

        It is told to the local service only. The tunnel is found by `Host` alone: one name, for routing and for rules.
        """
        told = [
            item.strip() for name, value in headers if name.lower() == b"x-forwarded-host" for item in value.split(b",")
        ]
        return told[-1] if told and _HOST.fullmatch(told[-1]) is not None else host

    def scheme(self, headers: Headers, scheme: str) -> str:
        """How the visitor came to the proxy: the last `X-Forwarded-Proto`, else the edge's own scheme."""
        told = [
            item.strip().lower()
            for name, value in headers
            if name.lower() == b"x-forwarded-proto"
            for item in value.split(b",")
        ]
        return told[-1].decode("ascii") if told and told[-1] in (b"http", b"https") else scheme


def _address(text: str) -> str | None:
    """`1.2.3.4`, `1.2.3.4:5678`, `2001:db8::1` or `[2001:db8::1]:5678` as an address alone; None for anything else.

    A zone (`fe80::1%eth0`) is refused: it means nothing on another machine, and any text would pass as one, into
    header lines and logs.
    """
    if "%" in text:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
