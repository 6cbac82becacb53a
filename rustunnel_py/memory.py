"""What a long-lived process tells its two memory managers, the collector and malloc."""

from __future__ import annotations

import ctypes
import gc
import sys

MMAP_THRESHOLD = 128 * 1024  # bytes; glibc's own first value
_M_MMAP_THRESHOLD = -3  # malloc.h


def spare_start_up() -> None:
    """Leave what is there now out of garbage collections from here on; for a process that has started.

    A full collection walks every object, and no module or route will ever be garbage: it held the loop for 30 ms, now
    and then under load.
    """
    gc.freeze()


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
