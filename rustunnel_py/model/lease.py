"""Tunnels with a lease: made by REST, kept alive by heartbeats; and how a list shows any tunnel of an owner.

    creating ──> active ──> stopping ──> stopped
        └──> failed

`stopping` and `failed` are words of the contract; here nothing outside has to be torn down or set up, so a tunnel
goes from `active` to `stopped` in one step.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rustunnel_py.errors import Unavailable
from rustunnel_py.model.telemetry import BLANKS

if TYPE_CHECKING:
    from datetime import datetime

LEASE_SECONDS = 60  # from creation, and from each heartbeat
HEARTBEAT_SECONDS = 20  # what clients are told; must stay below LEASE_SECONDS
SLUG_MAX = 32

_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")


class Status(enum.Enum):
    CREATING = "creating"
    ACTIVE = "active"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_alive(self) -> bool:
        """Listed by default, counted, and its name is taken."""
        return self in (Status.CREATING, Status.ACTIVE, Status.STOPPING)


@dataclass(slots=True)
class Lease:
    """One leased tunnel. The hashes are SHA-256 in hex of the secrets that open it: `run_hash` for heartbeat and
    telemetry, `agent_hash` for the agent that serves it. Instants are wall time in whole milliseconds.
    """

    id: str
    owner: str
    token_id: str | None
    token_label: str | None
    slug: str
    hostname: str
    status: Status
    requested_port: int
    created_at: datetime
    heartbeat_at: datetime | None
    expires_at: datetime | None
    stopped_at: datetime | None
    last_error: str | None
    run_hash: str
    agent_hash: str

    def __repr__(self) -> str:
        return f"<Lease {self.hostname} {self.status.value}>"


@dataclass(frozen=True, slots=True)
class Term:
    """The two instants of a lease as they are shown."""

    heartbeat_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Listed:
    """One HTTP tunnel of an owner, leased or registered by an agent, alive or ended."""

    id: str
    hostname: str
    slug: str
    status: Status
    requested_port: int
    created_at: datetime
    lease: Term | None
    stopped_at: datetime | None
    last_error: str | None


def judge_slug(wish: str) -> str:
    """The label of a wished slug; blanks around it do not count. Raises Unavailable("malformed")."""
    slug = wish.strip(BLANKS)
    if not _SLUG.fullmatch(slug):
        raise Unavailable(
            "malformed",
            f"A slug has 1 to {SLUG_MAX} characters a-z, 0-9 and hyphens, with a letter or digit at both ends.",
        )
    if slug.startswith("xn--"):
        raise Unavailable("reserved", "Slugs that begin with xn-- are reserved.")
    return slug
