"""The command line: parse, call, print.

What a command needs is imported when it runs, so that `--help` and a typing error are answered at once, and
so that the agent's commands import nothing of the server's half.

Exit codes: 0 done, 1 failed, 2 a setting or argument cannot be used (a taken port too), 3 the server refused
the token or showed another key than the pin says, 4 it refused the wished name or port.
"""

from __future__ import annotations

import gc
import os
import shlex
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

import rustunnel_py
from rustunnel_py import compiled
from rustunnel_py.errors import ConfigError, RustunnelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rustunnel_py.client.config import Tunnel
    from rustunnel_py.client.sources import AgentFile
    from rustunnel_py.config import Config
    from rustunnel_py.model.access import Secret
    from rustunnel_py.transport.pump import PumpKind

FAILED = 1
USAGE = 2

_Command = TypeVar("_Command", bound="Callable[..., Any]")


def main() -> None:
    """Run the command of this process; never returns."""
    failed: RustunnelError | None = None
    if compiled.USE is compiled.Use.STALE:
        click.echo(f"rustunnel-py: the hot path is {compiled.USE.value}; make compile", err=True)
    try:
        commands(prog_name="rustunnel-py")
    except* RustunnelError as group:  # nurseries wrap what is raised in them
        failed = _first(group)
    if failed is not None:
        click.echo(f"rustunnel-py: {failed}", err=True)
        sys.exit(exit_code(failed))


def _first(group: ExceptionGroup[RustunnelError]) -> RustunnelError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


def exit_code(error: RustunnelError) -> int:
    code: int = USAGE if isinstance(error, ConfigError) else getattr(error, "exit_code", FAILED)
    return code


def executable() -> str:
    """How this program is called, with its absolute path, quoted for the shell."""
    started = Path(sys.argv[0]).absolute()
    if started.name == "__main__.py":
        return shlex.join([sys.executable, "-m", "rustunnel_py"])
    return shlex.quote(str(started))


def data_path(chosen: Path | None, environment: Mapping[str, str]) -> Path:
    """The data folder: --data (or RUSTUNNEL_DATA), else the state folder of the XDG base directory specification."""
    if chosen is not None:
        return chosen.absolute()
    state = environment.get("XDG_STATE_HOME", "")
    # The specification: a relative path there is to be ignored.
    base = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    return base / "rustunnel-py"


def read_config(path: Path | None, flags: Mapping[str, object]) -> Config:
    """The server's settings from a file, this process's environment, and flags."""
    from rustunnel_py.config import load

    text = None
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError("--config", f"{path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError("--config", f"{path} is no text in UTF-8") from None
    return load(text, os.environ, flags)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(rustunnel_py.__version__ + compiled.remark(), prog_name="rustunnel-py")
def commands() -> None:
    """A self-hosted tunnel server and its agent.

    On the server: rustunnel-py serve. On your machine: rustunnel-py login HOST:4040, then rustunnel-py http 3000.
    To see it work: rustunnel-py try.
    """


def pump_option(command: _Command) -> _Command:
    """For tests and measurements: another pump than the fastest that runs here."""
    return click.option(
        "--pump",
        type=click.Choice(["auto", "instrument", "epoll", "portable"]),
        envvar="RUSTUNNEL_PUMP",
        default="auto",
        hidden=True,
    )(command)


def config_option(command: _Command) -> _Command:
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        envvar="RUSTUNNEL_CONFIG",
        metavar="FILE",
        help="Settings in TOML; see docs/configuration.md.  [env: RUSTUNNEL_CONFIG]",
    )(command)


def data_option(command: _Command) -> _Command:
    return click.option(
        "--data",
        type=click.Path(path_type=Path),
        envvar="RUSTUNNEL_DATA",
        metavar="DIR",
        help="Folder for certificates, tokens, databases.  [env: RUSTUNNEL_DATA]",
    )(command)


def port_range(text: str) -> tuple[int, int]:
    """`20000-20099`."""
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()):
        raise click.BadParameter(f"{text!r} is no range of ports such as 20000-20099")
    return int(first), int(last)


# Key, flag (two for yes and no), metavar and type, help. Every other key is set in the file or the environment.
SERVE_FLAGS: list[tuple[str, str, str | None, Any, str]] = [
    ("server.domain", "--domain", "NAME", str, "Tunnels are named below it.  [localhost]"),
    ("server.host", "--host", "ADDRESS", str, "Where to listen.  [::, which is IPv4 too]"),
    ("server.http_port", "--http-port", "PORT", int, "Public HTTP.  [8080]"),
    ("server.https_port", "--https-port", "PORT", int, "Public HTTPS.  [8443]"),
    ("server.control_port", "--control-port", "PORT", int, "Agents connect here.  [4040]"),
    ("server.dashboard_port", "--dashboard-port", "PORT", int, "REST API and dashboard.  [4041]"),
    ("server.dashboard_host", "--dashboard-host", "ADDRESS", str, "Where the dashboard listens.  [127.0.0.1]"),
    ("server.dashboard_tls", "--dashboard-tls/--no-dashboard-tls", None, bool, "The dashboard speaks TLS."),
    (
        "server.dashboard_plain",
        "--dashboard-plain/--no-dashboard-plain",
        None,
        bool,
        "The dashboard may be unencrypted beyond loopback.",
    ),
    ("server.drain_seconds", "--drain-seconds", "SECONDS", float, "Time to finish after SIGTERM.  [30]"),
    ("tls.cert_path", "--cert", "FILE", str, "A certificate of your own, with its chain (PEM)."),
    ("tls.key_path", "--key", "FILE", str, "Its private key (PEM)."),
    ("tls.cert_folder", "--cert-folder", "DIR", str, "More certificates, each for the names in it."),
    ("auth.require_auth", "--require-auth/--no-require-auth", None, bool, "Agents need a token.  [yes]"),
    (
        "auth.open_to_the_world",
        "--open-to-the-world/--no-open-to-the-world",
        None,
        bool,
        "With --no-require-auth: yes, beyond loopback too.",
    ),
    ("limits.tcp_port_range", "--tcp-ports", "FIRST-LAST", port_range, "Ports of TCP tunnels.  [20000-20099]"),
    ("logging.level", "--log-level", "LEVEL", str, "debug, info, warning, error.  [info]"),
    ("logging.format", "--log-format", "FORMAT", str, "console or json.  [console]"),
]


def serve_flags(command: _Command) -> _Command:
    """An option for each of SERVE_FLAGS; its parameter is the key with `__` for the dot."""
    for key, flag, metavar, kind, said in reversed(SERVE_FLAGS):
        parameter = key.replace(".", "__")
        command = click.option(flag, parameter, type=kind, metavar=metavar, default=None, help=said)(command)
    return command


@commands.command()
@config_option
@data_option
@serve_flags
@pump_option
@click.option("--check", is_flag=True, help="Only say whether the settings can be used.")
def serve(config_path: Path | None, data: Path | None, check: bool, pump: PumpKind, **flags: object) -> None:
    """Run the server.

    A flag goes before the environment (RUSTUNNEL_SERVER__DOMAIN=...), that before the file, that before the
    default. docs/configuration.md tells what each key means.
    """
    config = read_config(config_path, {name.replace("__", "."): value for name, value in flags.items()})
    if check:
        from rustunnel_py.certs.keeper import check_certificates

        check_certificates(config.tls, config.server.domain)
        click.echo("the settings can be used")
        return
    from rustunnel_py.server import serve_command

    sys.exit(serve_command(config, data_path(data, os.environ), executable=executable(), pump_kind=pump))


@commands.command(hidden=True)
@data_option
def health(data: Path | None) -> None:
    """Succeed if the server on this machine runs and answers; for the health checks of containers."""
    from rustunnel_py.admin import answers

    if not answers(data_path(data, os.environ)):
        click.echo("the server does not answer", err=True)
        sys.exit(FAILED)


@commands.command("try")
@click.argument("local", metavar="[PORT]", required=False)
@data_option
@click.option("--subdomain", metavar="NAME", help="The tunnel's name; a random one otherwise.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines in place of the screen.")
def try_(local: str | None, data: Path | None, subdomain: str | None, as_json: bool) -> None:
    """Server and agent in one, on this machine only: see it work.

    PORT is your local service; without it a small demo page is shown. Nothing is left behind unless --data says where.
    """
    from rustunnel_py.trial import run_trial

    config = read_config(None, {"server.host": "127.0.0.1", "server.domain": "localhost", "server.drain_seconds": 2.0})
    sys.exit(run_trial(config, data and data.absolute(), local=local, subdomain=subdomain, as_json=as_json))


def server_options(command: _Command) -> _Command:
    for option in (
        pump_option,
        click.option("--json", "as_json", is_flag=True, help="JSON lines in place of the screen."),
        click.option("--websocket", is_flag=True, help="For proxies that look into frames: WebSocket messages only."),
        click.option("--ca", metavar="FILE", help="PEM file of the authority to trust.  [env: RUSTUNNEL_CA]"),
        click.option("--pin", metavar="sha256:...", help="The server's key, as it prints it when it starts."),
        click.option("--server", metavar="HOST[:PORT]", help="In place of the login's.  [env: RUSTUNNEL_SERVER]"),
    ):
        command = option(command)
    return command


@commands.command()
@click.argument("server", metavar="HOST[:PORT]")
@click.option("--pin", metavar="sha256:...", help="The server's key, as it prints it when it starts.")
@click.option("--ca", metavar="FILE", help="PEM file of the authority to trust.")
def login(server: str, pin: str | None, ca: str | None) -> None:
    """Keep server, token and pin for later.

    The token is taken from RUSTUNNEL_TOKEN, else asked for, or read from standard input where that is no terminal.
    It is never an argument: other users of a machine can read those.
    """
    from functools import partial

    import trio

    from rustunnel_py.client import login as logging_in
    from rustunnel_py.client.config import parse_ca, parse_pin, parse_server
    from rustunnel_py.client.sources import login_path, machine_id

    if pin is not None and ca is not None:
        raise ConfigError("--pin", "a pin and a CA do not go together; give one of them")
    to_do = partial(
        logging_in.login,
        parse_server(server, "HOST"),
        path=login_path(os.environ),
        pin=None if pin is None else parse_pin(pin, "--pin"),
        ca=None if ca is None else parse_ca(ca, "--ca"),
        confirm=partial(click.confirm, err=True) if sys.stdin.isatty() else None,
        machine=machine_id(os.environ),
    )
    made = trio.run(partial(to_do, token=_given_token(server)))
    click.echo(f"logged in to {made.server}; now: {executable()} http 3000")


def _given_token(server: str) -> Secret:
    from rustunnel_py.client.config import TOKEN_MAX, parse_token

    if "RUSTUNNEL_TOKEN" in os.environ:
        click.echo("the token is that of RUSTUNNEL_TOKEN", err=True)
        return parse_token(os.environ["RUSTUNNEL_TOKEN"], "RUSTUNNEL_TOKEN")
    if sys.stdin.isatty():
        return parse_token(click.prompt(f"Token for {server}", hide_input=True, err=True))
    return parse_token(sys.stdin.read(TOKEN_MAX + 2), "standard input")


@commands.command()
@click.argument("local", metavar="[HOST:]PORT")
@click.option("--subdomain", metavar="NAME", help="The wished name; otherwise the last one or a random one.")
@click.option("--host-header", metavar="rewrite|VALUE", help="The Host that the local service sees.")
@click.option("--local-insecure", is_flag=True, help="With https://HOST:PORT: do not check its certificate.")
@click.option("--take-over", is_flag=True, help="Take the name from another agent of yours.")
@click.option("--proxy-protocol", type=click.Choice(["v1", "v2"]), help="Begin each connection with a PROXY header.")
@server_options
def http(
    local: str,
    subdomain: str | None,
    host_header: str | None,
    local_insecure: bool,
    take_over: bool,
    proxy_protocol: str | None,
    **server: Any,
) -> None:
    """Open an HTTP tunnel to a local service: 3000, app:3000, https://localhost:3000."""
    from rustunnel_py.client.config import HttpTunnel, parse_host_header, parse_local

    host = None if host_header is None else parse_host_header(host_header, "--host-header")
    tunnel = HttpTunnel(
        parse_local(local, "PORT"), subdomain, host, local_insecure, take_over, _proxy_version(proxy_protocol)
    )
    _run_agent(tunnel, **server)


@commands.command()
@click.argument("local", metavar="[HOST:]PORT")
@click.option("--port", type=click.IntRange(1, 65535), help="The wished public port.")
@click.option("--take-over", is_flag=True, help="Take the port from another agent of yours.")
@click.option("--proxy-protocol", type=click.Choice(["v1", "v2"]), help="Begin each connection with a PROXY header.")
@server_options
def tcp(local: str, port: int | None, take_over: bool, proxy_protocol: str | None, **server: Any) -> None:
    """Open a TCP tunnel to a local service: 22, db:5432."""
    from rustunnel_py.client.config import TcpTunnel, parse_local

    _run_agent(
        TcpTunnel(parse_local(local, "PORT", tcp=True), port, take_over, _proxy_version(proxy_protocol)), **server
    )


@commands.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="[FILE]", required=False)
@server_options
def start(file: Path | None, **server: Any) -> None:
    """Open every tunnel of FILE, by default agent.toml in the folder of the login."""
    from rustunnel_py.client.sources import agent_path, read_agent_file

    found = read_agent_file(agent_path(os.environ) if file is None else file)
    _run_agent(*found.tunnels, file=found, **server)


def _proxy_version(choice: str | None) -> Literal[0, 1, 2]:
    match choice:
        case "v1":
            return 1
        case "v2":
            return 2
        case _:
            return 0


def _run_agent(
    *tunnels: Tunnel,
    server: str | None,
    pin: str | None,
    ca: str | None,
    websocket: bool,
    as_json: bool,
    pump: PumpKind,
    file: AgentFile | None = None,
) -> None:
    from functools import partial

    import trio

    from rustunnel_py.client.agent import run_agent
    from rustunnel_py.client.config import AgentConfig, Flags, Options, check_tunnel
    from rustunnel_py.client.screen import open_screen
    from rustunnel_py.client.sources import find_login, machine_id

    flags = Flags(server=server, pin=pin, ca=ca)
    config = AgentConfig(
        login=find_login(flags, os.environ, file),
        tunnels=tuple(check_tunnel(tunnel, "tunnel") for tunnel in tunnels),
        options=Options(websocket=websocket or (file is not None and file.options.websocket)),
        machine=machine_id(os.environ),
    )
    with open_screen(json=as_json) as screen:
        gc.freeze()  # no module will ever be garbage: collections need not walk them
        code = trio.run(partial(run_agent, config, screen, pump_kind=pump))
    sys.exit(code)


@commands.group("rs-tunnel")
def rs_tunnel() -> None:
    """For users of the rs-tunnel CLI; see docs/rs-tunnel.md."""


@rs_tunnel.command("login-file")
@click.option("--api", required=True, metavar="URL", help="Where the server's API is: https://dash.example.com")
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Home folder of whoever runs rs-tunnel; yours by default.",
)
def rs_tunnel_login_file(api: str, home: Path | None) -> None:
    """Let the rs-tunnel CLI use an API token, without its own login.

    The token is taken as `login` takes it: from RUSTUNNEL_TOKEN, else asked for, or read from standard input.
    """
    from rustunnel_py.client.rs_tunnel_files import parse_api, write_session

    url = parse_api(api)
    folder = write_session(Path.home() if home is None else home, url, _given_token(url))
    click.echo(f"wrote {folder}; now: rs-tunnel list")


@commands.group()
def token() -> None:
    """Tokens of the server on this machine, running or not."""


@token.command("create")
@click.argument("label")
@click.option("--scope", metavar="PATTERNS", help="Names and ports it is for: app, ci-*, tcp:20000-20010.  [all]")
@click.option("--role", type=click.Choice(["agent", "read", "admin"]), help="[agent; read with --reads]")
@click.option("--reads", metavar="ID", help="It sees the tunnels of that token, or of `admin`, and changes nothing.")
@click.option("--expires", metavar="WHEN", help="30d, 12h, 2027-01-31, 2027-01-31T12:00:00Z.  [never]")
@click.option("--max-tunnels", type=click.IntRange(1), metavar="N", help="Tunnels at a time.  [any number]")
@click.option("--protocol", "protocols", type=click.Choice(["http", "tcp"]), multiple=True, help="[all]")
@config_option
@data_option
def token_create(
    label: str,
    scope: str | None,
    role: Literal["agent", "read", "admin"] | None,
    reads: str | None,
    expires: str | None,
    max_tunnels: int | None,
    protocols: tuple[str, ...],
    config_path: Path | None,
    data: Path | None,
) -> None:
    """Make a token and print it. It is shown this once."""
    from rustunnel_py.admin import TokenWish

    expires_at = None if expires is None else when(expires, datetime.now(UTC))
    role = role or ("agent" if reads is None else "read")
    reads = None if reads is None else reads.lower()
    wish = TokenWish(label, scope, role, expires_at, max_tunnels, protocols or None, reads)
    with _tokens(config_path, data) as tokens:
        made = tokens.create(wish)
    click.echo(made.token)
    click.echo(f"token {made.id} ({made.label}); it is shown only now", err=True)


def when(text: str, now: datetime) -> datetime:
    """A span from now (`30d`, `12h`), a day (its beginning, UTC), or a point in time."""
    number, unit = text[:-1], text[-1:]
    if unit in ("d", "h") and number.isascii() and number.isdecimal() and len(number) <= 6:
        return now + (timedelta(days=int(number)) if unit == "d" else timedelta(hours=int(number)))
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):  # the latter: in UTC it is the year 0 or 10000
        raise ConfigError("--expires", f"{text!r} is neither 30d nor 2027-01-31 nor 2027-01-31T12:00:00Z") from None


@token.command("list")
@config_option
@data_option
def token_list(config_path: Path | None, data: Path | None) -> None:
    """Show every token's id, label and limits."""
    from rustunnel_py.model.text import escape

    with _tokens(config_path, data) as tokens:
        for known in tokens.list():
            limits = [
                known.scope or "all names",
                *([f"role {known.role}"] if known.role != "agent" else []),
                *([f"of {known.reads}"] if known.reads else []),
                *([f"until {known.expires_at}"] if known.expires_at else []),
                *([f"at most {known.max_tunnels} tunnels"] if known.max_tunnels else []),
                *(["only " + ", ".join(known.protocols)] if known.protocols else []),
            ]
            click.echo(f"{known.id}  {known.created_at}  {escape(known.label)}  {'  '.join(limits)}")


@token.command("delete")
@click.argument("token_id", metavar="ID")
@config_option
@data_option
def token_delete(token_id: str, config_path: Path | None, data: Path | None) -> None:
    """Delete a token; agents that use it are disconnected."""
    with _tokens(config_path, data) as tokens:
        tokens.delete(token_id)


@token.command("show-admin")
@config_option
@data_option
def token_show_admin(config_path: Path | None, data: Path | None) -> None:
    """Print the admin token."""
    from rustunnel_py.admin import admin_token

    click.echo(admin_token(read_config(config_path, {}), data_path(data, os.environ)).reveal())


def _tokens(config_path: Path | None, data: Path | None) -> Any:
    from rustunnel_py.admin import open_tokens

    return open_tokens(read_config(config_path, {}), data_path(data, os.environ))


@commands.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--captures", is_flag=True, help="Captured requests, too: beside FILE, as NAME.captured.db.")
@config_option
@data_option
def backup(file: Path, captures: bool, config_path: Path | None, data: Path | None) -> None:
    """Copy the server's database to FILE, while it runs or not: tokens, names, history, audit."""
    from rustunnel_py.admin import back_up

    made = back_up(read_config(config_path, {}), data_path(data, os.environ), file, captures=captures)
    for path in made:
        click.echo(str(path))


@commands.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--captures", is_flag=True, help="Captured requests, too: from NAME.captured.db beside FILE.")
@config_option
@data_option
def restore(file: Path, captures: bool, config_path: Path | None, data: Path | None) -> None:
    """Put a backup in the place of the server's database. The server must not run; what is there is moved away."""
    from rustunnel_py.admin import restore as put_back

    moved = put_back(read_config(config_path, {}), data_path(data, os.environ), file, captures=captures)
    for path in moved:
        click.echo(f"what was there is now {path}", err=True)


@commands.command()
@click.argument("request_id", metavar="ID")
@click.option("--times", type=click.IntRange(1, 100), default=1, metavar="N", help="[1]")
@click.option("--method", metavar="METHOD")
@click.option("--path", metavar="PATH", help="With the query.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="Replaces it; NAME: alone removes it.")
@click.option(
    "--body", "body_file", type=click.File("r", encoding="utf-8"), metavar="FILE", help="- is standard input."
)
@click.option(
    "--api", metavar="URL", help="A server elsewhere, with the token of RUSTUNNEL_TOKEN.  [the one of --data]"
)
@config_option
@data_option
def replay(
    request_id: str,
    times: int,
    method: str | None,
    path: str | None,
    headers: tuple[str, ...],
    body_file: Any,
    api: str | None,
    config_path: Path | None,
    data: Path | None,
) -> None:
    """Send a captured request again, through its tunnel to its local service.

    ID is the request's, as the API, the dashboard and error pages have it.
    """
    from rustunnel_py import admin

    changes: dict[str, str | None] = {}
    for header in headers:
        name, colon, value = header.partition(":")
        if not (name.strip() and colon):
            raise ConfigError("--header", f"{header!r} is not NAME:VALUE")
        changes[name.strip()] = value.strip() or None
    sending = admin.Sending(method, path, changes or None, None if body_file is None else body_file.read())
    address, token = _api(api, config_path, data)
    for new_id, status, milliseconds in admin.replay(address, token, request_id, sending, times):
        click.echo(f"{status}  {milliseconds} ms  {new_id}")


def _api(url: str | None, config_path: Path | None, data: Path | None) -> tuple[Any, Secret]:
    """Where an API answers, and the token for it."""
    from rustunnel_py import admin
    from rustunnel_py.model.access import Secret
    from rustunnel_py.store.folder import ApiAddress

    if url is None:
        folder = data_path(data, os.environ)
        return admin.running_server(folder), admin.admin_token(read_config(config_path, {}), folder)
    if not url.startswith(("https://", "http://")):
        raise ConfigError("--api", f"{url!r} is no URL")
    if "RUSTUNNEL_TOKEN" not in os.environ:
        raise ConfigError("RUSTUNNEL_TOKEN", "is not set; --api needs a token of that server")
    return ApiAddress(url), Secret(os.environ["RUSTUNNEL_TOKEN"])
