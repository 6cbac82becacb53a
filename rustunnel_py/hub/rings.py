"""The rings of all tunnels: what is captured of each, in memory, unredacted, within one budget of bytes.

`watch` is on the hot path: a look-up and a new `Recording`. What is in a ring leaves it by `capture_views.py` only.
"""

from __future__ import annotations

import itertools
import time
import uuid
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from rustunnel_py.errors import NotFound
from rustunnel_py.hub.recording import Recording, TunnelRing, dashed
from rustunnel_py.model.redact import Redactor
from rustunnel_py.model.ring import Budget

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rustunnel_py.config import InspectConfig
    from rustunnel_py.hub.feed import Viewer
    from rustunnel_py.hub.recording import Clock
    from rustunnel_py.hub.registry import Tunnel
    from rustunnel_py.model.redact import Tier
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.wire.http1 import RequestHead


class Rings:
    """`by_tunnel` has those that were watched, until all that they hold is stored. `numbers` order all captures."""

    def __init__(self, config: InspectConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._budget = Budget(config.ring_bytes)
        self._redactors: dict[str, Redactor] = {}
        self._tiers = [(pattern, tier) for pattern, tier in map(_tier_of, config.redact_hosts)]
        self._overwritten = 0  # of rings that are gone
        self.by_tunnel: dict[str, TunnelRing] = {}
        self.numbers: Iterator[int] = itertools.count(1)
        self.viewers: set[Viewer] = set()  # of all rings, of those that are still to be made, too

    def watch(self, tunnel: Tunnel, visit: Visit, head: RequestHead) -> Recording:
        """The tap for an exchange that begins."""
        ring = self.by_tunnel.get(tunnel.id)
        if ring is None:
            ring = self._new(tunnel)
        return Recording(ring, visit, head)

    def ring_of(self, tunnel: Tunnel) -> TunnelRing:
        return self.by_tunnel.get(tunnel.id) or self._new(tunnel)

    def _new(self, tunnel: Tunnel) -> TunnelRing:
        ring = TunnelRing(
            tunnel.id,
            tunnel.owner,
            self._config.ring_size,
            self._budget,
            body_max=self._config.body_max_bytes,
            clock=self._clock,
            numbers=self.numbers,
            redactor=self.redactor_for(tunnel),
        )
        ring.relist = self._relist
        ring.viewers.extend(viewer for viewer in self.viewers if viewer.tunnel_id == tunnel.id)
        self.by_tunnel[tunnel.id] = ring
        return ring

    def _relist(self, ring: TunnelRing) -> None:
        """An exchange outlived its tunnel."""
        present = self.by_tunnel.setdefault(ring.tunnel_id, ring)
        if present is ring:
            ring.is_listed = True
            self._budget.rings[ring] = None  # type: ignore[index]

    def number_from(self, first: int) -> None:
        """Before anything is captured."""
        self.numbers = itertools.count(first)

    def let_go(self, ring: TunnelRing) -> None:
        """Its tunnel has ended; what is not stored is lost."""
        self.by_tunnel.pop(ring.tunnel_id, None)
        ring.is_listed = False
        ring.close()
        self._overwritten += ring.overwritten
        ring.overwritten = 0
        for viewer in ring.viewers:
            viewer.end()

    def find(self, tunnel_id: str, request_id: str) -> Recording | None:
        """What memory has of a request; the id as `request_uuid` gives it."""
        ring = self.by_tunnel.get(tunnel_id)
        if ring is None:
            return None
        digits = request_id.replace("-", "")
        return next((recording for recording in reversed(ring) if recording.id == digits), None)

    # numbers for the status page

    @property
    def captures(self) -> int:
        return sum(len(ring) for ring in self.by_tunnel.values())

    @property
    def bytes(self) -> int:
        return self._budget.used

    @property
    def waiting(self) -> int:
        """Not stored yet; costs a look at each."""
        return sum(1 for ring in self.by_tunnel.values() for _ in ring.waiting())

    @property
    def overwritten(self) -> int:
        """Before their turn."""
        return self._overwritten + sum(ring.overwritten for ring in self.by_tunnel.values())

    # redaction

    def redactor_for(self, tunnel: Tunnel | None) -> Redactor:
        """By its address: the first of `inspect.redact_hosts` that fits, else the server's."""
        return self.redactor(self._config.redact if tunnel is None else self.tier_for(str(tunnel.address)))

    def tier_for(self, host: str) -> Tier:
        for pattern, tier in self._tiers:
            if fnmatchcase(host, pattern):
                return tier
        return self._config.redact

    def redactor(self, tier: Tier) -> Redactor:
        found = self._redactors.get(tier)
        if found is None:
            names, patterns = self._config.redact_names, self._config.redact_patterns
            found = Redactor(tier, names, patterns, pause=_let_the_loop_run)
            self._redactors[tier] = found
        return found


def _tier_of(entry: str) -> tuple[str, Tier]:
    """`HOST=TIER`, checked with the settings."""
    host, _, tier = entry.partition("=")
    return host.lower(), "none" if tier == "none" else "strict" if tier == "strict" else "standard"


def request_uuid(text: str) -> str:
    """An id with its dashes, from either spelling. Raises NotFound: what is none finds nothing."""
    try:
        return dashed(uuid.UUID(text).hex)
    except ValueError:
        raise NotFound("request not found") from None


def _let_the_loop_run() -> None:
    """Large texts are redacted in threads: without a real pause the loop would not get the interpreter in time."""
    time.sleep(0.0001)
