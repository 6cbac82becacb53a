"""The server's settings: one frozen struct per TOML table, and one way to fill them.

A setting comes from a flag, else from the environment, else from the file, else it has its default.
A field is a key: its annotation says what is allowed, its description is what `docs/configuration.md`
shows, and nothing else has to be touched to add one. Nothing here reads a file or the environment:
text and mappings come in, a `Config` or a `ConfigError` goes out.

A setting is never silently ignored. What this program does not do yet is in `LATER`: such a key is
refused unless its value asks for nothing; what it will never do is in `REPLACED`.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_type_hints

import msgspec
import tomli
from msgspec import Meta

from rustunnel_py.errors import ConfigError
from rustunnel_py.model.access import Secret
from rustunnel_py.model.networks import Networks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PREFIX = "RUSTUNNEL_"  # RUSTUNNEL_TABLE__KEY; names without a double underscore belong to the agent

_MAX_TEXT = 4096  # no path, name or token is longer; what is, is a mistake and not a setting

Port: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
Text: TypeAlias = Annotated[str, Meta(max_length=_MAX_TEXT)]
PortRange: TypeAlias = tuple[Port, Port]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**40)]
Rate: TypeAlias = Annotated[float, Meta(ge=0, le=1e9)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=86400)]


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server listens, and under which name."""

    domain: Annotated[
        Text, Meta(description="The name under which tunnels get theirs: `NAME.DOMAIN`. DNS must lead both here.")
    ] = "localhost"
    host: Annotated[
        Text,
        Meta(
            description="Address of all listeners but the dashboard's. `::` is IPv6 and IPv4 both; where the machine "
            "has no IPv6 it means `0.0.0.0`."
        ),
    ] = "::"
    http_port: Annotated[Port, Meta(description="Public HTTP. As with every port, 0 takes a free one.")] = 8080
    https_port: Annotated[Port, Meta(description="Public HTTPS.")] = 8443
    control_port: Annotated[Port, Meta(description="Where agents connect (TLS).")] = 4040
    dashboard_port: Annotated[Port, Meta(description="REST API and dashboard.")] = 4041
    dashboard_host: Annotated[
        Text,
        Meta(description="Address of the dashboard. Beyond loopback it needs `dashboard_tls` or `dashboard_plain`."),
    ] = "127.0.0.1"
    dashboard_tls: Annotated[bool, Meta(description="The dashboard speaks TLS, with the edge's certificate.")] = False
    dashboard_plain: Annotated[
        bool, Meta(description="The dashboard may be unencrypted beyond loopback, e.g. behind a proxy that encrypts.")
    ] = False
    dashboard_origin: Annotated[
        Text | None,
        Meta(
            description="Where people open the dashboard (`https://dash.example.com`): its host is accepted there "
            "beside `domain`, `localhost` and IP addresses."
        ),
    ] = None
    public_http_port: Annotated[
        Port, Meta(description="The port of `http://` in public URLs, where a proxy or firewall maps it; 0: none does.")
    ] = 0
    public_https_port: Annotated[Port, Meta(description="The same for `https://`.")] = 0
    redirect_https: Annotated[
        bool, Meta(description="`http://` of a tunnel is answered with a redirect to `https://`.")
    ] = False
    trusted_proxies: Annotated[
        tuple[Text, ...],
        Meta(
            description="Addresses and ranges whose `X-Forwarded-For` and `-Proto` are believed, on the dashboard's "
            "port too: `['10.0.0.0/8']`. From everybody else they are replaced. See behind-a-proxy.md."
        ),
    ] = ()
    proxy_protocol_from: Annotated[
        tuple[Text, ...],
        Meta(
            description="Addresses and ranges whose connections begin with a PROXY header, version 1 or 2; without "
            "one they are closed. From everybody else such a header is data."
        ),
    ] = ()
    proxy_protocol_on: Annotated[
        tuple[Literal["http", "https", "control", "tcp"], ...],
        Meta(description="The listeners on which that holds; `tcp` are the ports of TCP tunnels."),
    ] = ("http", "https", "control")
    control_plain: Annotated[
        bool,
        Meta(
            description="The control port is unencrypted, for a proxy that encrypts; only loopback, `trusted_proxies` "
            "and `proxy_protocol_from` may connect. Trusted proxies may bring agents by `http_port` then, too."
        ),
    ] = False
    drain_seconds: Annotated[
        Seconds, Meta(description="After SIGTERM, the time that visits in flight have to finish.")
    ] = 30.0


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate of your own. Without one the server signs its own; clients then check its pin."""

    cert_path: Annotated[
        Text | None, Meta(description="PEM file: the certificate, then the chain to its root. Needs `key_path`.")
    ] = None
    key_path: Annotated[Text | None, Meta(description="PEM file: its private key, without passphrase.")] = None
    cert_folder: Annotated[
        Text | None,
        Meta(
            description="Folder of more certificates, for the names in them: pairs `ANY.pem` and `ANY.key`, or folders "
            "with `fullchain.pem` and `privkey.pem`, as certbot has them in `live`."
        ),
    ] = None


class AuthConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Who may open tunnels."""

    admin_token: Annotated[
        Secret | None,
        Meta(description="May do everything. Without it one is made at first start and kept in `DATA/admin-token`."),
    ] = None
    require_auth: Annotated[
        bool,
        Meta(description="Agents need a token. `false` is refused beyond loopback without `open_to_the_world`."),
    ] = True
    open_to_the_world: Annotated[
        bool,
        Meta(description="With `require_auth = false`: yes, everybody who reaches this server may open tunnels."),
    ] = False


class DatabaseConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The SQLite files. Relative paths start at the working folder."""

    path: Annotated[
        Text | None, Meta(description="Tokens, names, tunnel log; by default `main.db` in the data folder.")
    ] = None
    captured_path: Annotated[
        Text | None, Meta(description="What can be lost; by default `captured.db` in the folder of `path`.")
    ] = None


class LoggingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The log, on standard error."""

    level: Annotated[
        Literal["trace", "debug", "info", "warn", "warning", "error"],
        Meta(description="The least that is logged. `trace` is `debug`, `warn` is `warning`."),
    ] = "info"
    format: Annotated[
        Literal["console", "pretty", "text", "json"],
        Meta(description="`json` is one object a line; the others are one form for people to read."),
    ] = "console"
    audit_log_path: Annotated[
        Text | None,
        Meta(
            description="File of JSON lines: logins, tokens, registrations, leases, refusals, replays; `GET "
            "/api/audit` has them, too. Reopened on SIGHUP."
        ),
    ] = None
    access_log_path: Annotated[
        Text | None, Meta(description="File with a line a visit, for fail2ban and its like. Reopened on SIGHUP.")
    ] = None
    access_log_format: Annotated[
        Literal["combined", "json"],
        Meta(
            description="`combined` is the format of Apache and nginx; `json` has host, visit id, time and whether the "
            "answer was cut as well."
        ),
    ] = "combined"


class HistoryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How long it is remembered who opened what. 0 is forever, or without bound."""

    keep_days: Annotated[
        Annotated[int, Meta(ge=0, le=36500)], Meta(description="Registrations that ended longer ago are forgotten.")
    ] = 365
    keep_rows: Annotated[Count, Meta(description="At most so many registrations are kept, the newest.")] = 1_000_000
    audit_keep_days: Annotated[
        Annotated[int, Meta(ge=0, le=36500)], Meta(description="Audit events that are older are forgotten.")
    ] = 365


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /metrics` on the dashboard's port, for Prometheus."""

    public: Annotated[
        bool, Meta(description="Needs no token from anywhere; otherwise from loopback only, else the admin token.")
    ] = False


class RegionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What this server says of its place in the world."""

    id: Annotated[Text, Meta(description="Short name of this server.")] = "default"
    name: Annotated[Text, Meta(description="Its name for people.")] = "Default"
    location: Annotated[Text, Meta(description="Where it stands.")] = ""


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds that protect the server. 0 is off, where it is allowed. IPv6 addresses count by /64."""

    max_connections: Annotated[
        Count, Meta(description="Visitors' connections to all edges together. More are answered 503 or closed.")
    ] = 20_000
    max_connections_per_ip: Annotated[
        Count, Meta(description="The same of one address. A load test, or an office behind one address, has to fit.")
    ] = 5000
    max_tunnels_per_session: Annotated[
        Count, Meta(description="Tunnels of one agent. More are refused with a `tunnel_error`.")
    ] = 50
    max_connections_per_tunnel: Annotated[
        Count, Meta(description="Visits at a time: HTTP requests, TCP connections. More are answered 503 or closed.")
    ] = 5000
    max_leases_per_user: Annotated[
        Count, Meta(description="Tunnels that one user may have through `/v1` (the rs-tunnel CLI) at a time.")
    ] = 5
    rate_limit_rps: Annotated[Rate, Meta(description="Requests a second and tunnel. More are answered 429.")] = 0.0
    ip_rate_limit_rps: Annotated[
        Rate, Meta(description="Requests a second and visitor's address. More are answered 429.")
    ] = 0.0
    ip_handshakes_per_second: Annotated[
        Rate, Meta(description="TLS handshakes a second and address. More connections are closed.")
    ] = 0.0
    request_body_max_bytes: Annotated[Count, Meta(description="A longer request body is answered 413.")] = 0
    target_max_bytes: Annotated[
        int, Meta(ge=64, le=65_536, description="Path and query of a request. A longer one is answered 414.")
    ] = 8192
    header_max_bytes: Annotated[
        int, Meta(ge=256, le=131_072, description="One header line of a request. A longer one is answered 431.")
    ] = 8704
    header_max_count: Annotated[
        int, Meta(ge=8, le=10_000, description="Header lines of a request. More are answered 431.")
    ] = 100
    head_max_bytes: Annotated[
        int, Meta(ge=1024, le=131_072, description="A request's head in all. A longer one is answered 431.")
    ] = 32_768
    handshake_seconds: Annotated[Seconds, Meta(description="A visitor's TLS handshake takes no longer.")] = 10.0
    header_seconds: Annotated[
        Seconds, Meta(description="Nor does a request's head: it is answered 408, a connection without a word closed.")
    ] = 10.0
    idle_seconds: Annotated[Seconds, Meta(description="So long a connection stays open between two requests.")] = 75.0
    answer_seconds: Annotated[
        Seconds, Meta(description="So long a local service may take to begin its answer; then it is 504.")
    ] = 300.0
    reply_idle_seconds: Annotated[
        Seconds,
        Meta(
            description="An answer that has begun and then stalls for so long is cut off. Event streams and WebSockets "
            "may be silent."
        ),
    ] = 300.0
    half_closed_seconds: Annotated[
        Seconds, Meta(description="A visitor that ended its side is let go when so long nothing came for it.")
    ] = 30.0
    min_bytes_per_second: Annotated[
        Count,
        Meta(
            description="Who sends a request's body more slowly over 10 s is answered 408; who has answers waiting "
            "and reads more slowly over 10 s is cut off. WebSockets and TCP may be as slow as they like."
        ),
    ] = 1024
    tcp_port_range: Annotated[
        PortRange, Meta(description="First and last port of TCP tunnels. `[0, 0]` turns them off.")
    ] = (20000, 20099)


class NamesConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Host names of tunnels."""

    reserved: Annotated[
        tuple[Text, ...],
        Meta(description="Labels that only an admin gets, or a token whose scope names them: `['www', 'admin']`."),
    ] = ()
    remember_days: Annotated[
        Annotated[int, Meta(ge=0, le=3650)],
        Meta(description="So long an unused name or port is kept in mind for the agent that had it."),
    ] = 30


class TunnelsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A tunnel's life."""

    hold_seconds: Annotated[
        Seconds, Meta(description="So long the address of an agent that vanished is kept for its owner.")
    ] = 60.0
    wait_seconds: Annotated[
        Seconds, Meta(description="So long a visitor waits for an agent that vanished; then it is told 503.")
    ] = 10.0
    wait_max: Annotated[
        Count, Meta(description="Visitors that wait, in all; each may hold 256 KiB. More are told 503 at once.")
    ] = 2048
    wait_max_per_tunnel: Annotated[Count, Meta(description="The same of one tunnel.")] = 256


class InspectConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of the HTTP requests that pass. Of what may be kept, 0 is without bound."""

    enabled: Annotated[bool, Meta(description="Requests and replies are kept for a look, a search, a replay.")] = True
    body_max_bytes: Annotated[
        Annotated[int, Meta(ge=0, le=16 * 2**20)], Meta(description="Of a body that much is kept, on either side.")
    ] = 256 * 1024
    ring_size: Annotated[
        Annotated[int, Meta(ge=1, le=10_000)], Meta(description="Requests of a tunnel in memory, the newest.")
    ] = 500
    ring_bytes: Annotated[
        Count,
        Meta(description="Bytes of all of them in memory; past that the tunnel that has most loses its oldest."),
    ] = 256 * 2**20
    rows_per_second: Annotated[
        Annotated[int, Meta(ge=0, le=100_000)],
        Meta(description="Requests a second that go to the database, shared evenly. 0 keeps them in memory only."),
    ] = 2000
    keep_days: Annotated[
        Annotated[int, Meta(ge=0, le=36500)], Meta(description="What was captured longer ago is deleted.")
    ] = 7
    keep_per_tunnel: Annotated[Count, Meta(description="Requests that are kept of one tunnel, the newest.")] = 10_000
    keep_bytes_per_tunnel: Annotated[Count, Meta(description="Bytes that are kept of one tunnel.")] = 0
    keep_in_all: Annotated[Count, Meta(description="Requests that are kept of all tunnels.")] = 0
    keep_bytes: Annotated[Count, Meta(description="Bytes that are kept of all tunnels.")] = 2**30
    redact: Annotated[
        Literal["none", "standard", "strict"],
        Meta(
            description="What leaves the memory: `standard` masks credentials and what looks like them, `strict` also "
            "all bodies, query values and unusual headers."
        ),
    ] = "standard"
    redact_hosts: Annotated[
        tuple[Text, ...],
        Meta(description="Other tiers for single tunnels; the first that fits: `['shop-*.t.example.com=strict']`."),
    ] = ()
    redact_names: Annotated[
        tuple[Text, ...], Meta(description="More names of headers and fields that are masked: `['x-internal-*']`.")
    ] = ()
    redact_patterns: Annotated[
        tuple[Text, ...], Meta(description="Regular expressions; what they match in any text is masked.")
    ] = ()


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All settings; a field is a TOML table."""

    server: ServerConfig = ServerConfig()
    tls: TlsConfig = TlsConfig()
    auth: AuthConfig = AuthConfig()
    database: DatabaseConfig = DatabaseConfig()
    logging: LoggingConfig = LoggingConfig()
    history: HistoryConfig = HistoryConfig()
    metrics: MetricsConfig = MetricsConfig()
    region: RegionConfig = RegionConfig()
    limits: LimitsConfig = LimitsConfig()
    names: NamesConfig = NamesConfig()
    tunnels: TunnelsConfig = TunnelsConfig()
    inspect: InspectConfig = InspectConfig()


LATER = {
    "tls.acme_enabled": "certificates by ACME",
    "tls.acme_email": "certificates by ACME",
    "tls.acme_staging": "certificates by ACME",
    "tls.acme_account_dir": "certificates by ACME",
    "tls.cloudflare_api_token": "certificates by ACME",
    "tls.cloudflare_zone_id": "certificates by ACME",
    "limits.udp_port_range": "UDP tunnels",
    "load_balancing.enabled": "load-balancing groups",
    "load_balancing.alert_webhook_url": "load-balancing groups",
    "p2p.*": "peer-to-peer tunnels",
}

REPLACED = {
    "database.url": "PostgreSQL is not used here; remove it and set database.path to an SQLite file, "
    "or nothing: the data folder has one",
    "logging.sentry_dsn": "nothing is sent to Sentry; remove it, set logging.format = 'json' "
    "and collect standard error",
}


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: `server.http_port`. `annotation` is the field's, with its Meta."""

    table: str
    name: str
    annotation: object
    default: object

    @property
    def dotted(self) -> str:
        return f"{self.table}.{self.name}"

    @property
    def variable(self) -> str:
        return f"{PREFIX}{self.table}__{self.name}".upper()

    @property
    def secret(self) -> bool:
        return "Secret" in str(self.annotation)

    @property
    def takes_text(self) -> bool:
        """A bare word in the environment is its value."""
        return self.secret or isinstance(
            _plain(self.annotation)[0], msgspec.inspect.StrType | msgspec.inspect.LiteralType
        )

    @property
    def optional(self) -> bool:
        return self.default is None

    @property
    def allowed(self) -> str:
        return _allowed(self.annotation)

    @property
    def description(self) -> str:
        return next(meta.description for meta in _metas(self.annotation) if meta.description)


def keys() -> Iterator[Key]:
    """Every key, in the order of the structs."""
    for table, struct in _tables().items():
        hints = get_type_hints(struct, include_extras=True)
        for field in msgspec.structs.fields(struct):
            yield Key(table, field.name, hints[field.name], field.default)


def load(toml_text: str | None, environment: Mapping[str, str], flags: Mapping[str, object]) -> Config:
    """The settings. `flags` has dotted keys; None is a flag that was not given. Raises ConfigError."""
    known = {key.dotted: key for key in keys()}
    chosen: dict[str, dict[str, object]] = {table: {} for table in _tables()}
    for name, value, source in (*_from_file(toml_text), *_from_environment(environment, known), *_from_flags(flags)):
        key = known.get(name)
        if key is None:
            _refuse(name, value, source, known)
        else:
            chosen[key.table][key.name] = _convert(key, value, source)
    tables: dict[str, Any] = {table: struct(**chosen[table]) for table, struct in _tables().items()}
    return _checked(Config(**tables))


def database_paths(config: DatabaseConfig, data: Path) -> tuple[Path, Path]:
    """Where the two SQLite files are: the precious one, then the one that can be lost."""
    main = Path(config.path) if config.path else data / "main.db"
    captured = Path(config.captured_path) if config.captured_path else main.parent / "captured.db"
    return main, captured


def networks(key: str, texts: Iterable[str]) -> Networks:
    """The ranges of a setting. ConfigError names `key`."""
    try:
        return Networks.parse(texts)
    except ValueError as error:
        raise ConfigError(key, f"{error}; allowed: addresses and ranges, such as 10.0.0.0/8") from None


def is_loopback(host: str) -> bool:
    """Only this machine reaches a listener on that IP address."""
    return ipaddress.ip_address(host).is_loopback


def _tables() -> dict[str, type[msgspec.Struct]]:
    return {field.name: type(field.default) for field in msgspec.structs.fields(Config)}


def _from_file(toml_text: str | None) -> Iterator[tuple[str, object, str]]:
    if toml_text is None:
        return
    try:
        tree = tomli.loads(toml_text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError("", f"the configuration file is no TOML: {error}") from None
    for table, content in tree.items():
        if isinstance(content, dict):
            yield from ((f"{table}.{name}", value, "") for name, value in content.items())
        elif table in _tables():
            raise ConfigError(table, f"{_shown(content)} cannot be used; allowed: a table, [{table}]")
        else:
            yield table, content, ""


def _from_environment(environment: Mapping[str, str], known: Mapping[str, Key]) -> Iterator[tuple[str, object, str]]:
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX) or "__" not in variable:
            continue
        table, _, name = variable.removeprefix(PREFIX).lower().partition("__")
        dotted = f"{table}.{name}"
        key = known.get(dotted)
        yield dotted, _value_in_variable(text, key, variable), f" in {variable}"


def _value_in_variable(text: str, key: Key | None, variable: str) -> object:
    """As in TOML; where text is wanted, or the key is not served, what is no TOML string is taken as it stands."""
    try:
        tree = tomli.loads(f"value = {text}")
    except tomli.TOMLDecodeError:
        tree = {}
    parsed = tree["value"] if set(tree) == {"value"} else None
    if key is None:
        return text if parsed is None else parsed
    if key.takes_text:
        return parsed if isinstance(parsed, str) else text
    if parsed is None:
        raise ConfigError(key.dotted, f"{_shown(text)} in {variable} cannot be used; allowed: {key.allowed}")
    return parsed


def _from_flags(flags: Mapping[str, object]) -> Iterator[tuple[str, object, str]]:
    yield from ((name, value, " on the command line") for name, value in flags.items() if value is not None)


def _refuse(name: str, value: object, source: str, known: Mapping[str, Key]) -> None:
    """The error for a key that is not served; nothing where a later feature is not asked for."""
    table = name.partition(".")[0]
    if name in REPLACED:
        if _asks_for_nothing(value):
            return
        raise ConfigError(name, f"{REPLACED[name]}{source and f' (it is{source})'}")
    feature = LATER.get(name) or LATER.get(f"{table}.*")
    if feature is None:
        raise ConfigError(name, f"no such key{source}; the nearest is {_nearest(name, known)}")
    if not _asks_for_nothing(value):
        raise ConfigError(name, f"{feature} will come with a later version; remove this key{source}")


def _asks_for_nothing(value: object) -> bool:
    if isinstance(value, list | tuple):
        return not any(value)
    return not value


def _nearest(name: str, known: Mapping[str, Key]) -> str:
    """The known key that was probably meant: the same word in another table, else the most similar one."""
    wanted = name.rpartition(".")[2]
    same_word = [dotted for dotted, key in known.items() if key.name == wanted]
    candidates = same_word or [*known, *(later for later in LATER if not later.endswith("*"))]

    def likeness(dotted: str) -> float:
        whole = difflib.SequenceMatcher(None, name, dotted).ratio()
        word = difflib.SequenceMatcher(None, wanted, dotted.rpartition(".")[2]).ratio()
        return whole + word

    return max(candidates, key=likeness)


def _convert(key: Key, value: object, source: str) -> object:
    """One value as its field wants it, strictly: no text for a number, no number for a truth value."""
    if key.optional and value == "":
        return None
    annotation = str | None if key.secret else key.annotation
    fits = not (isinstance(value, float) and value != value)  # NaN passes every comparison of a Meta
    try:
        converted = msgspec.convert(value, annotation)
    except msgspec.ValidationError:
        fits = False
    if not fits:
        shown = "the value" if key.secret else _shown(value)
        raise ConfigError(key.dotted, f"{shown}{source} cannot be used; allowed: {key.allowed}")
    return Secret(converted) if key.secret and isinstance(converted, str) else converted


def _shown(value: object) -> str:
    """A value as TOML would have it, short enough for one line of an error."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _metas(annotation: object) -> tuple[Meta, ...]:
    return tuple(meta for meta in getattr(annotation, "__metadata__", ()) if isinstance(meta, Meta))


def _plain(annotation: object) -> tuple[msgspec.inspect.Type, bool]:
    """The type without its description, and whether it may be absent."""
    kind = msgspec.inspect.type_info(annotation)
    while isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    if isinstance(kind, msgspec.inspect.UnionType):
        inner = next(one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType))
        return inner, True
    return kind, False


def _allowed(annotation: object) -> str:
    kind, _ = _plain(annotation)
    match kind:
        case msgspec.inspect.BoolType():
            return "true or false"
        case msgspec.inspect.IntType(ge=low, le=high):
            return f"a whole number from {low} to {high}"
        case msgspec.inspect.FloatType(ge=low, le=high):
            return f"a number from {low:g} to {high:g}"
        case msgspec.inspect.LiteralType(values=words):
            return "one of " + ", ".join(f"'{word}'" for word in words)
        case msgspec.inspect.TupleType():
            return "two ports, [first, last]"
        case msgspec.inspect.VarTupleType(item_type=msgspec.inspect.LiteralType(values=words)):
            return "a list of " + ", ".join(f"'{word}'" for word in words)
        case msgspec.inspect.VarTupleType():
            return "a list of texts"
        case _:
            return "a text"


_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MAX_DOMAIN = 189  # 253 of DNS less a label of 63 and its dot: every tunnel's name must fit too


def _checked(config: Config) -> Config:
    """What no single key can know. Gives the settings with domain and hosts in their canonical form."""
    server = msgspec.structs.replace(
        config.server,
        domain=_domain(config.server.domain),
        host=_host("server.host", config.server.host),
        dashboard_host=_host("server.dashboard_host", config.server.dashboard_host),
    )
    _check_ports(server)
    _check_dashboard(server)
    for name in ("trusted_proxies", "proxy_protocol_from"):
        networks(f"server.{name}", getattr(server, name))
    _check_access(config.auth, server)
    if (config.tls.cert_path is None) is not (config.tls.key_path is None):
        missing = "key_path" if config.tls.key_path is None else "cert_path"
        raise ConfigError(f"tls.{missing}", "is missing; tls.cert_path and tls.key_path go together")
    first, last = config.limits.tcp_port_range
    if first > last or (first == 0 and last != 0):
        shown = f"[{first}, {last}]"
        raise ConfigError(
            "limits.tcp_port_range", f"{shown} cannot be used; allowed: first <= last, or [0, 0] for none"
        )
    _check_reserved(config.names)
    _check_redaction(config.inspect)
    return msgspec.structs.replace(config, server=server)


def _domain(text: str) -> str:
    domain = text.lower().removesuffix(".")
    labels = domain.split(".")
    fits = len(domain) <= _MAX_DOMAIN and all(_LABEL.fullmatch(label) for label in labels)
    if not fits or labels[-1].isdigit():
        raise ConfigError("server.domain", f"{_shown(text)} cannot be used; allowed: a host name such as t.example.com")
    return domain


def _host(key: str, text: str) -> str:
    if text == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ConfigError(
            key, f"{_shown(text)} cannot be used; allowed: an IP address of this machine, ::, 0.0.0.0, localhost"
        ) from None


def _check_ports(server: ServerConfig) -> None:
    taken: dict[int, str] = {}
    for name in ("http_port", "https_port", "control_port", "dashboard_port"):
        port = getattr(server, name)
        if port and port in taken:
            raise ConfigError(f"server.{name}", f"{port} cannot be used; server.{taken[port]} has it already")
        taken[port] = name


def _check_dashboard(server: ServerConfig) -> None:
    if server.dashboard_tls and server.dashboard_plain:
        raise ConfigError("server.dashboard_plain", "contradicts server.dashboard_tls; set one of them")
    if not is_loopback(server.dashboard_host) and not (server.dashboard_tls or server.dashboard_plain):
        raise ConfigError(
            "server.dashboard_host",
            f"{_shown(server.dashboard_host)} is beyond loopback; set server.dashboard_tls = true "
            "(or server.dashboard_plain = true to go unencrypted)",
        )
    origin = server.dashboard_origin
    if origin is not None and not re.fullmatch(r"https?://[A-Za-z0-9.\[\]:-]+", origin):
        raise ConfigError(
            "server.dashboard_origin",
            f"{_shown(origin)} cannot be used; allowed: scheme, host and port, such as https://dash.example.com",
        )


def _check_access(auth: AuthConfig, server: ServerConfig) -> None:
    token = auth.admin_token
    if token is not None and not re.fullmatch(r"[!-~]+", token.reveal()):
        raise ConfigError("auth.admin_token", "cannot be used; allowed: visible ASCII characters without blanks")
    beyond = next((host for host in (server.host, server.dashboard_host) if not is_loopback(host)), None)
    if not auth.require_auth and beyond is not None and not auth.open_to_the_world:
        raise ConfigError(
            "auth.require_auth",
            f"false lets everybody who reaches {beyond} open tunnels; set server.host to 127.0.0.1, "
            "or auth.open_to_the_world = true (--open-to-the-world) if that is meant",
        )


def _check_redaction(inspect: InspectConfig) -> None:
    for entry in inspect.redact_hosts:
        host, _, tier = entry.partition("=")
        if not host or tier not in ("none", "standard", "strict"):
            raise ConfigError(
                "inspect.redact_hosts",
                f"{_shown(entry)} cannot be used; allowed: HOST=none, HOST=standard, HOST=strict",
            )
    for pattern in inspect.redact_patterns:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                "inspect.redact_patterns", f"{_shown(pattern)} is no regular expression: {error}"
            ) from None
        if compiled.match(""):
            raise ConfigError("inspect.redact_patterns", f"{_shown(pattern)} matches nothing at all, everywhere")


def _check_reserved(names: NamesConfig) -> None:
    for label in names.reserved:
        if not _LABEL.fullmatch(label):
            raise ConfigError(
                "names.reserved",
                f"{_shown(label)} cannot be used; allowed: labels of lower-case letters, digits, hyphens",
            )
