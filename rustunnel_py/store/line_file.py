"""A file that only grows, a line at a time: audit log and access log. Reopened for log rotation.

Lines are gathered in memory and written by a thread, so a disk that is slow or full costs lines, never the service.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import structlog
import trio

from rustunnel_py.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

WRITE_SECONDS = 0.5  # how late a line may be in the file
WAITING_MAX = 8 * 2**20  # bytes gathered while the disk does not answer; then lines are dropped and counted
PRIVATE = 0o600

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class LineFile:
    """`dropped` counts lines that were lost. Raises ConfigError where the file cannot be opened."""

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        try:
            self._descriptor = self._open()
        except OSError as error:
            raise ConfigError(key, f"{path} cannot be opened: {error.strerror}") from None
        self._waiting: list[bytes] = []
        self._size = 0
        self._failing = False
        self._writing = trio.Lock()
        self.dropped = 0

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, PRIVATE)

    def write(self, line: bytes) -> None:
        """Take a line with its end; it is in the file soon."""
        if self._size + len(line) > WAITING_MAX:
            self.dropped += 1
            return
        self._waiting.append(line)
        self._size += len(line)

    async def run(self) -> None:
        """Write what has come together; once more when cancelled, then close."""
        try:
            while True:
                await trio.sleep(WRITE_SECONDS)
                await self.flush()
        finally:
            with trio.CancelScope(shield=True):
                await self.flush()
            os.close(self._descriptor)

    async def flush(self) -> None:
        async with self._writing:
            batch, self._waiting, self._size = self._waiting, [], 0
            if not batch:
                return
            try:
                await trio.to_thread.run_sync(_write_all, self._descriptor, b"".join(batch))
            except OSError as error:
                self.dropped += len(batch)
                if not self._failing:
                    log.error("lines cannot be written", path=str(self._path), error=error.strerror)
                self._failing = True
            else:
                self._failing = False

    async def reopen(self) -> None:
        """The file was renamed: go on in a new one. Where that cannot be opened the old one is kept."""
        await self.flush()
        async with self._writing:
            try:
                opened = self._open()
            except OSError as error:
                log.error("a log file cannot be opened again", path=str(self._path), error=error.strerror)
                return
            os.close(self._descriptor)
            self._descriptor = opened


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
