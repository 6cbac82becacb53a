from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from rustunnel_py.store import names as names_module
from rustunnel_py.store.names import NameKey, Remembered
from rustunnel_py.store.store import Store, open_store
from rustunnel_py.store.tunnel_log import LogEntry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
KEY = NameKey(owner="u1", machine="m1", protocol="http", local_addr="localhost:3000")


def memory(address: str, *, used_at: datetime = NOW, instance: str | None = "i1") -> Remembered:
    return Remembered(address=address, tunnel_id=f"t-{address}", instance=instance, released=False, used_at=used_at)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "rustunnel.db", tmp_path / "captured.db", now=lambda: NOW) as store:
        yield store


async def test_newest_first_even_if_the_clock_runs_backwards(store: Store) -> None:
    await store.names.remember(KEY, memory("one"))
    await store.names.remember(KEY, memory("two", used_at=NOW - timedelta(days=1), instance=None))
    assert [m.address for m in await store.names.remembered(KEY)] == ["two", "one"]
    again = replace(memory("one"), tunnel_id="t-new", instance="i2")
    await store.names.remember(KEY, again)
    assert await store.names.remembered(KEY) == [again, memory("two", used_at=NOW - timedelta(days=1), instance=None)]


async def test_names_survive_a_restart(tmp_path: Path) -> None:
    paths = tmp_path / "rustunnel.db", tmp_path / "captured.db"
    async with open_store(*paths) as store:
        await store.names.remember(KEY, memory("one"))
    async with open_store(*paths) as store:
        assert await store.names.remembered(KEY) == [memory("one")]


@pytest.mark.parametrize("part", ["owner", "machine", "protocol", "local_addr"])
async def test_each_part_of_the_key_counts(store: Store, part: str) -> None:
    await store.names.remember(KEY, memory("one"))
    assert await store.names.remembered(replace(KEY, **{part: "other"})) == []


async def test_release_marks_the_address_of_that_owner_only(store: Store) -> None:
    foreign = replace(KEY, owner="u2")
    await store.names.remember(KEY, memory("one"))
    await store.names.remember(foreign, memory("one"))
    await store.names.release("u1", "one")
    await store.names.release("u1", "unknown")
    assert [m.released for m in await store.names.remembered(KEY)] == [True]
    assert [m.released for m in await store.names.remembered(foreign)] == [False]
    await store.names.remember(KEY, memory("one"))
    assert [m.released for m in await store.names.remembered(KEY)] == [False]


async def test_a_key_and_an_owner_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "PER_KEY_MAX", 3)
    monkeypatch.setattr(names_module, "PER_OWNER_MAX", 5)
    for number in range(5):
        await store.names.remember(KEY, memory(f"n{number}"))
    assert [m.address for m in await store.names.remembered(KEY)] == ["n4", "n3", "n2"]
    for number in range(4):
        await store.names.remember(replace(KEY, machine=f"x{number}"), memory("m"))
    assert [m.address for m in await store.names.remembered(KEY)] == ["n4"]


@pytest.mark.parametrize("text", ["x" * 10_000, "\ud800", "a\x00b\r\n", "' OR 1=1 --", "\u202e💥"])
async def test_C17_any_text_may_be_a_local_address(store: Store, text: str) -> None:
    key = replace(KEY, local_addr=text, machine=text)
    await store.names.remember(key, memory("one", instance="i1"))
    assert [m.address for m in await store.names.remembered(key)] == ["one"]
    assert await store.names.remembered(replace(key, local_addr=text + "y")) == []


async def test_unused_names_are_forgotten_but_not_those_in_use(store: Store) -> None:
    long_ago = NOW - timedelta(days=40)
    for address in ("unused", "serving"):
        await store.names.remember(KEY, memory(address, used_at=long_ago))
    await store.names.remember(KEY, memory("fresh", used_at=NOW - timedelta(days=29)))
    store.tunnel_log.opened(LogEntry("l1", "t-serving", "u1", "http", "serving.localhost", "s1", None, None, long_ago))
    await store.tunnel_log.flush()
    assert await store.names.forget_unused(NOW - timedelta(days=30)) == 1
    assert {m.address: m.used_at for m in await store.names.remembered(KEY)} == {
        "serving": NOW,
        "fresh": NOW - timedelta(days=29),
    }
