"""A tunnel that is watched: visitors over a fake link, a real store, an inspector between them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from rustunnel_py.config import InspectConfig
from rustunnel_py.hub.inspector import Inspector
from rustunnel_py.model.access import Caller, Role
from rustunnel_py.store.captures import Captures
from rustunnel_py.store.store import Store, open_store
from tests.support.fed_connection import FedPump
from tests.support.visitor_rig import Rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from rustunnel_py.store.database import Database

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
OWNER = Caller("owner", Role.AGENT, token_id="t")
READER = Caller("owner", Role.READ, token_id="r")
STRANGER = Caller("other", Role.AGENT)
ADMIN = Caller("admin", Role.ADMIN)


@dataclass
class Inspected:
    rig: Rig
    inspector: Inspector
    captures: Captures
    store: Store
    path: Path
    now: list[datetime] = field(default_factory=lambda: [NOW])

    @property
    def tunnel_id(self) -> str:
        return self.rig.tunnel.id

    def bytes_on_disk(self) -> bytes:
        return b"".join(file.read_bytes() for file in self.path.parent.glob(f"{self.path.name}*"))


def inspector_of(rig: Rig, captures: Captures, config: InspectConfig, now: list[datetime]) -> Inspector:
    inspector = Inspector(config, rig.registry, rig.pump, captures, wall=lambda: now[0])  # type: ignore[arg-type]
    rig.shared.watch = inspector.watch
    return inspector


@asynccontextmanager
async def inspected(
    folder: Path, config: InspectConfig | None = None, *, database: Database | None = None
) -> AsyncIterator[Inspected]:
    """Nothing is written by itself: call `inspector.write`."""
    path = folder / "captured.db"
    now = [NOW]
    async with open_store(folder / "main.db", path, now=lambda: now[0]) as store:
        rig = Rig(pump=FedPump(float(int(trio.current_time()))))
        captures = Captures(database or store.captured)
        inspector = inspector_of(rig, captures, config or InspectConfig(), now)
        await inspector.start()
        yield Inspected(rig, inspector, captures, store, path, now)
