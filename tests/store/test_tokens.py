from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio

from rustunnel_py.errors import StoreError
from rustunnel_py.model.access import Role
from rustunnel_py.store.store import open_store
from rustunnel_py.store.tokens import Token

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2025, 6, 1, 12, 0, 0, 123456, tzinfo=UTC)
FULL = Token(
    id="t1",
    hash="a" * 64,
    label="ci ' OR 1=1 \u202e",
    owner="u1",
    scope="api-*,tcp:20000-20010",
    role=Role.READ,
    created_at=NOW,
    expires_at=NOW + timedelta(days=1),
    max_tunnels=3,
    protocols=("http", "tcp"),
)
BARE = Token(id="t2", hash="b" * 64, label="bare", owner="u2", scope=None, role=Role.AGENT, created_at=NOW)


async def test_a_token_comes_back_as_it_was(tmp_path: Path) -> None:
    paths = tmp_path / "rustunnel.db", tmp_path / "captured.db"
    async with open_store(*paths) as store:
        await store.tokens.create(FULL)
        await store.tokens.create(BARE)
        store.tokens.note_use("t1", NOW)
        store.tokens.note_tunnel("t1")
        store.tokens.note_tunnel("t1")
        store.tokens.note_tunnel("gone")
    used = replace(FULL, last_used_at=NOW, tunnel_count=2)
    async with open_store(*paths) as store:
        assert store.tokens.all() == [used, BARE]
        assert store.tokens.find("a" * 64) == used
        assert store.tokens.get("t2") == BARE
        assert store.tokens.find("c" * 64) is None


async def test_a_deleted_token_is_gone_and_can_be_deleted_again(tmp_path: Path) -> None:
    paths = tmp_path / "rustunnel.db", tmp_path / "captured.db"
    async with open_store(*paths) as store:
        await store.tokens.create(FULL)
        store.tokens.note_use("t1", NOW)
        await store.tokens.delete("t1")
        await store.tokens.delete("t1")
        assert store.tokens.find("a" * 64) is None
        assert store.tokens.get("t1") is None
        await store.tokens.flush()
    async with open_store(*paths) as store:
        assert store.tokens.all() == []


async def test_one_hash_stands_for_one_token(tmp_path: Path) -> None:
    async with open_store(tmp_path / "rustunnel.db", tmp_path / "captured.db") as store:
        await store.tokens.create(FULL)
        with pytest.raises(StoreError, match="UNIQUE"):
            await store.tokens.create(replace(BARE, hash=FULL.hash))
        assert store.tokens.all() == [FULL]
        await store.tokens.create(BARE)  # the user of the failed try was rolled back with it


async def test_a_creator_that_leaves_does_not_part_memory_from_database(tmp_path: Path) -> None:
    paths = tmp_path / "rustunnel.db", tmp_path / "captured.db"
    async with open_store(*paths) as store:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.tokens.create(BARE)
        assert store.tokens.all() == [BARE]
    async with open_store(*paths) as store:
        assert store.tokens.all() == [BARE]


async def test_uses_that_cannot_be_written_are_written_later(tmp_path: Path) -> None:
    paths = tmp_path / "rustunnel.db", tmp_path / "captured.db"
    async with open_store(*paths) as store:
        await store.tokens.create(BARE)
        other = sqlite3.connect(paths[0], isolation_level=None)
        other.execute("CREATE TRIGGER stop BEFORE UPDATE ON tokens BEGIN SELECT raise(ABORT, 'no'); END")
        store.tokens.note_use("t2", NOW)
        await store.tokens.flush()
        other.execute("DROP TRIGGER stop")
        other.close()
        await store.tokens.flush()
    async with open_store(*paths) as store:
        assert store.tokens.all() == [replace(BARE, last_used_at=NOW)]
