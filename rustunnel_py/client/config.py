"""What the agent is asked to do, as frozen structs, and how the words of a command line or a file become them.

Every `parse_…` takes a text and the key to blame, and raises ConfigError with a sentence that says what is wanted.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from rustunnel_py.errors import ConfigError
from rustunnel_py.model.access import Secret

CONTROL_PORT = 4040
TOKEN_MAX = 4096  # far above any token; a file given by mistake is refused


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where the control port of a server is."""

    host: str
    port: int = CONTROL_PORT

    def __str__(self) -> str:
        return host_and_port(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Pin:
    """`sha256:` and 64 hex digits: the hash of the server's public key. The chain is not looked at then."""

    value: str

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class CaFile:
    """A PEM file of authorities to trust in place of the system's."""

    path: Path


@dataclass(frozen=True, slots=True)
class SystemTrust:
    """The authorities that this system trusts."""


ProxyVersion: TypeAlias = Literal[0, 1, 2]
Trust: TypeAlias = Pin | CaFile | SystemTrust


class Scheme(enum.Enum):
    """How the agent speaks to a local service: in plain, or by TLS."""

    HTTP = "http"
    HTTPS = "https"


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """Where a local service listens. For a TCP tunnel the scheme is HTTP, which means plain bytes."""

    host: str
    port: int
    scheme: Scheme = Scheme.HTTP

    @property
    def address(self) -> str:
        """`host:port`, as `register_tunnel` tells it."""
        return host_and_port(self.host, self.port)

    def __str__(self) -> str:
        return f"https://{self.address}" if self.scheme is Scheme.HTTPS else self.address


@dataclass(frozen=True, slots=True)
class HttpTunnel:
    """`host_header`: None keeps the visitor's Host, `rewrite` puts the local address there, else what is put there.

    `local_insecure`: the certificate of an https local service is not looked at. `take_over`: take the name from
    another live agent of the same owner. `proxy_protocol`: 0 off, else the version of the PROXY header.
    """

    local: LocalAddress
    subdomain: str | None = None
    host_header: str | None = None
    local_insecure: bool = False
    take_over: bool = False
    proxy_protocol: ProxyVersion = 0

    @property
    def sent_host(self) -> str | None:
        """The Host that the local service is to see, or None for the visitor's own."""
        if self.host_header != "rewrite":
            return self.host_header
        usual = 443 if self.local.scheme is Scheme.HTTPS else 80
        return host_and_port(self.local.host, None if self.local.port == usual else self.local.port)


@dataclass(frozen=True, slots=True)
class TcpTunnel:
    """`port`: the wished public port, None for any."""

    local: LocalAddress
    port: int | None = None
    take_over: bool = False
    proxy_protocol: ProxyVersion = 0


Tunnel: TypeAlias = HttpTunnel | TcpTunnel


@dataclass(frozen=True, slots=True)
class Login:
    """A server, what it is known by, and what opens it."""

    server: ServerAddress
    token: Secret
    trust: Trust


@dataclass(frozen=True, slots=True)
class Options:
    """`websocket`: WebSocket messages on the data socket too, for proxies that look into frames."""

    websocket: bool = False


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Everything `run_agent` needs. `machine` is None where no state folder can be written."""

    login: Login
    tunnels: tuple[Tunnel, ...]
    options: Options = field(default_factory=Options)
    machine: str | None = None


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line says about the server; None where it says nothing."""

    server: str | None = None
    pin: str | None = None
    ca: str | None = None


def host_and_port(host: str, port: int | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"


_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?")


def parse_host(text: str, key: str) -> str:
    """A host name, an IPv4 or an IPv6 address (with or without brackets)."""
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ConfigError(key, f"{text!r} is no IPv6 address") from None
        return host
    if not _HOST.fullmatch(host):
        raise ConfigError(key, f"{text!r} is no host name or address")
    return host.lower()


def parse_port(text: str, key: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ConfigError(key, f"{text!r} is no port; a port is a number from 1 to 65535")
    return int(text)


def _split(text: str, key: str) -> tuple[str, str | None]:
    """Host and port text of `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address."""
    if text.startswith("["):
        host, closed, rest = text.partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ConfigError(key, f"{text!r} is no address; an IPv6 address with a port is written [::1]:3000")
        return host[1:], rest[1:] if rest else None
    if text.count(":") > 1:
        return text, None
    host, colon, port = text.partition(":")
    return host, port if colon else None


def parse_server(text: str, key: str = "server") -> ServerAddress:
    """`host`, `host:port`, `[v6]:port`; the port is 4040 where none is given."""
    if "://" in text or "/" in text:
        raise ConfigError(key, f"{text!r} is no server; write HOST or HOST:PORT, such as tunnel.example.com:4040")
    host, port = _split(text.strip(), key)
    if not host:
        raise ConfigError(key, f"{text!r} names no host; write HOST or HOST:PORT")
    return ServerAddress(parse_host(host, key), CONTROL_PORT if port is None else parse_port(port, key))


def parse_local(text: str, key: str = "local", *, tcp: bool = False) -> LocalAddress:
    """A local service: `3000`, `localhost:3000`, `[::1]:3000`, and for HTTP `http://…` and `https://host:3000`."""
    rest, scheme = text.strip(), Scheme.HTTP
    before, colons, after = rest.partition("://")
    if colons:
        if tcp:
            raise ConfigError(key, f"{text!r}: a TCP tunnel takes PORT or HOST:PORT, without a scheme")
        if before.lower() not in ("http", "https"):
            raise ConfigError(key, f"{text!r}: the scheme is http or https")
        scheme, rest = Scheme(before.lower()), after.removesuffix("/")
        if "/" in rest or "?" in rest or "@" in rest:
            raise ConfigError(key, f"{text!r}: an address ends with the port; a tunnel forwards every path")
    if rest.isascii() and rest.isdigit() and not colons:
        return LocalAddress("localhost", parse_port(rest, key), scheme)
    host, port = _split(rest, key)
    if not host:
        host = "localhost"
    if port is None:
        if not colons:
            raise ConfigError(key, f"{text!r} names no port; write PORT or HOST:PORT, such as 3000 or localhost:3000")
        port = "443" if scheme is Scheme.HTTPS else "80"
    return LocalAddress(parse_host(host, key), parse_port(port, key), scheme)


def parse_pin(text: str, key: str = "pin") -> Pin:
    """`sha256:` and 64 hex digits, in any case, colons between the digits allowed."""
    kind, colon, digits = text.strip().partition(":")
    digits = digits.replace(":", "").lower()
    if kind.lower() != "sha256" or not colon or not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise ConfigError(key, "a pin is sha256: and 64 hex digits; the server prints it when it starts")
    return Pin(f"sha256:{digits}")


def parse_ca(text: str, key: str = "ca") -> CaFile:
    path = Path(text).expanduser()
    if not path.is_file():
        raise ConfigError(key, f"{text!r} is no file; a PEM file with the authorities to trust is wanted")
    return CaFile(path)


def parse_token(text: str, key: str = "token") -> Secret:
    """The token itself is in no message."""
    token = text.strip()
    if not token:
        raise ConfigError(key, "the token is empty")
    if len(token) > TOKEN_MAX or not token.isprintable():
        raise ConfigError(key, "this is no token: it is too long or has characters that cannot be printed")
    return Secret(token)


def parse_host_header(text: str, key: str = "host_header") -> str:
    """`rewrite`, or the value itself."""
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", text) or re.search(r"[/@?#\\,]", text):
        raise ConfigError(key, f"{text!r} is no Host; write rewrite or HOST or HOST:PORT")
    return text


def check_tunnel(tunnel: Tunnel, key: str) -> Tunnel:
    """The combinations that cannot work are refused before anything is connected."""
    if tunnel.proxy_protocol not in (0, 1, 2):
        raise ConfigError(key, "proxy_protocol is 1 or 2, or 0 for none")
    if tunnel.local.scheme is Scheme.HTTPS and tunnel.proxy_protocol:
        raise ConfigError(key, "proxy_protocol and an https local service do not go together")
    if isinstance(tunnel, HttpTunnel):
        if tunnel.local_insecure and tunnel.local.scheme is not Scheme.HTTPS:
            raise ConfigError(key, "local_insecure is for an https:// local service")
        if tunnel.subdomain is not None and not re.fullmatch(r"[A-Za-z0-9-]{1,63}", tunnel.subdomain):
            raise ConfigError(key, f"{tunnel.subdomain!r} is no subdomain; it is made of letters, digits and hyphens")
    return tunnel
