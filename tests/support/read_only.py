"""A file system that turns read-only under a server that runs, as one does after an I/O error of its disk."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def turned_read_only(*databases: Path) -> Iterator[None]:
    """Within, this process can write none of these databases, and read them all.

    Every write goes to a journal first, so its descriptors are replaced by ones that only read: what SQLite hears is
    the operating system's refusal. Those of the main file are left alone, since closing one would drop its locks.
    """
    journals = {f"{path.resolve()}-wal" for path in databases}
    found: set[str] = set()
    saved: dict[int, int] = {}
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue  # the listing's own
        if target in journals:
            found.add(target)
            descriptor = int(entry.name)
            saved[descriptor] = os.dup(descriptor)
            reading = os.open(target, os.O_RDONLY)
            os.dup2(reading, descriptor)
            os.close(reading)
    assert found == journals, "their journals are not open here"
    try:
        yield
    finally:
        for descriptor, writing in saved.items():
            os.dup2(writing, descriptor)
            os.close(writing)
