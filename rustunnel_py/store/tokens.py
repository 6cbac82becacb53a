"""API tokens: all of them in memory, for look-ups that cost nothing, and in the database.

The server is the only writer of its database while it runs (the file is locked), so what is in memory is what
is true. Uses are noted in memory and written in batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog
import trio

from rustunnel_py.errors import StoreError
from rustunnel_py.model.access import Role
from rustunnel_py.store.accounts import add_user
from rustunnel_py.store.instants import from_micros, from_micros_or_none, to_micros

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from rustunnel_py.store.database import Database, Row, Transaction

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_COLUMNS = (
    "id, hash, label, user_id, scope, role, created_at, expires_at, last_used_at, max_tunnels, protocols, tunnel_count,"
    " reads"
)

READS_ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Token:
    """One API token without its secret: `hash` is the SHA-256 of that, in hex. `owner` is the user it acts for.

    `max_tunnels` and `protocols` None: as many and as any as the server allows. `reads` None: its user is its own;
    else that of the token with this id, or of the admin token (READS_ADMIN).
    """

    id: str
    hash: str
    label: str
    owner: str
    scope: str | None
    role: Role
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    max_tunnels: int | None = None
    protocols: tuple[str, ...] | None = None
    tunnel_count: int = 0
    reads: str | None = None


class Tokens:
    """All tokens there are, expired ones too."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._by_hash: dict[str, Token] = {}
        self._hash_of: dict[str, str] = {}  # by token id
        self._used: set[str] = set()  # ids of tokens whose use is not written yet

    async def load(self) -> None:
        async def work(transaction: Transaction) -> list[Row]:
            return await transaction.fetch_all(f"SELECT {_COLUMNS} FROM tokens ORDER BY seq")

        for row in await self._database.read(work):
            self._keep(_token(row))

    def __len__(self) -> int:
        return len(self._by_hash)

    def all(self) -> list[Token]:
        """In the order in which they were made."""
        return list(self._by_hash.values())

    def find(self, token_hash: str) -> Token | None:
        return self._by_hash.get(token_hash)

    def get(self, token_id: str) -> Token | None:
        token_hash = self._hash_of.get(token_id)
        return None if token_hash is None else self._by_hash[token_hash]

    async def create(self, token: Token) -> None:
        """Keep a new token, and its user if that is its own. Durable when this returns. Raises StoreError."""

        async def work(transaction: Transaction) -> None:
            created_at = to_micros(token.created_at)
            if token.reads is None:
                await add_user(transaction, token.owner, token.label, "member", created_at)
            await transaction.execute(
                f"INSERT INTO tokens ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", _row(token)
            )

        with trio.CancelScope(shield=True):  # a caller that leaves must not part memory from database
            await self._database.write(work)
        self._keep(token)

    async def delete(self, token_id: str) -> None:
        """Forget a token; unknown ids are no error, so that a failed try can be repeated. Raises StoreError."""

        async def work(transaction: Transaction) -> None:
            await transaction.execute("DELETE FROM tokens WHERE id = ?", (token_id,))

        with trio.CancelScope(shield=True):
            await self._database.write(work)
        token_hash = self._hash_of.pop(token_id, None)
        if token_hash is not None:
            del self._by_hash[token_hash]
        self._used.discard(token_id)

    def note_use(self, token_id: str, at: datetime) -> None:
        token = self.get(token_id)
        if token is not None:
            self._note(replace(token, last_used_at=at))

    def note_tunnel(self, token_id: str) -> None:
        token = self.get(token_id)
        if token is not None:
            self._note(replace(token, tunnel_count=token.tunnel_count + 1))

    async def flush(self) -> None:
        """Write the uses noted since the last time; what cannot be written now is tried again next time."""
        used = [token for token in (self.get(token_id) for token_id in self._used) if token is not None]
        self._used.clear()
        if not used:
            return

        async def work(transaction: Transaction) -> None:
            await transaction.execute_many(
                "UPDATE tokens SET last_used_at = ?, tunnel_count = ? WHERE id = ?", _uses(used)
            )

        try:
            with trio.CancelScope(shield=True):
                await self._database.write(work)
        except StoreError as error:
            self._used.update(token.id for token in used)
            log.warning("the use of tokens could not be written", error=str(error))

    def _keep(self, token: Token) -> None:
        self._by_hash[token.hash] = token
        self._hash_of[token.id] = token.hash

    def _note(self, token: Token) -> None:
        self._by_hash[token.hash] = token
        self._used.add(token.id)


def _uses(tokens: Iterable[Token]) -> list[tuple[int | None, int, str]]:
    return [(_micros(token.last_used_at), token.tunnel_count, token.id) for token in tokens]


def _micros(instant: datetime | None) -> int | None:
    return None if instant is None else to_micros(instant)


def _row(token: Token) -> tuple[object, ...]:
    """In the order of _COLUMNS."""
    return (
        token.id,
        token.hash,
        token.label,
        token.owner,
        token.scope,
        token.role.value,
        to_micros(token.created_at),
        _micros(token.expires_at),
        _micros(token.last_used_at),
        token.max_tunnels,
        None if token.protocols is None else ",".join(token.protocols),
        token.tunnel_count,
        token.reads,
    )


def _token(row: Row) -> Token:
    (token_id, token_hash, label, owner, scope, role, created, expires, last_used, most, protocols, count, reads) = row
    return Token(
        id=token_id,
        hash=token_hash,
        label=label,
        owner=owner,
        scope=scope,
        role=Role(role),
        created_at=from_micros(created),
        expires_at=from_micros_or_none(expires),
        last_used_at=from_micros_or_none(last_used),
        max_tunnels=most,
        protocols=None if protocols is None else tuple(protocols.split(",")),
        tunnel_count=count,
        reads=reads,
    )
