"""Who did what: typed events, to the database and to a file of JSON lines.

Nothing in an event is a secret: who acts is named by owner and token id, what an agent or caller wrote is cut and
escaped. An event is noted by a call that waits for nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from rustunnel_py.model.text import escape
from rustunnel_py.store.audit import AuditRow
from rustunnel_py.store.instants import utc_now

if TYPE_CHECKING:
    from datetime import datetime

    from rustunnel_py.model.access import Caller
    from rustunnel_py.model.tunnel import Peer
    from rustunnel_py.store.audit import AuditLog
    from rustunnel_py.store.line_file import LineFile


def _snake(name: str) -> str:
    return "".join(f"_{sign.lower()}" if sign.isupper() and at else sign.lower() for at, sign in enumerate(name))


class Who(msgspec.Struct, frozen=True):
    """Who acts. `token_id` and `token_label` are None for the admin token."""

    owner: str
    role: str
    token_id: str | None = None
    token_label: str | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=_snake):
    """`who` None: nobody who is known; `peer` is IP and port, empty for what the server does by itself."""

    who: Who | None = None
    peer: str = ""


class LoginAccepted(Event, frozen=True, kw_only=True):
    """An agent's token was accepted; `session` is the id that history shows."""

    session: str
    client: str


class LoginRefused(Event, frozen=True, kw_only=True):
    """A token was not accepted. Floods are cut short, as in the log."""

    at: Literal["agents", "api"]


class LoginApproved(Event, frozen=True, kw_only=True):
    """Somebody with a token let a terminal log in as its user; `started_from` is where the terminal is."""

    email: str
    started_from: str


class LoginDeclined(Event, frozen=True, kw_only=True):
    """Somebody who has the link refused the login."""

    email: str
    started_from: str


class LoginExchanged(Event, frozen=True, kw_only=True):
    """A terminal got the first tokens of an approved login."""

    login: str
    email: str


class ExchangeRefused(Event, frozen=True, kw_only=True):
    """The code of an approved login came with a wrong verifier, or again."""

    email: str
    reason: str


class LoginRefreshed(Event, frozen=True, kw_only=True):
    login: str
    email: str


class RefreshReused(Event, frozen=True, kw_only=True):
    """A refresh token that had been replaced came back; the whole login ended. `who` is whom it stood for."""

    login: str
    email: str


class LoggedOut(Event, frozen=True, kw_only=True):
    """So many logins of this user ended."""

    logins: int


class LeaseCreated(Event, frozen=True, kw_only=True):
    tunnel: str
    address: str


class LeaseEnded(Event, frozen=True, kw_only=True):
    """`why`: its user deleted it, nobody sent heartbeats, another API closed it, or its token ended. `who` is known
    for the first of these.
    """

    tunnel: str
    address: str
    owner: str
    why: Literal["deleted", "expired", "closed", "token ended"]


class TokenCreated(Event, frozen=True, kw_only=True):
    token: str
    label: str
    role: str
    scope: str | None
    expires_at: str | None
    reads: str | None


class TokenDeleted(Event, frozen=True, kw_only=True):
    token: str
    label: str


class TokenExpired(Event, frozen=True, kw_only=True):
    token: str


class TunnelRegistered(Event, frozen=True, kw_only=True):
    tunnel: str
    address: str
    session: str


class TunnelTakenOver(Event, frozen=True, kw_only=True):
    """`from_session` lost the address."""

    tunnel: str
    address: str
    from_session: str


class RegistrationRefused(Event, frozen=True, kw_only=True):
    """`code`: `scope`, `limit`, `reserved` and the other words of a refused address."""

    code: str
    reason: str
    session: str


class TunnelClosed(Event, frozen=True, kw_only=True):
    """Closed by the API."""

    tunnel: str
    address: str
    owner: str


class AccessRefused(Event, frozen=True, kw_only=True):
    """A known caller asked for what its role may not."""

    what: str


class Replayed(Event, frozen=True, kw_only=True):
    """A captured request was really sent, `times` times."""

    tunnel: str
    request: str
    times: int
    edited: bool


class CapturesExported(Event, frozen=True, kw_only=True):
    tunnel: str
    count: int


class CapturesImported(Event, frozen=True, kw_only=True):
    tunnel: str
    count: int


class CapturesDeleted(Event, frozen=True, kw_only=True):
    tunnel: str
    count: int


Note: TypeAlias = Callable[[Event], None]
"""Where whoever does something tells it."""


def unheard(event: Event) -> None:
    """For hubs without an audit log."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks for something, and from where."""

    caller: Caller
    peer: Peer

    @property
    def who(self) -> Who:
        return who_is(self.caller)


def who_is(caller: Caller) -> Who:
    return Who(caller.owner, caller.role.value, caller.token_id, caller.token_label)


class Line(msgspec.Struct, frozen=True):
    """One line of the file, and one entry of the API."""

    id: str
    at: str
    details: msgspec.Raw


class Audit:
    """`lines` is the file; None: the database only."""

    def __init__(
        self, store: AuditLog, lines: LineFile | None = None, *, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._store = store
        self._lines = lines
        self._now = now

    def note(self, event: Event) -> None:
        at = self._now()
        row_id = str(uuid.uuid4())
        details = msgspec.json.encode(_escaped(event))
        who = event.who
        self._store.append(
            AuditRow(
                id=row_id,
                at=at,
                event=_snake(type(event).__name__),
                owner=None if who is None else who.owner,
                token_id=None if who is None else who.token_id,
                details=details.decode(),
            )
        )
        if self._lines is not None:
            stamp = f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z"
            self._lines.write(b'{"at":"%b","id":"%b",%b\n' % (stamp.encode(), row_id.encode(), details[1:]))

    async def page(self, before: int | None, event: str | None, limit: int) -> list[AuditRow]:
        """Newest first. Raises StoreError."""
        return await self._store.page(before, event, limit)


def _escaped(event: Event) -> Event:
    """Its texts cut and made fit to be shown."""
    texts = {
        name: escape(value)
        for name in event.__struct_fields__
        if isinstance(value := getattr(event, name), str) and (len(value) > 100 or not value.isprintable())
    }
    return msgspec.structs.replace(event, **texts) if texts else event


EVENTS: tuple[str, ...] = tuple(sorted(_snake(kind.__name__) for kind in Event.__subclasses__()))
"""The words by which the API filters."""
