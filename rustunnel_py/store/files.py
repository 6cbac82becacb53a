"""What a database file must be before SQLite may touch it: kind, permissions, lock; and setting one aside.

SQLite itself begins an empty database wherever it finds none, or an empty file. For a file that holds all
tokens and names that is the wrong answer: what is there and unusable is refused, never replaced.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from rustunnel_py.errors import StoreBroken, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

PAGE_MIN = 512  # SQLite's smallest page; it takes a shorter file for an empty one and begins anew
PRIVATE = 0o600  # tokens are hashed, but names, addresses and captures are nobody else's business

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Damaged(StoreBroken):
    """Ours, and its content is broken: what may be set aside where its loss can be borne."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the database for this process; a second server on the same file is refused. Raises StoreError.

    The lock is a file of its own: closing any descriptor of the database would drop SQLite's own locks.
    """
    lock_path = beside(path, ".lock")
    try:
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE)
    except OSError as error:
        raise StoreError(
            f"{lock_path} cannot be opened: {error.strerror}; is its folder there and writable?"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(f"{path} is in use by another running server") from error
        yield
    finally:
        os.close(lock)


def judge(path: Path) -> bool:
    """Whether there is a database file to open. Raises StoreBroken for what is there and no database file."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        journal = beside(path, "-wal")
        if journal.exists():
            raise Damaged(
                f"{path} is missing but {journal.name} is there; restore the file, or move {journal.name} away "
                "to begin anew"
            ) from None
        return False
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise StoreBroken(f"{path} is {_kind(found.st_mode)}, not a database file; name the file itself")
    if found.st_size < PAGE_MIN:
        raise Damaged(f"{path} is cut off; restore it from a backup, or move it away to begin anew")
    _make_private(path, found)
    return True


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    return "a named pipe" if stat.S_ISFIFO(mode) else "a device or socket"


def _make_private(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        log.warning("the database file belongs to another user", path=str(path), uid=found.st_uid)
    if found.st_mode & 0o077:
        try:
            os.chmod(path, PRIVATE)
        except OSError:
            log.warning("others may read the database file; make it 0600", path=str(path))
        else:
            log.warning("others could read the database file; it is 0600 now", path=str(path))


def create_private(path: Path) -> None:
    """An empty file that is 0600 from its first moment; what SQLite puts beside it inherits that."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, PRIVATE))
    except OSError as error:
        raise StoreError(f"{path} cannot be made: {error.strerror}; is its folder there and writable?") from error


def put_in_place(made: Path, path: Path) -> None:
    """Give a finished file its name, durably."""
    try:
        os.rename(made, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreError(f"{path} cannot be made: {error.strerror}") from error


def remove(path: Path) -> None:
    """A half-made database of an earlier start, with its journals."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        beside(path, suffix).unlink(missing_ok=True)


def set_aside(path: Path, now: datetime, why: str = "broken") -> Path:
    """Rename a database and what belongs to it; gives its new name."""
    stamp = f".{why}-{now:%Y%m%dT%H%M%SZ}"
    aside = beside(path, stamp)
    number = 1
    while aside.exists():
        number += 1
        aside = beside(path, f"{stamp}-{number}")
    try:
        for suffix in ("", "-wal", "-shm"):
            if beside(path, suffix).exists():
                os.rename(beside(path, suffix), beside(aside, suffix))
    except OSError as error:
        raise StoreError(f"{path} cannot be moved away: {error.strerror}") from error
    return aside


def identity(path: Path) -> tuple[int, int] | None:
    """Which file has that name now; None: none that can be had."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def size(path: Path) -> int:
    return path.stat().st_size


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
