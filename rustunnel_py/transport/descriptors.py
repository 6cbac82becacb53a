"""How many descriptors this process may have; each connection takes one."""

from __future__ import annotations

import math
import sys

if sys.platform != "win32":
    import resource

# Not given to connections, so that whoever manages and what keeps files still has some (P07).
RESERVED_DESCRIPTORS = 64


def descriptor_ceiling() -> float:
    """Above this number a descriptor is one of the reserve: the lowest free one is always given."""
    if sys.platform == "win32":
        return math.inf
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return math.inf
    return limit - min(RESERVED_DESCRIPTORS, limit // 4)


def raise_descriptor_limit() -> None:
    """As many descriptors as this process may have; each visitor and each agent takes some."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            pass  # the kernel's own ceiling is lower; the soft limit stands
