"""Users, organisations and who belongs where.

There is one organisation and nobody logs in by name yet: the admin token stands for the first user, and every
API token has a user of its own. What people own hangs on user ids, so accounts can grow around them.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from rustunnel_py.store.instants import to_micros

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from rustunnel_py.store.database import Database, Transaction

ADMIN_NAME = "admin"
ORGANISATION_NAME = "default"


class Users:
    """`first` is the id of the user for whom the admin token stands; known once the store is open."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        self.first = ""

    async def load(self) -> None:
        """Find the first user, or make them with the default organisation."""
        micros = to_micros(self._now())

        async def work(transaction: Transaction) -> str:
            row = await transaction.fetch_one("SELECT id FROM users ORDER BY seq LIMIT 1")
            if row is not None:
                return str(row[0])
            first = str(uuid.uuid4())
            await transaction.execute(
                "INSERT INTO organisations (id, name, created_at) VALUES (?, ?, ?)",
                (str(uuid.uuid4()), ORGANISATION_NAME, micros),
            )
            await add_user(transaction, first, ADMIN_NAME, "admin", micros)
            return first

        self.first = await self._database.write(work)


async def add_user(transaction: Transaction, user_id: str, name: str, role: str, created_at: int) -> None:
    """A new member of the default organisation, as part of somebody's transaction."""
    await transaction.execute("INSERT INTO users (id, name, created_at) VALUES (?, ?, ?)", (user_id, name, created_at))
    await transaction.execute(
        "INSERT INTO memberships (user_id, organisation_id, role)"
        " SELECT ?, id, ? FROM organisations ORDER BY seq LIMIT 1",
        (user_id, role),
    )
