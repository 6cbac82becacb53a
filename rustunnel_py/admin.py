"""What an administrator on the server's own machine asks of it, whether it runs or not.

A running server is asked through its API, whose address it keeps in the data folder; only where nobody holds
the folder's lock are the files opened from here.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
from datetime import datetime  # noqa: TC003  (a field's type is read at run time)
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar
from urllib.parse import quote, urlsplit

import msgspec
import trio

from rustunnel_py import logs
from rustunnel_py.config import Config, LoggingConfig, database_paths
from rustunnel_py.errors import ConfigError, RustunnelError
from rustunnel_py.hub.accounts import Accounts
from rustunnel_py.hub.audit import Audit
from rustunnel_py.model.access import Role, Secret
from rustunnel_py.store import backup
from rustunnel_py.store.folder import ApiAddress, DataFolder
from rustunnel_py.store.store import open_store
from rustunnel_py.wire.pin import pin_of_certificate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

ANSWER_SECONDS = 10.0  # a server that takes longer over a token is stuck
REPLAY_SECONDS = 120.0  # a local service may be slow
ANSWER_BYTES = 16 * 2**20  # tens of thousands of tokens

T = TypeVar("T")


class ServerFailure(RustunnelError):
    """The running server did not answer, or with an error."""


class NewToken(msgspec.Struct, frozen=True):
    """A token just made; the only moment at which it is known."""

    id: str
    label: str
    token: str


class TokenWish(msgspec.Struct, frozen=True, omit_defaults=True):
    """A token to be made; None is no limit."""

    label: str
    scope: str | None = None
    role: Literal["agent", "read", "admin"] = "agent"
    expires_at: datetime | None = None
    max_tunnels: int | None = None
    protocols: tuple[str, ...] | None = None
    reads: str | None = None


class KnownToken(msgspec.Struct, frozen=True):
    """A token as it is kept."""

    id: str
    label: str
    created_at: str
    scope: str | None = None
    role: str = "agent"
    expires_at: str | None = None
    max_tunnels: int | None = None
    protocols: tuple[str, ...] | None = None
    reads: str | None = None


class TokenDesk(Protocol):
    """What can be done with tokens. Raises Denied, ServerFailure, StoreError."""

    def create(self, wish: TokenWish) -> NewToken: ...
    def list(self) -> list[KnownToken]: ...
    def delete(self, token_id: str) -> None: ...


def admin_token(config: Config, data: Path) -> Secret:
    """The admin token: the setting, or what the server made at first start. ConfigError: there is none yet."""
    if config.auth.admin_token is not None:
        return config.auth.admin_token
    folder = _existing_folder(data)
    if not folder.admin_token_file.exists():
        raise ConfigError("--data", f"{data} has no admin token yet; the server makes it at first start")
    return folder.admin_token()


@contextlib.contextmanager
def open_tokens(config: Config, data: Path) -> Iterator[TokenDesk]:
    """The tokens of the server over that data folder. ConfigError: there is no such server."""
    folder = _existing_folder(data)
    address = folder.read_address() if folder.is_locked() else None
    if address is not None:
        yield _RunningServer(address, admin_token(config, data))
        return
    with folder.lock():
        yield _ClosedServer(config, data)


def answers(data: Path) -> bool:
    """Whether the server over that data folder runs and says that it is well."""
    address = _existing_folder(data).read_address()
    if address is None:
        return False
    try:
        _ask(address, "GET", "/api/status", None, None)
    except ServerFailure:
        return False
    return True


def back_up(config: Config, data: Path, target: Path, *, captures: bool) -> list[Path]:
    """Copy the main file, and with `captures` the other one, from a server that runs or not; gives the copies."""
    main, captured = database_paths(config.database, _existing_folder(data).path)
    if not main.exists():
        raise ConfigError("--data", f"{main} is not there yet; the server makes it at first start")
    backup.back_up(main, target)
    if not captures:
        return [target]
    beside = backup.captured_beside(target)
    backup.back_up(captured, beside)
    return [target, beside]


def restore(config: Config, data: Path, copy: Path, *, captures: bool) -> list[Path]:
    """Put a backup in the place of what is there; gives where that was moved. ConfigError while the server runs."""
    folder = DataFolder(data)
    main, captured = database_paths(config.database, folder.path)
    with folder.lock():
        pairs: list[tuple[Path, Path, Literal["main", "captured"]]] = [(copy, main, "main")]
        if captures:
            pairs.append((backup.captured_beside(copy), captured, "captured"))
        moved = [backup.restore(source, path, kind) for source, path, kind in pairs]
    return [path for path in moved if path is not None]


class Sending(msgspec.Struct, frozen=True, omit_defaults=True):
    """What of a captured request is sent otherwise; a header's None takes it away."""

    method: str | None = None
    path: str | None = None
    headers: dict[str, str | None] | None = None
    body: str | None = None


class _Sent(msgspec.Struct):
    id: str
    status: int
    duration_ms: int


class _Replay(msgspec.Struct):
    request: _Sent


class _Replays(msgspec.Struct):
    replays: list[_Replay]


class _Tunnel(msgspec.Struct):
    tunnel_id: str


def replay(
    address: ApiAddress, token: Secret, request_id: str, sending: Sending, times: int
) -> list[tuple[str, int, int]]:
    """Send a captured request again through its tunnel: the new ids, statuses and milliseconds. ServerFailure."""
    wanted = quote(request_id, safe="")
    for tunnel in _decoded(_ask(address, "GET", "/api/tunnels", token, None), list[_Tunnel]):
        path = f"/api/tunnels/{tunnel.tunnel_id}"
        try:
            _ask(address, "GET", f"{path}/requests/{wanted}", token, None)
        except ServerFailure:
            continue
        body = msgspec.json.encode({"send": True, "edit": sending, "times": times})
        answer = _ask(address, "POST", f"{path}/replay/{wanted}", token, body, seconds=REPLAY_SECONDS)
        return [
            (one.request.id, one.request.status, one.request.duration_ms) for one in _decoded(answer, _Replays).replays
        ]
    raise ServerFailure(f"no tunnel that is served now has a request {request_id}")


def running_server(data: Path) -> ApiAddress:
    """Where the server over that data folder answers. ServerFailure: it does not run."""
    address = _existing_folder(data).read_address()
    if address is None:
        raise ServerFailure("the server does not run")
    return address


def _existing_folder(data: Path) -> DataFolder:
    if not data.is_dir():
        raise ConfigError("--data", f"{data} is no folder; start the server first, or say which it uses")
    return DataFolder(data)


class _RunningServer:
    """Asks over the API."""

    def __init__(self, address: ApiAddress, token: Secret) -> None:
        self._address = address
        self._token = token

    def create(self, wish: TokenWish) -> NewToken:
        body = msgspec.json.encode(wish)
        return _decoded(_ask(self._address, "POST", "/api/tokens", self._token, body), NewToken)

    def list(self) -> list[KnownToken]:
        return _decoded(_ask(self._address, "GET", "/api/tokens?details=true", self._token, None), list[KnownToken])

    def delete(self, token_id: str) -> None:
        _ask(self._address, "DELETE", f"/api/tokens/{quote(token_id, safe='')}", self._token, None)


def _decoded(content: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=shape)
    except msgspec.DecodeError as error:
        raise ServerFailure(f"the server's answer cannot be read: {error}") from None


def _shown(instant: datetime) -> str:
    return instant.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def _ask(
    address: ApiAddress,
    method: str,
    path: str,
    token: Secret | None,
    body: bytes | None,
    *,
    seconds: float = ANSWER_SECONDS,
) -> bytes:
    """One request to the running server; what it answered. ServerFailure: anything but a 2xx."""
    headers = {"Accept": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token.reveal()}"
    if body is not None:
        headers["Content-Type"] = "application/json"
    connection = _connection(address, seconds)
    try:
        connection.connect()
        _check_pin(connection, address.pin)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read(ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise ServerFailure(f"the server at {address.url} does not answer: {error}") from None
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        raise ServerFailure(f"the server refused: {_complaint(content) or f'{answer.status} {answer.reason}'}")
    return content


def _connection(address: ApiAddress, seconds: float) -> http.client.HTTPConnection:
    url = urlsplit(address.url)
    host = url.hostname or "127.0.0.1"
    if url.scheme == "http":
        return http.client.HTTPConnection(host, url.port, timeout=seconds)
    context = ssl.create_default_context()
    if address.pin is not None:  # the key itself is checked, by `_check_pin`, before anything is sent
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, url.port, timeout=seconds, context=context)


def _check_pin(connection: http.client.HTTPConnection, pin: str | None) -> None:
    sock = connection.sock
    if pin is None or not isinstance(sock, ssl.SSLSocket):
        return
    shown = pin_of_certificate(sock.getpeercert(True) or b"")
    if shown != pin:
        raise ServerFailure(f"another server answers at {connection.host}:{connection.port}; its pin is {shown}")


class _Complaint(msgspec.Struct):
    error: str


def _complaint(content: bytes) -> str:
    try:
        return msgspec.json.decode(content, type=_Complaint).error
    except msgspec.DecodeError:
        return ""


class _ClosedServer:
    """Opens the database itself; the caller holds the lock."""

    def __init__(self, config: Config, data: Path) -> None:
        self._config = config
        self._folder = DataFolder(data)

    def create(self, wish: TokenWish) -> NewToken:
        async def create(accounts: Accounts) -> NewToken:
            token, secret = await accounts.create_token(
                wish.label,
                wish.scope,
                role=Role(wish.role),
                expires_at=wish.expires_at,
                max_tunnels=wish.max_tunnels,
                protocols=wish.protocols,
                reads=wish.reads,
            )
            return NewToken(token.id, token.label, secret.reveal())

        return self._with_accounts(create)

    def list(self) -> list[KnownToken]:
        async def show(accounts: Accounts) -> list[KnownToken]:
            return [
                KnownToken(
                    token.id,
                    token.label,
                    _shown(token.created_at),
                    token.scope,
                    token.role.value,
                    None if token.expires_at is None else _shown(token.expires_at),
                    token.max_tunnels,
                    token.protocols,
                    token.reads,
                )
                for token in accounts.list_tokens()
            ]

        return self._with_accounts(show)

    def delete(self, token_id: str) -> None:
        async def delete(accounts: Accounts) -> None:
            await accounts.delete_token(token_id)

        self._with_accounts(delete)

    def _with_accounts(self, work: Callable[[Accounts], Awaitable[T]]) -> T:
        async def run() -> T:
            async with open_store(*database_paths(self._config.database, self._folder.path)) as store:
                admin = self._config.auth.admin_token or self._folder.admin_token()
                audit = Audit(store.audit)
                return await work(Accounts(store, admin, self._config.auth.require_auth, note=audit.note))

        logs.set_up(LoggingConfig(level="warning"))  # what is done here is printed, not logged
        return trio.run(run)
