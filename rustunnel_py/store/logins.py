"""Logins of people and the token pairs they were given: read once, at start; written through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rustunnel_py.store.instants import from_micros, from_micros_or_none, to_micros

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from rustunnel_py.store.database import Database, Row, Transaction


@dataclass(frozen=True, slots=True)
class Login:
    """Somebody who approved a login with a token: `token_id`, None for the admin token."""

    id: str
    token_id: str | None
    email: str
    created_at: datetime


@dataclass(slots=True)
class Pair:
    """An access and a refresh token, as hashes. `replaced_at`: when its refresh token was used. `used`: one of its
    tokens came back, so the client has it.
    """

    id: str
    login_id: str
    parent_id: str | None
    access_hash: str
    refresh_hash: str
    issued_at: datetime
    expires_at: datetime
    replaced_at: datetime | None = None
    used: bool = False


class LoginBook:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> tuple[list[Login], list[Pair]]:
        """In the order in which they were made. Raises StoreError."""

        async def work(transaction: Transaction) -> tuple[list[Row], list[Row]]:
            return (
                await transaction.fetch_all("SELECT id, token_id, email, created_at FROM logins ORDER BY seq"),
                await transaction.fetch_all(
                    "SELECT id, login_id, parent_id, access_hash, refresh_hash, issued_at, expires_at, replaced_at,"
                    " used FROM login_pairs ORDER BY seq"
                ),
            )

        logins, pairs = await self._database.read(work)
        return (
            [Login(login_id, token_id, email, from_micros(created)) for login_id, token_id, email, created in logins],
            [_pair(row) for row in pairs],
        )

    async def add(self, login: Login | None, pair: Pair, replaced: Pair | None, dropped: Sequence[str]) -> None:
        """A new pair, with its new login or in place of `replaced`; `dropped` are ids of pairs that go.

        Raises StoreError.
        """
        values = (
            pair.id,
            pair.login_id,
            pair.parent_id,
            pair.access_hash,
            pair.refresh_hash,
            to_micros(pair.issued_at),
            to_micros(pair.expires_at),
        )
        at = None if replaced is None or replaced.replaced_at is None else to_micros(replaced.replaced_at)

        async def work(transaction: Transaction) -> None:
            if login is not None:
                await transaction.execute(
                    "INSERT INTO logins (id, token_id, email, created_at) VALUES (?, ?, ?, ?)",
                    (login.id, login.token_id, login.email, to_micros(login.created_at)),
                )
            if replaced is not None:
                await transaction.execute(
                    "UPDATE login_pairs SET replaced_at = ?, used = 1 WHERE id = ?", (at, replaced.id)
                )
            await transaction.execute(
                "INSERT INTO login_pairs (id, login_id, parent_id, access_hash, refresh_hash, issued_at, expires_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                values,
            )
            await transaction.execute_many("DELETE FROM login_pairs WHERE id = ?", [(one,) for one in dropped])

        await self._database.write(work)

    async def mark_used(self, pair_ids: Sequence[str]) -> None:
        async def work(transaction: Transaction) -> None:
            await transaction.execute_many(
                "UPDATE login_pairs SET used = 1 WHERE id = ?", [(pair_id,) for pair_id in pair_ids]
            )

        await self._database.write(work)

    async def delete(self, login_ids: Sequence[str]) -> None:
        """Logins with all their pairs. Raises StoreError."""

        async def work(transaction: Transaction) -> None:
            await transaction.execute_many("DELETE FROM logins WHERE id = ?", [(login_id,) for login_id in login_ids])

        await self._database.write(work)


def _pair(row: Row) -> Pair:
    (pair_id, login_id, parent_id, access_hash, refresh_hash, issued, expires, replaced, used) = row
    return Pair(
        id=pair_id,
        login_id=login_id,
        parent_id=parent_id,
        access_hash=access_hash,
        refresh_hash=refresh_hash,
        issued_at=from_micros(issued),
        expires_at=from_micros(expires),
        replaced_at=from_micros_or_none(replaced),
        used=bool(used),
    )
