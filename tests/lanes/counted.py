"""`rustunnel-py serve` that tells what it holds: tasks, threads, objects by class, and how long what they keep is.

    COUNTED_FILE=FILE python -m tests.lanes.counted serve …

On SIGUSR2 it writes a `Counts` as JSON to that file. Nothing is counted in between, so nothing is slower.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections import Counter, OrderedDict, deque
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, ModuleType

    from tests.support.server_process import ServerProcess

OURS = "rustunnel_py"
VARIABLE = "COUNTED_FILE"
SECONDS = 20.0  # to answer in, also on a busy machine


class Counts(msgspec.Struct):
    """`objects` by class, `kept` by attribute: how many items the containers of all objects have in all.

    `allocated`: bytes that somebody holds, without what the allocator keeps for later (0 where there is no glibc).
    """

    pump: str
    tasks: int
    threads: int
    allocated: int
    objects: dict[str, int]
    kept: dict[str, int]


def count() -> Counts:
    gc.unfreeze()  # a server freezes what it began with, its registries among that
    gc.collect()
    objects: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    pump = ""
    for one in gc.get_objects():
        kind = type(one)
        if not str(kind.__module__).startswith(OURS):
            continue
        name = f"{kind.__module__.removeprefix(OURS + '.')}.{kind.__qualname__}"
        if kind.__name__ in ("InstrumentPump", "EpollPump", "PortablePump"):
            # The first of them waits like the second after a failure.
            pump = "EpollPump" if getattr(one, "_inside", one) is None else kind.__name__
        objects[name] += 1
        for attribute, value in _attributes(one):
            if isinstance(value, dict | list | set | deque):
                kept[f"{name}.{attribute}"] += len(value)
    for module in _modules():
        for attribute, value in vars(module).items():
            if isinstance(value, dict | list | set | deque | OrderedDict) and not attribute.startswith("__"):
                kept[f"{module.__name__.removeprefix(OURS + '.')}:{attribute}"] += len(value)
    tasks = trio.lowlevel.current_statistics().tasks_living
    some = {name: number for name, number in kept.items() if number}
    return Counts(pump, tasks, threading.active_count(), _allocated(), dict(objects), some)


class _Mallinfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _allocated() -> int:
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2  # of Python's own small objects it sees whole arenas
    except AttributeError:
        return 0
    mallinfo.restype = _Mallinfo
    found: _Mallinfo = mallinfo()
    in_use: int = found.uordblks + found.hblkhd
    return in_use


def _modules() -> Iterator[ModuleType]:
    return (module for name, module in list(sys.modules.items()) if name.startswith(OURS))


def _attributes(one: object) -> Iterator[tuple[str, object]]:
    yield from getattr(one, "__dict__", {}).items()
    for kind in type(one).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            try:
                yield name, getattr(one, name)
            except AttributeError:
                pass


def _write(number: int, frame: FrameType | None) -> None:
    target = Path(os.environ[VARIABLE])
    fresh = target.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(count()))
    fresh.replace(target)


def counts_of(server: ServerProcess, file: Path) -> Counts:
    """Ask a server that was started so. Raises TimeoutError."""
    file.unlink(missing_ok=True)
    server.signal(signal.SIGUSR2)
    end = time.monotonic() + SECONDS
    while not file.exists():
        if time.monotonic() > end:
            raise TimeoutError("the server does not tell what it holds")
        time.sleep(0.02)
    return msgspec.json.decode(file.read_bytes(), type=Counts)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, _write)
    from rustunnel_py.cli import main

    main()
