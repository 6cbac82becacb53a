"""What the server remembers, by subject, over the two files."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rustunnel_py.store.accounts import Users
from rustunnel_py.store.audit import AuditLog
from rustunnel_py.store.database import Database, Plan, open_databases
from rustunnel_py.store.instants import utc_now
from rustunnel_py.store.leases import LeaseBook
from rustunnel_py.store.logins import LoginBook
from rustunnel_py.store.names import Names
from rustunnel_py.store.telemetry import TelemetryBook
from rustunnel_py.store.tokens import Tokens
from rustunnel_py.store.tunnel_log import TunnelLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Store:
    """What the server remembers, by subject."""

    tokens: Tokens
    names: Names
    accounts: Users
    tunnel_log: TunnelLog
    leases: LeaseBook
    logins: LoginBook
    telemetry: TelemetryBook
    audit: AuditLog
    captured: Database


@asynccontextmanager
async def open_store(main: Path, captured: Path, *, now: Callable[[], datetime] = utc_now) -> AsyncIterator[Store]:
    """Open both files, made or migrated as needed. `now` is the wall clock.

    Raises StoreBroken for a main file that cannot be used and StoreError for one that cannot be had; both
    say in one line what to do. A damaged captured file is set aside, loudly, and begun anew.
    """
    plans = (Plan(main, "main", "FULL", precious=True), Plan(captured, "captured", "NORMAL", precious=False))
    async with open_databases(*plans) as (main_database, captured_database):
        users = Users(main_database, now)
        store = Store(
            tokens=Tokens(main_database),
            names=Names(main_database, now),
            accounts=users,
            tunnel_log=TunnelLog(main_database, now),
            leases=LeaseBook(main_database),
            logins=LoginBook(main_database),
            telemetry=TelemetryBook(captured_database),
            audit=AuditLog(main_database),
            captured=captured_database,
        )
        await users.load()
        await store.tokens.load()
        await store.tunnel_log.close_leftovers()
        try:
            yield store
        finally:
            await store.audit.flush()  # all are shielded
            await store.tunnel_log.flush()
            await store.tokens.flush()
