"""A copy of a database while its server runs, and a copy put back.

A backup is one file in one piece (no journal beside it), as of the moment it was begun. SQLite's own copying reads
it in one transaction, which in WAL mode keeps no writer waiting.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING

from rustunnel_py.errors import ConfigError, StoreBroken, StoreError
from rustunnel_py.store import files
from rustunnel_py.store.database import APPLICATION_ID, newest_schema
from rustunnel_py.store.instants import utc_now

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal


def captured_beside(path: Path) -> Path:
    """Where the copy of the captures is: `backup.db` has `backup.captured.db` beside it."""
    return path.with_name(f"{path.stem}.captured{path.suffix}")


def back_up(source: Path, target: Path) -> None:
    """Copy a database of this program, in use or not. Raises ConfigError (the target), StoreError."""
    if target.exists():
        raise ConfigError("FILE", f"{target} is there already; a backup replaces nothing")
    made = files.beside(target, ".new")
    files.remove(made)
    try:
        files.create_private(made)
        _copy(source, made)
        _make_durable(made)
        files.put_in_place(made, target)
    except BaseException:
        files.remove(made)
        raise


def restore(copy: Path, path: Path, kind: Literal["main", "captured"]) -> Path | None:
    """Put a copy in the place of a database that nobody uses; gives where the present one was moved, if there was one.

    The caller holds the data folder. Raises StoreBroken for what is no whole backup of this file.
    """
    _check(copy, kind)
    made = files.beside(path, ".new")
    files.remove(made)
    with files.locked(path):
        files.create_private(made)
        try:
            _copy(copy, made)
            _make_durable(made)
        except BaseException:
            files.remove(made)
            raise
        aside = files.set_aside(path, utc_now(), "replaced") if path.exists() else None
        files.put_in_place(made, path)
    return aside


def _copy(source: Path, target: Path) -> None:
    try:
        with _opened(source, "ro") as reading, _opened(target, "rw") as writing:
            reading.backup(writing)
            writing.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing beside it
    except sqlite3.Error as error:
        raise StoreError(f"{source} cannot be copied: {error}") from error


def _check(copy: Path, kind: Literal["main", "captured"]) -> None:
    if not copy.is_file():
        raise ConfigError("FILE", f"{copy} is no file")
    try:
        with _opened(copy, "ro") as reading:
            (application_id,) = reading.execute("PRAGMA application_id").fetchone()
            (version,) = reading.execute("PRAGMA user_version").fetchone()
            tables = {name for (name,) in reading.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            (verdict,) = reading.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        raise StoreBroken(f"{copy} is no backup of this program: {error}") from error
    if application_id != APPLICATION_ID or ("tokens" in tables) is not (kind == "main"):
        raise StoreBroken(f"{copy} is no backup of this program's {kind} file")
    if version > newest_schema(kind):
        raise StoreBroken(f"{copy} was written by a newer version of this program (schema {version})")
    if verdict != "ok":
        raise StoreBroken(f"{copy} is damaged ({verdict})")


def _opened(path: Path, mode: Literal["ro", "rw"]) -> contextlib.closing[sqlite3.Connection]:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None)
    return contextlib.closing(connection)


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
