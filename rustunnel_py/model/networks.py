"""Ranges of addresses: whose word is taken for somebody else's."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class Networks:
    """A set of ranges; `ip in networks` asks whether a text that is an address lies in one of them."""

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._networks = tuple(networks)

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Networks:
        """From `10.0.0.0/8`, `2001:db8::/32`, `192.0.2.7`. ValueError names the first that is none."""
        return cls(_network(text) for text in texts)

    def __repr__(self) -> str:
        return f"<Networks {', '.join(map(str, self._networks))}>"

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __iter__(self) -> Iterator[Network]:
        return iter(self._networks)

    def __contains__(self, ip: object) -> bool:
        try:
            address = ipaddress.ip_address(str(ip))
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def _network(text: str) -> Network:
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped is not None:
        # Peers are shown as IPv4: such a range would never match.
        raise ValueError(f"{text!r} is a range of IPv4-mapped addresses; write it as IPv4")
    return network
