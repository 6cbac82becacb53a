"""Names and ports remembered for agents that asked for any, over restarts of the server (design: memory)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rustunnel_py.store.instants import from_micros, to_micros

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from rustunnel_py.store.database import Database, Row, Transaction

PER_KEY_MAX = 64  # one agent may open that many tunnels to one local service and find them all again
PER_OWNER_MAX = 10_000  # machines and local addresses are the agent's own words: it could send new ones for ever
TEXT_MAX = 256  # longer words of the agent's are remembered by their hash


@dataclass(frozen=True, slots=True)
class NameKey:
    """Who asked for any name, and for what. `machine` is empty where the agent sends none."""

    owner: str
    machine: str
    protocol: str
    local_addr: str


@dataclass(frozen=True, slots=True)
class Remembered:
    """`address` is a label without domain, or a port. `instance` held it last; `released`: it ended cleanly."""

    address: str
    tunnel_id: str
    instance: str | None
    released: bool
    used_at: datetime


class Names:
    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now

    async def remembered(self, key: NameKey) -> list[Remembered]:
        """Newest first, at most PER_KEY_MAX. Raises StoreError."""

        async def work(transaction: Transaction) -> list[Row]:
            return await transaction.fetch_all(
                "SELECT address, tunnel_id, instance, released, used_at FROM names"
                " WHERE owner = ? AND machine = ? AND protocol = ? AND local_addr = ? ORDER BY seq DESC LIMIT ?",
                (*_words(key), PER_KEY_MAX),
            )

        return [
            Remembered(address, tunnel_id, instance, bool(released), from_micros(used_at))
            for address, tunnel_id, instance, released, used_at in await self._database.read(work)
        ]

    async def local_addresses(self, owner: str) -> dict[str, str]:
        """By tunnel id, the local address that its name is remembered for. Raises StoreError."""

        async def work(transaction: Transaction) -> list[Row]:
            return await transaction.fetch_all("SELECT tunnel_id, local_addr FROM names WHERE owner = ?", (owner,))

        return {str(tunnel_id): str(local_addr) for tunnel_id, local_addr in await self._database.read(work)}

    async def remember(self, key: NameKey, memory: Remembered) -> None:
        """Make `memory` the newest of its key; the oldest beyond the bounds are forgotten. Raises StoreError."""
        words = _words(key)
        values = (
            memory.address,
            memory.tunnel_id,
            None if memory.instance is None else _bounded(memory.instance),
            int(memory.released),
            to_micros(memory.used_at),
        )

        async def work(transaction: Transaction) -> None:
            await transaction.execute(
                "INSERT OR REPLACE INTO names (owner, machine, protocol, local_addr, address, tunnel_id, instance,"
                " released, used_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*words, *values),
            )
            await transaction.execute(
                "DELETE FROM names WHERE seq IN (SELECT seq FROM names WHERE owner = ? AND machine = ?"
                " AND protocol = ? AND local_addr = ? ORDER BY seq DESC LIMIT -1 OFFSET ?)",
                (*words, PER_KEY_MAX),
            )
            await transaction.execute(
                "DELETE FROM names WHERE seq IN (SELECT seq FROM names WHERE owner = ?"
                " ORDER BY seq DESC LIMIT -1 OFFSET ?)",
                (key.owner, PER_OWNER_MAX),
            )

        await self._database.write(work)

    async def release(self, owner: str, address: str) -> None:
        """Its tunnel ended cleanly: whoever of the owner's asks next may have it. Raises StoreError."""
        micros = to_micros(self._now())

        async def work(transaction: Transaction) -> None:
            await transaction.execute(
                "UPDATE names SET released = 1, used_at = ? WHERE owner = ? AND address = ?", (micros, owner, address)
            )

        await self._database.write(work)

    async def forget_unused(self, before: datetime) -> int:
        """Forget what was last used before then; what a tunnel serves at present counts as used now.

        Gives how many were forgotten. Raises StoreError.
        """
        micros = to_micros(self._now())

        async def work(transaction: Transaction) -> int:
            await transaction.execute(
                "UPDATE names SET used_at = ? WHERE tunnel_id IN"
                " (SELECT tunnel_id FROM tunnel_log WHERE unregistered_at IS NULL)",
                (micros,),
            )
            return await transaction.execute("DELETE FROM names WHERE used_at < ?", (to_micros(before),))

        return await self._database.write(work)


def _words(key: NameKey) -> tuple[str, str, str, str]:
    return key.owner, _bounded(key.machine), key.protocol, _bounded(key.local_addr)


def _bounded(text: str) -> str:
    """The text itself, or its hash where it is long or no Unicode that a database takes (lone surrogates)."""
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) <= TEXT_MAX and not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return "sha256:" + hashlib.sha256(raw).hexdigest()
