"""SQLite behind one door: the only file that knows asyncio and aiosqlite.

`open_store` starts one thread with an asyncio loop, which holds two connections a file: one that writes and one
that reads. A trio task hands over a whole transaction (`Database.write`, `Database.read`) and sleeps until its
result is back. Each connection has one task, which runs these transactions one after another:

    trio task --call_soon_threadsafe--> lane (queue, one connection) --run_sync_soon--> trio task

* A transaction is a function of a `Transaction`. It runs in the thread, so it may touch nothing of trio's, and it
  may run although its caller was cancelled: a cancelled caller only stops waiting.
* It is committed when the function returns, rolled back when it raises. SQLite's errors come out as StoreError,
  all others as they are. A failed commit may still be durable, so what is retried must be idempotent.
* A read that takes too long, or whose caller is gone, is stopped by `interrupt()`; writes never are.
* Leaving `open_store` runs what is queued, closes the files and joins the thread, however it is left.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, cast

import aiosqlite
import structlog
import trio

from rustunnel_py.errors import StoreBroken, StoreError
from rustunnel_py.store import files
from rustunnel_py.store.accounts import Users
from rustunnel_py.store.instants import utc_now
from rustunnel_py.store.names import Names
from rustunnel_py.store.tokens import Tokens
from rustunnel_py.store.tunnel_log import TunnelLog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

T = TypeVar("T")
Row: TypeAlias = tuple[Any, ...]
Work: TypeAlias = "Callable[[Transaction], Awaitable[T]]"

APPLICATION_ID = 0x7275_7470  # "rutp": tells our files from other programs' SQLite files
BUSY_SECONDS = 5.0  # how long another process (a backup, an sqlite3 shell) may hold a file
READ_SECONDS = 10.0  # no answer is worth a longer read; nobody waits for it any more
WAITING_MAX = 1000  # transactions queued at one connection; past that the disk has stopped, and saying so is better
CHECKED_BYTES_MAX = 256 * 2**20  # a larger file is not read through at start: it would cost seconds
FLUSH_SECONDS = 5.0  # at the end, for what the batches still hold
JOURNAL_BYTES_MAX = 64 * 2**20  # the WAL is cut back to this after a checkpoint

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Store:
    """What the server remembers, by subject."""

    tokens: Tokens
    names: Names
    accounts: Users
    tunnel_log: TunnelLog
    captured: Database


@asynccontextmanager
async def open_store(main: Path, captured: Path, *, now: Callable[[], datetime] = utc_now) -> AsyncIterator[Store]:
    """Open both files, made or migrated as needed. `now` is the wall clock.

    Raises StoreBroken for a main file that cannot be used and StoreError for one that cannot be had; both
    say in one line what to do. A damaged captured file is set aside, loudly, and begun anew.
    """
    plans = (
        _Plan(main, "main", "FULL", "tokens and remembered names"),
        _Plan(captured, "captured", "NORMAL", None),
    )
    async with _open_databases(plans) as (main_database, captured_database):
        users = Users(main_database, now)
        store = Store(
            tokens=Tokens(main_database),
            names=Names(main_database, now),
            accounts=users,
            tunnel_log=TunnelLog(main_database, now),
            captured=captured_database,
        )
        await users.load()
        await store.tokens.load()
        await store.tunnel_log.close_leftovers()
        try:
            yield store
        finally:
            with trio.move_on_after(FLUSH_SECONDS, shield=True):
                await store.tunnel_log.flush()
                await store.tokens.flush()


class Transaction:
    """The statements of one transaction; each sees what the ones before it wrote."""

    __slots__ = ("_connection",)

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def execute(self, sql: str, parameters: Sequence[object] = ()) -> int:
        """Run one statement; gives the number of rows that it changed."""
        async with self._connection.execute(sql, tuple(parameters)) as cursor:
            return cursor.rowcount

    async def execute_many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        async with self._connection.executemany(sql, [tuple(row) for row in rows]):
            pass

    async def fetch_all(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        return [tuple(row) for row in await self._connection.execute_fetchall(sql, tuple(parameters))]

    async def fetch_one(self, sql: str, parameters: Sequence[object] = ()) -> Row | None:
        async with self._connection.execute(sql, tuple(parameters)) as cursor:
            row = await cursor.fetchone()
        return None if row is None else tuple(row)


class Database:
    """One file, as trio tasks see it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, writer: _Lane, reader: _Lane) -> None:
        self._loop = loop
        self._writer = writer
        self._reader = reader

    async def write(self, work: Work[T]) -> T:
        """Run a transaction that may write; its commit is durable as the file's `synchronous` says."""
        return await self._hand_over(self._writer, work)

    async def read(self, work: Work[T]) -> T:
        """Run a transaction that reads: all its statements see one state. StoreError past READ_SECONDS."""
        return await self._hand_over(self._reader, work)

    async def _hand_over(self, lane: _Lane, work: Work[T]) -> T:
        job = _Job(work)
        try:
            self._loop.call_soon_threadsafe(lane.put, job)
        except RuntimeError as error:
            raise StoreError("the database is closed") from error
        try:
            return await job.result()
        except trio.Cancelled:
            # the loop outlives every caller inside open_store, but not one that is cancelled by its end
            try:
                self._loop.call_soon_threadsafe(lane.abandon, job)
            except RuntimeError:
                pass
            raise


class _Job(Generic[T]):
    """A transaction on its way to the thread, and its result on the way back."""

    __slots__ = ("_error", "_settled", "_token", "_value", "abandoned", "work")

    def __init__(self, work: Work[T]) -> None:
        self.work = work
        self.abandoned = False
        self._token = trio.lowlevel.current_trio_token()
        self._settled = trio.Event()
        self._value: T | None = None
        self._error: BaseException | None = None

    def settle(self, value: T | None, error: BaseException | None) -> None:
        """Called in the thread, once."""
        self._value = value
        self._error = error
        try:
            self._token.run_sync_soon(self._settled.set)
        except trio.RunFinishedError:
            pass

    async def result(self) -> T:
        await self._settled.wait()
        if self._error is not None:
            raise self._error
        return cast("T", self._value)


class _Lane:
    """One connection, and the transactions that wait for it. Everything here runs in the thread."""

    def __init__(self, connection: aiosqlite.Connection, kind: Literal["write", "read"]) -> None:
        self._connection = connection
        self._reads = kind == "read"
        self._begin = "BEGIN" if self._reads else "BEGIN IMMEDIATE"
        self._queue: asyncio.Queue[_Job[Any] | None] = asyncio.Queue()
        self._closed = False
        self._running: _Job[Any] | None = None
        self._hurry: asyncio.Future[None] | None = None

    def put(self, job: _Job[Any]) -> None:
        if self._closed:
            job.settle(None, StoreError("the database is closed"))
        elif self._queue.qsize() >= WAITING_MAX:
            job.settle(None, StoreError("the database does not keep up"))
        else:
            self._queue.put_nowait(job)

    def abandon(self, job: _Job[Any]) -> None:
        """Its caller is gone: a read is not worth finishing, a write goes on."""
        job.abandoned = True
        if self._running is job and self._hurry is not None and not self._hurry.done():
            self._hurry.set_result(None)

    def close(self) -> None:
        """Take nothing more; `run` ends after what is queued."""
        self._closed = True
        self._queue.put_nowait(None)

    async def run(self) -> None:
        while (job := await self._queue.get()) is not None:
            if self._reads and job.abandoned:
                continue
            self._running = job
            try:
                value = await (self._patiently(job) if self._reads else self._transact(job))
            except sqlite3.Error as error:
                job.settle(None, _told(error))
            except Exception as error:
                job.settle(None, error)
            else:
                job.settle(value, None)
            self._running = None

    async def _patiently(self, job: _Job[T]) -> T:
        """Until it is done, or too long, or its caller left."""
        self._hurry = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(self._transact(job))
        await asyncio.wait({task, self._hurry}, timeout=READ_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        while not task.done():
            await self._connection.interrupt()  # stops the statement that runs, not the function
            await asyncio.wait({task}, timeout=0.05)
        return task.result()

    async def _transact(self, job: _Job[T]) -> T:
        connection = self._connection
        await connection.execute(self._begin)
        try:
            value = await job.work(Transaction(connection))
            await connection.commit()
        except BaseException:
            await self._roll_back()
            raise
        return value

    async def _roll_back(self) -> None:
        try:
            await self._connection.rollback()
        except sqlite3.Error as error:
            log.error("a transaction could not be rolled back", error=str(error))


def _told(error: sqlite3.Error) -> StoreError:
    told = StoreError(f"the database said: {error}")
    told.__cause__ = error
    return told


@dataclass(frozen=True, slots=True)
class _Plan:
    """A file to open. `precious` says what is lost with it; None: it is set aside when damaged."""

    path: Path
    migrations: str
    synchronous: Literal["FULL", "NORMAL"]
    precious: str | None


class _Opening:
    """What the thread tells trio while it starts, and how trio tells it to stop."""

    def __init__(self, plans: Sequence[_Plan]) -> None:
        self.plans = plans
        self.databases: list[Database] = []
        self.error: StoreError | None = None
        self._token = trio.lowlevel.current_trio_token()
        self._ready = trio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    async def ready(self) -> list[Database]:
        await self._ready.wait()
        if self.error is not None:
            raise self.error
        return self.databases

    def stop(self) -> None:
        if self._loop is not None and self._stop is not None:
            try:
                self._loop.call_soon_threadsafe(self._stop.set)
            except RuntimeError:
                pass  # it failed to start, and is over

    def run(self) -> None:
        """The thread's whole life."""
        try:
            asyncio.run(self._serve())
        except StoreError as error:
            self.error = error
        finally:
            self._token.run_sync_soon(self._ready.set)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with AsyncExitStack() as stack:
            lanes: list[_Lane] = []
            for plan in self.plans:
                stack.enter_context(files.locked(plan.path))
                writer, reader = [_Lane(connection, kind) for connection, kind in await _open(stack, plan)]
                lanes += [writer, reader]
                self.databases.append(Database(self._loop, writer, reader))
            running = [asyncio.ensure_future(lane.run()) for lane in lanes]
            self._token.run_sync_soon(self._ready.set)
            await self._stop.wait()
            for lane in lanes:
                lane.close()
            await asyncio.gather(*running)


@asynccontextmanager
async def _open_databases(plans: Sequence[_Plan]) -> AsyncIterator[list[Database]]:
    opening = _Opening(plans)
    finished = trio.Event()
    failure: list[BaseException] = []

    async def thread() -> None:
        try:
            # not abandoned on cancellation: this is where the thread is joined
            await trio.to_thread.run_sync(opening.run, limiter=trio.CapacityLimiter(1))
        except Exception as error:
            failure.append(error)
            raise
        finally:
            opening.stop()
            finished.set()

    async with _quiet_nursery() as nursery:
        nursery.start_soon(thread)
        try:
            yield await opening.ready()
        finally:
            opening.stop()
            with trio.CancelScope(shield=True):
                await finished.wait()
