"""What a long-lived process tells its two memory managers, the collector and malloc."""

from __future__ import annotations

import ctypes
import gc
import sys
import time

import trio

LOOK_SECONDS = 1.0
QUIET = 0.25  # of a processor, since the last look: few come, and fewer while it is done
# Objects that were made since the last full collection, and not freed at once. Below the first there is little to find.
DUE = 100_000
OVERDUE = 500_000  # it is done whoever waits: the garbage may be 100 MiB by now
_NEVER = 1_000_000_000

MMAP_THRESHOLD = 128 * 1024  # bytes; glibc's own first value
_M_MMAP_THRESHOLD = -3  # malloc.h


def spare_start_up() -> None:
    """Leave what is there now out of garbage collections from here on; for a process that has started.

    A full collection walks every object, and no module or route will ever be garbage: it held the loop for 30 ms, now
    and then under load.
    """
    gc.freeze()


async def collect_when_quiet() -> None:
    """Make full collections, for as long as this runs, when nobody waits for the loop.

    What a visit leaves is freed without the collector, but captures in memory and agents are walked over: a thousand
    busy tunnels or 500 agents are 50 to 150 ms. What they find is cycles of sessions and API calls that have ended. The
    younger generations stay with the interpreter, and so does all of it where its collections are incremental (3.14).
    """
    if sys.version_info >= (3, 14):
        return
    before = gc.get_threshold()
    gc.set_threshold(*before[:2], _NEVER)
    try:
        at_a_time = before[0] * before[1]  # so many make a collection of the middle generation
        done, spent = _middle_collections(), time.process_time()
        while True:
            await trio.sleep(LOOK_SECONDS)
            last, spent = spent, time.process_time()
            made = (_middle_collections() - done) * at_a_time
            if made >= OVERDUE or (made >= DUE and spent - last < QUIET * LOOK_SECONDS):
                gc.unfreeze()
                gc.collect()
                gc.freeze()
                done, spent = _middle_collections(), time.process_time()
    finally:
        gc.set_threshold(*before)


def _middle_collections() -> int:
    return int(gc.get_stats()[1]["collections"])


def give_large_blocks_back() -> None:
    """Let blocks from MMAP_THRESHOLD on return to the system when they are freed, where malloc is glibc's.

    It raises that threshold by itself up to 32 MiB as such blocks are freed, and keeps what is smaller in a heap that
    seldom shrinks: bodies of the inspector left 50 to 75 MiB there. Fixed, it costs bulk transfers nothing measurable.
    """
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)
    except (OSError, AttributeError):
        pass  # another libc: musl has no such knob, and no such heap
