"""Public addresses, and what is told of a tunnel."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class HttpHost:
    """A host name on both HTTP edges: lower case, no port, no final dot (`abc.example.com`)."""

    host: str

    def __str__(self) -> str:
        return self.host


@dataclass(frozen=True, slots=True)
class TcpPort:
    port: int

    def __str__(self) -> str:
        return str(self.port)


@dataclass(frozen=True, slots=True)
class UdpPort:
    port: int

    def __str__(self) -> str:
        return str(self.port)


Address: TypeAlias = HttpHost | TcpPort | UdpPort


class Protocol(enum.Enum):
    """The word of `register_tunnel`. `HTTPS` only chooses the scheme of the public URL."""

    HTTP = "http"
    HTTPS = "https"
    TCP = "tcp"
    UDP = "udp"
    P2P = "p2p"


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a socket, as policies and logs see it: IPv4-mapped addresses are IPv4."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"
