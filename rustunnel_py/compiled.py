"""The hot path as machine code, where `make compile` has made it; the sources alone do the same, slower.

The same sources are compiled (by mypyc) into one extension module, which lies beside the installed packages and not
beside the sources, so Python does not find it by itself. What was compiled is used only if it was made from exactly the
sources that are here: at each start the sum of every source that the compiler read is compared, so that an edited
source is never passed over. Otherwise the sources are run.
"""

from __future__ import annotations

import os
import sys
from enum import Enum
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec, PathFinder
from importlib.util import source_hash, spec_from_file_location
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

MODULES = (
    "agents.rustunnel_exchange",
    "agents.rustunnel_link",
    "edges.shared",
    "edges.turn",
    "edges.visitor",
    "hub.policies.concurrent_visits",
    "hub.recording",
    "hub.rings",
    "hub.tally",
    "model.ring",
    "transport.relay",
    "transport.tcp",
    "transport.tls",
    "wire.body",
    "wire.fields",
    "wire.forwarding",
    "wire.reply",
    "wire.request",
    "wire.yamux",
)
"""What is compiled: where a request and a byte spend their time. A class that is compiled cannot be inherited from by
one that is not (so not `wire.sink`, `transport.trunk`), and asynchronous generators cannot be compiled
(`transport.pump`)."""

FOLDER = "rustunnel_py_compiled"
"""Among the installed packages. In it: the extension module, and SOURCES."""
SOURCES = "sources"
"""The extension's file name, then a line `sum path` for each source; the paths are relative to this package."""
LIBRARY = "rustunnel_py_compiled__mypyc"
"""What the extension calls itself; each of MODULES is initialized out of it."""

PACKAGE = os.path.dirname(__file__)


class Use(Enum):
    """What was found at the start."""

    NONE = "not compiled"
    STALE = "compiled from other sources and not used"
    COMPILED = "compiled"


def sum_of(path: str) -> str:
    """The sum of one source, as Python's own hash-based .pyc files have it; it depends on Python's version, too."""
    with open(os.path.join(PACKAGE, path), "rb") as file:
        return source_hash(file.read()).hex()


class _Finder:
    """Gives MODULES out of the extension."""

    def __init__(self, extension: str) -> None:
        self._extension = extension
        self._names = {LIBRARY, *(f"{__package__}.{module}" for module in MODULES)}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._names:
            return None
        return spec_from_file_location(name, self._extension, loader=ExtensionFileLoader(name, self._extension))


def _extension() -> tuple[Use, str]:
    """The path of the extension that fits."""
    found = PathFinder.find_spec(FOLDER)
    for folder in (found and found.submodule_search_locations) or ():
        try:
            with open(os.path.join(folder, SOURCES), encoding="utf-8") as file:
                name, *lines = file.read().splitlines()
            sums = [line.split(" ", 1) for line in lines]
            if name.endswith(EXTENSION_SUFFIXES[0]) and all(sum_of(path) == known for known, path in sums):
                return Use.COMPILED, os.path.join(folder, name)
        except (OSError, ValueError):
            pass
        return Use.STALE, ""
    return Use.NONE, ""


def _take() -> Use:
    """Called once, before anything else of the package is imported.

    RUSTUNNEL_COMPILED, for tests and measurements: `no` runs the sources, `must` raises ImportError where only they
    could be run.
    """
    wanted = os.environ.get("RUSTUNNEL_COMPILED", "")
    if wanted == "no":
        return Use.NONE
    use, path = _extension()
    if use is Use.COMPILED:
        sys.meta_path.insert(0, _Finder(path))
    elif wanted == "must":
        raise ImportError(f"RUSTUNNEL_COMPILED=must, but the hot path is {use.value}: make compile")
    return use


USE = _take()


def remark() -> str:
    """What follows the version: nothing where nothing was compiled."""
    return "" if USE is Use.NONE else f" ({USE.value})"
