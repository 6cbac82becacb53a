"""Where a configuration comes from: login file, `agent.toml`, environment, flags.

Precedence, one value at a time: flag, environment, `agent.toml`, login file. A token and a trust go with the
server they were given for: those of the login file are used for the login file's server only, so that a changed
`RUSTUNNEL_SERVER` never carries an old token to a stranger.

    $XDG_CONFIG_HOME/rustunnel-py/login.toml        server, token and pin or ca; 0600, written by `login`
    $XDG_CONFIG_HOME/rustunnel-py/agent.toml        the tunnels of `start`
    $XDG_STATE_HOME/rustunnel-py-agent/machine      the random id of this machine
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import secrets
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import tomli

from rustunnel_py.client.config import (
    TOKEN_MAX,
    CaFile,
    Flags,
    HttpTunnel,
    Login,
    Options,
    Pin,
    ServerAddress,
    SystemTrust,
    TcpTunnel,
    Trust,
    Tunnel,
    check_tunnel,
    parse_ca,
    parse_host_header,
    parse_local,
    parse_pin,
    parse_port,
    parse_server,
    parse_token,
)
from rustunnel_py.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rustunnel_py.model.access import Secret

FILE_MAX = 1024 * 1024  # no login or tunnel file is a megabyte long; a device or a log given by mistake is
TUNNELS_MAX = 100  # far above what servers allow one session


def _folder(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    chosen = environ.get(variable, "")
    if chosen and Path(chosen).is_absolute():  # XDG: a relative path there is to be ignored
        return Path(chosen)
    if sys.platform == "win32" and environ.get("LOCALAPPDATA"):
        return Path(environ["LOCALAPPDATA"])
    return Path(environ.get("HOME") or Path.home()) / fallback


def login_path(environ: Mapping[str, str]) -> Path:
    return _folder(environ, "XDG_CONFIG_HOME", ".config") / "rustunnel-py" / "login.toml"


def agent_path(environ: Mapping[str, str]) -> Path:
    return _folder(environ, "XDG_CONFIG_HOME", ".config") / "rustunnel-py" / "agent.toml"


def machine_path(environ: Mapping[str, str]) -> Path:
    return _folder(environ, "XDG_STATE_HOME", ".local/state") / "rustunnel-py-agent" / "machine"


def write_private(path: Path, text: str) -> None:
    """Put `text` there in one step, readable by its owner only: a reader sees the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made 0600
    try:
        with open(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def machine_id(environ: Mapping[str, str]) -> str | None:
    """The random id of this machine, made at first use; None where it can be neither read nor kept."""
    path = machine_path(environ)
    with contextlib.suppress(OSError, ValueError):
        known = path.read_text(encoding="ascii").strip()
        if re.fullmatch(r"[0-9a-f]{32}", known):
            return known
    made = secrets.token_hex(16)
    try:
        write_private(path, made + "\n")
    except OSError:
        return None
    return made


def _read_toml(path: Path) -> dict[str, object] | None:
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read: {error.strerror or error}") from error
    if len(raw) > FILE_MAX:
        raise ConfigError(str(path), "is no configuration file: it is longer than 1 MiB")
    try:
        return tomli.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomli.TOMLDecodeError) as error:
        raise ConfigError(str(path), f"is not TOML: {error}") from error


def _known_only(table: Mapping[str, object], known: Sequence[str], where: str, path: Path) -> None:
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}"
            raise ConfigError(f"{path}: {where}{name}", f"is no known key{hint}")


class _LoginFile(msgspec.Struct):
    server: str
    token: str
    pin: str | None = None
    ca: str | None = None


def read_login(path: Path) -> Login | None:
    """The stored login, None if there is none. Raises ConfigError for a file that cannot be used."""
    table = _read_toml(path)
    if table is None:
        return None
    _known_only(table, _LoginFile.__struct_fields__, "", path)
    try:
        stored = msgspec.convert(table, _LoginFile)
    except msgspec.ValidationError as error:
        raise ConfigError(str(path), f"{error}; log in again") from error
    return Login(
        parse_server(stored.server, f"{path}: server"),
        parse_token(stored.token, f"{path}: token"),
        _trust(stored.pin, stored.ca, f"{path}: "),
    )


def _trust(pin: str | None, ca: str | None, where: str) -> Trust:
    if pin is not None and ca is not None:
        raise ConfigError(f"{where}pin", "a pin and a ca do not go together; give one of them")
    if pin is not None:
        return parse_pin(pin, f"{where}pin")
    return SystemTrust() if ca is None else parse_ca(ca, f"{where}ca")


def _quoted(text: str) -> str:
    """A TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\u{ord(m[0]):04x}", escaped) + '"'


def write_login(path: Path, login: Login) -> None:
    lines = [f"server = {_quoted(str(login.server))}", f"token = {_quoted(login.token.reveal())}"]
    match login.trust:
        case Pin(value):
            lines.append(f"pin = {_quoted(value)}")
        case CaFile(ca):
            lines.append(f"ca = {_quoted(str(ca.absolute()))}")
        case SystemTrust():
            pass
    write_private(path, "\n".join(lines) + "\n")


class _HttpTable(msgspec.Struct):
    protocol: str
    local: str | int
    subdomain: str | None = None
    host_header: str | None = None
    local_insecure: bool = False
    take_over: bool = False
    proxy_protocol: Literal[0, 1, 2] = 0


class _TcpTable(msgspec.Struct):
    protocol: str
    local: str | int
    port: int | None = None
    take_over: bool = False
    proxy_protocol: Literal[0, 1, 2] = 0


_TOP = ("server", "pin", "ca", "token_file", "websocket", "tunnels")


class _AgentFile(msgspec.Struct):
    server: str | None = None
    pin: str | None = None
    ca: str | None = None
    token_file: str | None = None
    websocket: bool = False
    tunnels: dict[str, dict[str, object]] = {}


@dataclass(frozen=True, slots=True)
class AgentFile:
    """What `agent.toml` says. `server`, `pin`, `ca` and `token_file` are None where it leaves them to the login."""

    tunnels: tuple[Tunnel, ...]
    server: str | None = None
    pin: str | None = None
    ca: str | None = None
    token_file: Path | None = None
    options: Options = field(default_factory=Options)


def read_agent_file(path: Path) -> AgentFile:
    """The tunnels of `start`. Raises ConfigError that names the file and the key."""
    table = _read_toml(path)
    if table is None:
        raise ConfigError(str(path), "is not there; it names the tunnels to start, one [tunnels.NAME] table each")
    _known_only(table, _TOP, "", path)
    try:
        file = msgspec.convert(table, _AgentFile)
    except msgspec.ValidationError as error:
        raise ConfigError(str(path), str(error)) from error
    if not file.tunnels:
        raise ConfigError(str(path), "names no tunnel; write one [tunnels.NAME] table each")
    if len(file.tunnels) > TUNNELS_MAX:
        raise ConfigError(str(path), f"names more than {TUNNELS_MAX} tunnels")
    base = path.parent
    return AgentFile(
        tunnels=tuple(_parse_tunnel(name, content, path) for name, content in file.tunnels.items()),
        server=file.server,
        pin=file.pin,
        ca=None if file.ca is None else str(base / Path(file.ca).expanduser()),
        token_file=None if file.token_file is None else base / Path(file.token_file).expanduser(),
        options=Options(websocket=file.websocket),
    )


def _parse_tunnel(name: str, table: dict[str, object], path: Path) -> Tunnel:
    where = f"tunnels.{name}."
    protocol = table.get("protocol")
    if protocol not in ("http", "tcp"):
        raise ConfigError(f"{path}: {where}protocol", 'is "http" or "tcp"')
    shape: type[_HttpTable | _TcpTable] = _HttpTable if protocol == "http" else _TcpTable
    _known_only(table, shape.__struct_fields__, where, path)
    try:
        read: _HttpTable | _TcpTable = msgspec.convert(table, shape)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {where.removesuffix('.')}", str(error)) from error
    key = f"{path}: {where}"
    local = parse_local(str(read.local), f"{key}local", tcp=protocol == "tcp")
    tunnel: Tunnel
    if isinstance(read, _HttpTable):
        host = None if read.host_header is None else parse_host_header(read.host_header, f"{key}host_header")
        tunnel = HttpTunnel(local, read.subdomain, host, read.local_insecure, read.take_over, read.proxy_protocol)
    else:
        if read.port is not None:
            parse_port(str(read.port), f"{key}port")
        tunnel = TcpTunnel(local, read.port, read.take_over, read.proxy_protocol)
    return check_tunnel(tunnel, key.removesuffix("."))


def find_login(flags: Flags, environ: Mapping[str, str], file: AgentFile | None = None) -> Login:
    """The server to use, with its token and trust. Raises ConfigError that says what to do where one is missing."""
    stored = read_login(login_path(environ))
    named = flags.server or environ.get("RUSTUNNEL_SERVER") or (file.server if file else None)
    if named is not None:
        source = "--server" if flags.server else "RUSTUNNEL_SERVER" if environ.get("RUSTUNNEL_SERVER") else "server"
        server = parse_server(named, source)
    elif stored is not None:
        server = stored.server
    else:
        raise ConfigError("", "no server is known; run: rustunnel-py login HOST:4040 (or set RUSTUNNEL_SERVER)")
    same = stored if stored is not None and stored.server == server else None
    return Login(server, _find_token(environ, file, same, server), _find_trust(flags, environ, file, same))


def _find_token(
    environ: Mapping[str, str], file: AgentFile | None, stored: Login | None, server: ServerAddress
) -> Secret:
    if "RUSTUNNEL_TOKEN" in environ:
        return parse_token(environ["RUSTUNNEL_TOKEN"], "RUSTUNNEL_TOKEN")
    if file is not None and file.token_file is not None:
        key = f"token_file {file.token_file}"
        try:
            with file.token_file.open(encoding="utf-8") as opened:
                return parse_token(opened.read(TOKEN_MAX + 2), key)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(key, f"cannot be read: {error}") from error
    if stored is not None:
        return stored.token
    raise ConfigError("", f"no token for {server} is known; run: rustunnel-py login {server} (or set RUSTUNNEL_TOKEN)")


def _find_trust(flags: Flags, environ: Mapping[str, str], file: AgentFile | None, stored: Login | None) -> Trust:
    if flags.pin is not None or flags.ca is not None:
        return _trust(flags.pin, flags.ca, "--")
    if environ.get("RUSTUNNEL_CA"):
        return parse_ca(environ["RUSTUNNEL_CA"], "RUSTUNNEL_CA")
    if file is not None and (file.pin is not None or file.ca is not None):
        return _trust(file.pin, file.ca, "")
    return SystemTrust() if stored is None else stored.trust
