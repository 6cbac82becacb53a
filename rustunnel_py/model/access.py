"""Who asks, and what they may see and close."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Role(enum.Enum):
    """AGENT: registers tunnels and sees its own. READ: sees its own only. ADMIN: sees and does everything."""

    AGENT = "agent"
    READ = "read"
    ADMIN = "admin"


class Secret:
    """A value that never shows itself: not in logs, errors, reprs or JSON. `reveal` is the only way."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        raise TypeError("compare secrets with hmac.compare_digest")

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated user of the API or an agent's owner.

    `owner` is the user's id; names, tunnels, history and captures belong to it. `token_id` and `token_label`
    are None for the admin token. `scope` is None (everything) or the token's comma-separated patterns,
    `max_tunnels` and `protocols` (`http`, `tcp`) None or what the token is limited to.
    """

    owner: str
    role: Role
    token_id: str | None = None
    token_label: str | None = None
    scope: str | None = None
    anonymous: bool = False
    max_tunnels: int | None = None
    protocols: tuple[str, ...] | None = None

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN


def may_see(caller: Caller, owner: str) -> bool:
    """An admin sees all; everybody else what is their own; an anonymous agent nothing."""
    return caller.is_admin or (not caller.anonymous and caller.owner == owner)


def may_close(caller: Caller, owner: str) -> bool:
    return may_see(caller, owner) and caller.role is not Role.READ
