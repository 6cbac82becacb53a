"""SQLite behind one door: the only file that knows asyncio and aiosqlite.

`open_databases` starts one thread with an asyncio loop, which holds two connections a file: one that writes and one
that reads. A trio task hands over a whole transaction (`Database.write`, `Database.read`) and sleeps until its
result is back. Each connection has one task, which runs these transactions one after another:

    trio task --call_soon_threadsafe--> lane (queue, one connection) --run_sync_soon--> trio task

* A transaction is a function of a `Transaction`. It runs in the thread, so it may touch nothing of trio's, and it
  may run although its caller was cancelled: a cancelled caller only stops waiting.
* It is committed when the function returns, rolled back when it raises. SQLite's errors come out as StoreError,
  all others as they are. A failed commit may still be durable, so what is retried must be idempotent.
* A read that takes too long, or whose caller is gone, is stopped by `interrupt()`; writes never are.
* Leaving `open_databases` runs what is queued, closes the files and joins the thread, however it is left.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, cast

import aiosqlite
import structlog
import trio

from rustunnel_py.errors import StoreBroken, StoreError
from rustunnel_py.store import files
from rustunnel_py.store.instants import utc_now

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
    from pathlib import Path

T = TypeVar("T")
Row: TypeAlias = tuple[Any, ...]
Work: TypeAlias = "Callable[[Transaction], Awaitable[T]]"

APPLICATION_ID = 0x7275_7470  # "rutp": tells our files from other programs' SQLite files
BUSY_SECONDS = 5.0  # how long another process (a backup, an sqlite3 shell) may hold a file
READ_SECONDS = 10.0  # no answer is worth a longer read; nobody waits for it any more
WAITING_MAX = 1000  # transactions queued at one connection; past that the disk has stopped, and saying so is better
CHECKED_BYTES_MAX = 256 * 2**20  # a larger file is not read through at start: it would cost seconds
JOURNAL_BYTES_MAX = 64 * 2**20  # the WAL is cut back to this after a checkpoint

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


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
            # the loop outlives every caller inside open_databases, but not one that is cancelled by its end
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

    def __init__(self, connection: aiosqlite.Connection, kind: Literal["write", "read"], path: Path) -> None:
        self._connection = connection
        self._path = path
        self._identity = files.identity(path)
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
        task = asyncio.ensure_future(self._transact(job))
        self._hurry = asyncio.get_running_loop().create_future()
        awaited: set[asyncio.Future[Any]] = {task, self._hurry}
        await asyncio.wait(awaited, timeout=READ_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        while not task.done():
            await self._connection.interrupt()  # stops the statement that runs, not the function
            await asyncio.wait({task}, timeout=0.05)
        return task.result()

    async def _transact(self, job: _Job[T]) -> T:
        connection = self._connection
        if not self._reads and files.identity(self._path) != self._identity:
            # What is written now would be nowhere; what was open is still read.
            raise StoreError(f"{self._path} was deleted or replaced while the server runs; put it back, or restart")
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
class Plan:
    """A file to open. One that is not precious is set aside when it is damaged."""

    path: Path
    migrations: str
    synchronous: Literal["FULL", "NORMAL"]
    precious: bool


@asynccontextmanager
async def open_databases(*plans: Plan) -> AsyncIterator[list[Database]]:
    thread = _Thread(plans)
    thread.start()
    try:
        yield await thread.ready()
    finally:
        thread.stop()
        with trio.CancelScope(shield=True):
            await thread.join()


class _Thread:
    """The thread with its loop: how trio starts it, hears that it is ready, and stops it."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        self._plans = plans
        self._databases: list[Database] = []
        self._error: BaseException | None = None
        self._token = trio.lowlevel.current_trio_token()
        self._ready = trio.Event()
        self._over = trio.Event()
        self._stopping = False
        self._stop: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._thread = threading.Thread(target=self._run, name="store")

    def start(self) -> None:
        self._thread.start()

    async def ready(self) -> list[Database]:
        await self._ready.wait()
        if self._error is not None:
            raise self._error
        return self._databases

    def stop(self) -> None:
        """At any time, also while it is starting; `_serve` looks after it has made its event."""
        self._stopping = True
        if self._stop is not None:
            loop, stop = self._stop
            try:
                loop.call_soon_threadsafe(stop.set)
            except RuntimeError:
                pass  # it failed to start and is over

    async def join(self) -> None:
        await self._over.wait()
        self._thread.join()  # no wait: that event was the last thing it did

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._token.run_sync_soon(self._ready.set)
            self._token.run_sync_soon(self._over.set)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        self._stop = (loop, stop)
        if self._stopping:
            return
        async with AsyncExitStack() as stack:
            lanes: list[_Lane] = []
            for plan in self._plans:
                stack.enter_context(files.locked(plan.path))
                writing, reading = await _open(stack, plan)
                writer, reader = _Lane(writing, "write", plan.path), _Lane(reading, "read", plan.path)
                lanes += writer, reader
                self._databases.append(Database(loop, writer, reader))
            running = [asyncio.ensure_future(lane.run()) for lane in lanes]
            self._token.run_sync_soon(self._ready.set)
            await stop.wait()
            for lane in lanes:
                lane.close()
            await asyncio.gather(*running)


async def _open(stack: AsyncExitStack, plan: Plan) -> tuple[aiosqlite.Connection, aiosqlite.Connection]:
    """The writing and the reading connection of a file that is made, checked and migrated as needed."""
    try:
        return await _open_once(stack, plan)
    except files.Damaged as error:
        if plan.precious:
            raise
        aside = files.set_aside(plan.path, utc_now())
        log.error("a database file was damaged and is begun anew", reason=str(error), kept_as=str(aside))
        return await _open_once(stack, plan)


async def _open_once(stack: AsyncExitStack, plan: Plan) -> tuple[aiosqlite.Connection, aiosqlite.Connection]:
    scripts = _scripts(plan.migrations)
    if not files.judge(plan.path):
        await _make(plan.path, scripts)
    async with AsyncExitStack() as opened:
        with _translated(plan.path):
            writing = await _connect(opened, plan.path, plan.synchronous)
            await _check(writing, plan.path)
            await _migrate(writing, plan.path, scripts)
            if await _pragma(writing, "journal_mode = WAL") != "wal":
                raise StoreError(f"{plan.path} is where SQLite cannot keep a WAL; put it on a local disk")
            await writing.execute(f"PRAGMA journal_size_limit = {JOURNAL_BYTES_MAX}")
            reading = await _connect(opened, plan.path, plan.synchronous)
            await reading.execute("PRAGMA query_only = ON")
        await stack.enter_async_context(opened.pop_all())
    return writing, reading


async def _make(path: Path, scripts: Sequence[str]) -> None:
    """A new file gets its name when it is complete: a start that was killed leaves no half of one."""
    made = files.beside(path, ".new")
    files.remove(made)
    files.create_private(made)
    async with AsyncExitStack() as opened:
        with _translated(made):
            connection = await _connect(opened, made, "FULL")
            await _migrate(connection, made, scripts)
    files.put_in_place(made, path)


async def _connect(stack: AsyncExitStack, path: Path, synchronous: str) -> aiosqlite.Connection:
    connection = await stack.enter_async_context(aiosqlite.connect(path, isolation_level=None, timeout=BUSY_SECONDS))
    await connection.execute("PRAGMA foreign_keys = ON")
    await connection.execute("PRAGMA trusted_schema = OFF")
    await connection.execute(f"PRAGMA synchronous = {synchronous}")
    return connection


async def _check(connection: aiosqlite.Connection, path: Path) -> None:
    """That it is ours, and whole as far as that can be seen in a moment."""
    application_id = await _pragma(connection, "application_id")
    if application_id != APPLICATION_ID:
        raise StoreBroken(f"{path} is a database of another program; set another path, or move it away")
    if files.size(path) <= CHECKED_BYTES_MAX:
        verdict = await _pragma(connection, "quick_check(1)")
        if verdict != "ok":
            raise _damaged(path, str(verdict))


def _scripts(folder: str) -> list[str]:
    """The migrations of a file in order; the position of a script is the schema version that it leads to."""
    entries = (resources.files(__package__) / "migrations" / folder).iterdir()
    scripts = sorted((entry for entry in entries if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    return [script.read_text("utf-8") for script in scripts]


def newest_schema(folder: Literal["main", "captured"]) -> int:
    """The schema version that this program writes."""
    return len(_scripts(folder))


async def _migrate(connection: aiosqlite.Connection, path: Path, scripts: Sequence[str]) -> None:
    version = cast("int", await _pragma(connection, "user_version"))
    if version > len(scripts):
        raise StoreBroken(
            f"{path} was written by a newer version of this program (schema {version}, this one knows "
            f"{len(scripts)}); start that version"
        )
    for number, script in enumerate(scripts[version:], version + 1):
        await connection.executescript(
            f"BEGIN IMMEDIATE;\n{script}\n;PRAGMA application_id = {APPLICATION_ID};\n"
            f"PRAGMA user_version = {number};\nCOMMIT;"
        )


async def _pragma(connection: aiosqlite.Connection, text: str) -> object:
    async with connection.execute(f"PRAGMA {text}") as cursor:
        row = await cursor.fetchone()
    return None if row is None else row[0]


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's errors while a file is opened, in words an operator can act on."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise _damaged(path, str(error)) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreError(f"{path} is held by another program; stop that and start again") from error
        raise StoreError(f"{path} cannot be opened: {error}") from error


def _damaged(path: Path, reason: str) -> files.Damaged:
    first_line = reason.splitlines()[-1] if reason else "no reason given"
    return files.Damaged(f"{path} is damaged ({first_line}); restore it from a backup, or move it away to begin anew")
