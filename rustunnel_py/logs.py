"""The log: structlog to standard error, for people or as JSON lines.

What peers said is escaped where it is shown; secrets are `Secret` values and show nothing. Nothing is logged per
request.

The server's log is written by a thread of its own, from a bounded queue: a pipe that nobody reads, a full disk or a
closed output costs log lines, which are counted, and never the service (P11).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Protocol

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rustunnel_py.config import LoggingConfig

QUEUE_MAX = 4 * 1024 * 1024  # characters that wait for a reader who pauses: some 20 000 lines
LINE_MAX = 64 * 1024  # characters of one event, its traceback too
CLOSE_SECONDS = 1.0  # an output that cannot be written to does not keep the server from ending

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class _Output(Protocol):
    def write(self, text: str) -> object: ...

    def flush(self) -> object: ...


class _StandardError:
    """Standard error as it is now, written at once. What cannot be written is lost."""

    def write(self, text: str) -> int:
        try:
            return sys.stderr.write(text)
        except (OSError, ValueError, AttributeError):
            return 0

    def flush(self) -> None:
        try:
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):
            pass


class BackgroundOutput:
    """Writes to a descriptor in a thread of its own. `dropped` counts what did not fit or could not be written.

    The thread knows no buffered file: one that is blocked in there would hold a lock that the interpreter's end needs.
    """

    def __init__(self, descriptor: int) -> None:
        self.dropped = 0
        self._told = 0  # of them, said in the output itself
        self._descriptor = descriptor
        self._lines: deque[str] = deque()
        self._size = 0  # of them
        self._more = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<BackgroundOutput to {self._descriptor}: {len(self._lines)} waiting, {self.dropped} dropped>"

    def write(self, text: str) -> int:
        line = text if len(text) <= LINE_MAX else text[:LINE_MAX] + "…\n"
        with self._more:
            if self._size + len(line) > QUEUE_MAX:
                self.dropped += 1
            else:
                self._lines.append(line)
                self._size += len(line)
                self._more.notify()
        return len(text)

    def flush(self) -> None:
        """Nothing: the thread writes as soon as it can."""

    def close(self) -> None:
        """Wait, bounded, until what was written is out."""
        with self._more:
            self._closing = True
            self._more.notify()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while True:
            with self._more:
                while not self._lines and not self._closing:
                    self._more.wait()
                if not self._lines:
                    return
                text = self._lines.popleft()
                self._size -= len(text)
                if self.dropped > self._told:
                    text = f"({self.dropped - self._told} log lines were dropped)\n{text}"
                    self._told = self.dropped
            if not self._write(text.encode("utf-8", "backslashreplace")):
                with self._more:
                    self.dropped += 1

    def _write(self, data: bytes) -> bool:
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:  # BlockingIOError too: another program on the same terminal made it non-blocking
            return False
        return True


def set_up(config: LoggingConfig, output: _Output | None = None) -> None:
    """Make every structlog logger of the process write as `config` says, to `output` or straight to standard error."""
    as_json = config.format == "json"
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr is not None and sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Tracebacks without local variables: those hold tokens.
            *([structlog.processors.format_exc_info, structlog.processors.JSONRenderer()] if as_json else [console]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[config.level]),
        logger_factory=structlog.WriteLoggerFactory(file=output or _StandardError()),  # type: ignore[arg-type]
        cache_logger_on_first_use=False,
    )


@contextlib.contextmanager
def background_log(config: LoggingConfig) -> Iterator[BackgroundOutput]:
    """`set_up` with a thread that writes to standard error; leaving waits, bounded, until all is out."""
    output = BackgroundOutput(2)
    set_up(config, output)
    try:
        yield output
    finally:
        output.close()
        set_up(config)


def say(lines: list[str]) -> None:
    """Lines on standard output, past Python's buffer. May block: call it in a thread. A closed output is no error."""
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(1, data) :]


def occupy_standard_descriptors() -> None:
    """Where 0, 1 or 2 is closed, open the null device there.

    Else a database or a visitor's socket would get the number, and the log would be written into it.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return
        os.set_inheritable(descriptor, True)
