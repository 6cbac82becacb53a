"""What the rs-tunnel dialect reads and writes: exactly these keys (its clients refuse any other)."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta
from quart import Response, request

from rustunnel_py.errors import Denied
from rustunnel_py.model.lease import HEARTBEAT_SECONDS, LEASE_SECONDS
from rustunnel_py.model.telemetry import BLANKS, METHOD_MAX, PATH_MAX, REGION_MAX, Metrics, RequestEvent
from rustunnel_py.wire import agent_token, strict_json
from rustunnel_py.wire.misfit import Misfit, fit, whole_numbers

if TYPE_CHECKING:
    from rustunnel_py.hub.leases import NewLease
    from rustunnel_py.hub.logins import NewPair
    from rustunnel_py.model.lease import Listed, Term
    from rustunnel_py.model.telemetry import LoggedRequest, MetricsPoint, Snapshot

BODY_MAX = 64 * 1024
INGEST_MAX = 1024 * 1024  # 200 events whose paths are all escapes have 700 KiB
EVENTS_MAX = 200
REQUESTS_DEFAULT = 200
REQUESTS_MAX = 500
COUNT_MAX = 2**53 - 1  # what JavaScript counts to
EPOCH_MS_MAX = 253_402_300_799_999  # the last millisecond of the year 9999

T = TypeVar("T")

Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
Milliseconds = Annotated[float, Meta(ge=0)]
# What the CLI itself takes for an address, in its own profile too: a letter, digit, _, + or - before the @, no two dots
# in a row, a dotted domain that ends in letters.
Email = Annotated[
    str,
    Meta(
        description="An address such as me@example.com.",
        max_length=254,
        pattern=r"\A(?!\.)(?!.*\.\.)[A-Za-z0-9_'+.-]*[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9-]*\.)+[A-Za-z]{2,}\Z",
    ),
]
# Where older clients wait for the code: on loopback, with a port.
_PORT = r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
Callback = Annotated[
    str,
    Meta(
        description="A URL such as http://127.0.0.1:5000/path: on loopback, with a port.",
        max_length=512,
        pattern=rf"\A" rf"http://(127\.0\.0\.1|localhost|\[::1\]):{_PORT}([/?][!$-~]*)?" r"\Z",
    ),
]
Hidden = Annotated[str, Meta(min_length=10, max_length=512)]


class Invalid(Denied):
    """Input that does not have the shape; `field` is its path, empty where it is all of it."""

    def __init__(self, field: str, problem: str, status: int = 400) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem
        self.status = status


# what is read


class NewTunnelWanted(msgspec.Struct, rename="camel"):
    port: Annotated[int, Meta(ge=1, le=65535)]
    requested_slug: str = ""


class MetricsSent(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    ttl: Count
    opn: Count
    rt1_ms: Milliseconds | None
    rt5_ms: Milliseconds | None
    p50_ms: Milliseconds | None
    p90_ms: Milliseconds | None
    requests: Count
    errors: Count
    bytes: Count


class EventSent(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    started_at_epoch_ms: Annotated[int, Meta(ge=0, le=EPOCH_MS_MAX)]
    method: Annotated[str, Meta(min_length=1, max_length=METHOD_MAX)]
    path: Annotated[str, Meta(min_length=1, max_length=PATH_MAX)]
    status_code: Annotated[int, Meta(ge=100, le=599)]
    duration_ms: Milliseconds
    response_bytes: Count | None
    error: bool
    protocol: Literal["http", "ws"]


class TelemetrySent(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    metrics: MetricsSent
    requests: Annotated[list[EventSent], Meta(max_length=EVENTS_MAX)]
    region: Annotated[str, Meta(max_length=REGION_MAX)] | None = None


class LoginWanted(msgspec.Struct, rename="camel"):
    email: Email
    code_challenge: Annotated[str, Meta(min_length=10, max_length=128)]
    cli_callback_url: Callback | None = None


class StatusWanted(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    state: Hidden


class ExchangeWanted(msgspec.Struct, rename="camel"):
    login_code: Hidden
    code_verifier: Annotated[str, Meta(min_length=43, max_length=128)]


class RefreshWanted(msgspec.Struct, rename="camel"):
    refresh_token: Hidden


class LogoutWanted(msgspec.Struct, rename="camel"):
    refresh_token: Annotated[str, Meta(max_length=512)] | msgspec.UnsetType = msgspec.UNSET


# what is shown


class OkShown(msgspec.Struct):
    ok: bool = True


class LeaseShown(msgspec.Struct, rename="camel"):
    last_heartbeat_at: str
    expires_at: str


class TunnelShown(msgspec.Struct, rename="camel"):
    id: str
    hostname: str
    slug: str
    status: str
    requested_port: int
    created_at: str
    lease: LeaseShown | None
    stopped_at: str | None
    last_error: str | None


class NewTunnelShown(msgspec.Struct, rename="camel"):
    tunnel_id: str
    hostname: str
    cloudflared_token: str
    tunnel_run_token: str
    heartbeat_interval_sec: int
    lease_timeout_sec: int


class HeartbeatShown(msgspec.Struct, rename="camel"):
    ok: bool
    expires_at: str


class MetricsShown(msgspec.Struct, rename="camel"):
    ttl: int
    opn: int
    rt1_ms: float | None
    rt5_ms: float | None
    p50_ms: float | None
    p90_ms: float | None
    requests: int
    errors: int
    bytes: int


class SnapshotShown(msgspec.Struct, rename="camel"):
    tunnel_id: str
    received_at: str
    region: str | None
    metrics: MetricsShown


class PointShown(msgspec.Struct, rename="camel"):
    captured_at: str
    ttl: int
    opn: int
    rt1_ms: float | None
    p90_ms: float | None
    requests: int
    errors: int
    bytes: int


class RequestShown(msgspec.Struct, rename="camel"):
    ingested_at: str
    started_at: str
    method: str
    path: str
    status_code: int
    duration_ms: int
    response_bytes: int | None
    error: bool
    protocol: Literal["http", "ws"]


class LoginShown(msgspec.Struct, rename="camel"):
    authorize_url: str
    state: str


class StatusShown(msgspec.Struct, rename="camel", omit_defaults=True):
    status: Literal["pending", "authorized", "expired"]
    login_code: str | None = None


class ProfileShown(msgspec.Struct, rename="camel"):
    email: str
    slack_user_id: str = ""
    slack_team_id: str = ""


class PairShown(msgspec.Struct, rename="camel"):
    access_token: str
    refresh_token: str
    expires_in_sec: int
    profile: ProfileShown


class ErrorShown(msgspec.Struct, omit_defaults=True):
    code: str
    message: str
    details: object = None


class FieldErrorsShown(msgspec.Struct, rename="camel"):
    form_errors: list[str]
    field_errors: dict[str, list[str]]


def answer(shown: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(shown), status=status, content_type="application/json; charset=utf-8")


# parse


_JSON_TYPE = re.compile(r"application/json(\s*;\s*charset=\"?utf-?8\"?)?\s*", re.IGNORECASE)


async def parse_body(shape: type[T], most: int = BODY_MAX) -> T:
    """The JSON body. Raises Invalid."""
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise Invalid("", "The body must not be compressed.", 415)
    body = await request.get_data(as_text=False)
    declared = request.headers.getlist("Content-Type")
    if len(declared) != 1 or not _JSON_TYPE.fullmatch(declared[0]):
        raise Invalid("", "The body must be application/json.", 415)
    try:
        return fit(whole_numbers(strict_json.loads(body, most)), shape)
    except strict_json.JsonRefused as error:
        raise Invalid("", f"The body is not acceptable JSON: {error}.") from None
    except Misfit as misfit:
        raise Invalid(misfit.key, misfit.problem if misfit.key else f"the body: {misfit.problem}") from None


async def parse_optional_body(shape: type[T]) -> T | None:
    """The same where there may be none at all, whatever the headers declare."""
    body = await request.get_data(as_text=False)
    return await parse_body(shape) if body.strip() else None


def parse_flag(name: str) -> bool:
    """`true` and `1` mean yes, everything else no."""
    return request.args.get(name) in ("true", "1")


_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


def parse_limit() -> int:
    """How many entries of the request log, as JavaScript's parseInt reads it; what is no number means the default."""
    found = _WHOLE.match(request.args.get("limit", "").lstrip(BLANKS))
    return REQUESTS_DEFAULT if found is None else min(max(int(found[0]), 1), REQUESTS_MAX)


def parse_instant(name: str) -> datetime | None:
    """A date in a query, in the forms that JavaScript reads; None where there is none. Raises Invalid."""
    text = request.args.get(name)
    if not text:
        return None
    found = read_date(text[:100])
    if found is None:
        raise Invalid(name, "a date such as 2026-03-05T10:30:00.000Z")
    return found


_ISO = re.compile(
    r"(?P<year>\d{4}|[+-]\d{6})(?:-(?P<month>\d\d)(?:-(?P<day>\d\d))?)?"
    r"(?:[T ](?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d+))?)?"
    r"(?P<zone>Z|[+-]\d\d:?\d\d)?)?",
    re.ASCII | re.IGNORECASE,
)
_CLOCK = (
    r"(?:,? (?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d+))?)?"
    r"(?: ?(?P<zone>Z|(?:GMT|UTC)?[+-]\d\d:?\d\d|GMT|UTC))?)?(?: \(.*\))?"
)
_SPOKEN = [
    re.compile(form + _CLOCK, re.ASCII | re.IGNORECASE)
    for form in (
        r"(?P<year>\d{4})[/-](?P<month>\d\d?)[/-](?P<day>\d\d?)",
        r"(?P<month>\d\d?)[/-](?P<day>\d\d?)[/-](?P<year>\d{4})",
        r"(?:[A-Z]{3,9},? )?(?P<month>[A-Z]{3,9}) (?P<day>\d\d?),? (?P<year>\d{4})",
        r"(?:[A-Z]{3,9},? )?(?P<day>\d\d?)[ -](?P<month>[A-Z]{3,9})[ -](?P<year>\d{4})",
    )
]
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def read_date(text: str) -> datetime | None:
    """ISO 8601 as ECMAScript has it, and the forms that are common beside it: `2026/3/5`, `3/5/2026`, `March 5, 2026
    10:00`, RFC 5322, what Date.prototype.toString writes. Without zone UTC; a day that its month does not have is in
    the next one; years 1 to 9999.
    """
    text = text.strip(BLANKS)
    for form in (_ISO, *_SPOKEN):
        found = form.fullmatch(text)
        if found is not None:
            try:
                return _assembled(found.groupdict())
            except (ValueError, OverflowError):
                return None
    return None


def _assembled(parts: dict[str, str | None]) -> datetime:
    """Raises ValueError, OverflowError."""
    month = parts["month"] or "1"
    number = int(month) if month.isdigit() else _MONTHS.index(month[:3].lower()) + 1
    day, hour, minute, second = (int(parts[name] or least) for name, least in _LEAST)
    clock = (hour, minute, second)
    if not (1 <= day <= 31 and (clock == (24, 0, 0) or (hour < 24 and minute < 60 and second < 60))):
        raise ValueError(parts)
    passed = timedelta(days=day - 1, hours=hour, minutes=minute, seconds=second)
    passed += timedelta(microseconds=int((parts["fraction"] or "")[:6].ljust(6, "0")))
    return datetime(int(parts["year"] or ""), number, 1, tzinfo=UTC) + passed - _offset(parts["zone"] or "")


_LEAST = (("day", 1), ("hour", 0), ("minute", 0), ("second", 0))


def _offset(zone: str) -> timedelta:
    """How far a zone is ahead of UTC."""
    digits = re.sub("[^0-9]", "", zone)
    if not digits:
        return timedelta()
    ahead = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return -ahead if "-" in zone else ahead


def parse_metrics(sent: MetricsSent) -> Metrics:
    return Metrics(
        sent.ttl,
        sent.opn,
        sent.rt1_ms,
        sent.rt5_ms,
        sent.p50_ms,
        sent.p90_ms,
        sent.requests,
        sent.errors,
        sent.bytes,
    )


def parse_event(sent: EventSent) -> RequestEvent:
    return RequestEvent(
        started_at=datetime.fromtimestamp(sent.started_at_epoch_ms // 1000, UTC).replace(
            microsecond=sent.started_at_epoch_ms % 1000 * 1000
        ),
        method=sent.method,
        path=sent.path,
        status=sent.status_code,
        duration_ms=sent.duration_ms,
        response_bytes=sent.response_bytes,
        error=sent.error,
        is_websocket=sent.protocol == "ws",
    )


# show


def show_instant(instant: datetime) -> str:
    """ISO 8601, milliseconds, UTC, with Z."""
    return f"{instant:%Y-%m-%dT%H:%M:%S}.{instant.microsecond // 1000:03d}Z"


def show_tunnel(listed: Listed) -> TunnelShown:
    return TunnelShown(
        id=listed.id,
        hostname=listed.hostname,
        slug=listed.slug,
        status=listed.status.value,
        requested_port=listed.requested_port,
        created_at=show_instant(listed.created_at),
        lease=None if listed.lease is None else show_term(listed.lease),
        stopped_at=None if listed.stopped_at is None else show_instant(listed.stopped_at),
        last_error=listed.last_error,
    )


def show_term(term: Term) -> LeaseShown:
    return LeaseShown(show_instant(term.heartbeat_at), show_instant(term.expires_at))


def show_new_tunnel(made: NewLease, server: str, pin: str) -> NewTunnelShown:
    """`server` and `pin`: where agents connect, and what they know it by."""
    lease = made.lease
    token = agent_token.AgentToken(
        server=server,
        pin=pin,
        tunnel=lease.id,
        name=lease.slug,
        port=lease.requested_port,
        lease=LEASE_SECONDS,
        secret=made.agent_secret.reveal(),
    )
    return NewTunnelShown(
        tunnel_id=lease.id,
        hostname=lease.hostname,
        cloudflared_token=agent_token.encode(token),
        tunnel_run_token=made.run_secret.reveal(),
        heartbeat_interval_sec=HEARTBEAT_SECONDS,
        lease_timeout_sec=LEASE_SECONDS,
    )


def show_snapshot(snapshot: Snapshot) -> SnapshotShown:
    metrics = snapshot.metrics
    return SnapshotShown(
        snapshot.tunnel_id,
        show_instant(snapshot.received_at),
        snapshot.region,
        MetricsShown(
            metrics.ttl,
            metrics.opn,
            metrics.rt1_ms,
            metrics.rt5_ms,
            metrics.p50_ms,
            metrics.p90_ms,
            metrics.requests,
            metrics.errors,
            metrics.bytes,
        ),
    )


def show_point(point: MetricsPoint) -> PointShown:
    return PointShown(
        show_instant(point.captured_at),
        point.ttl,
        point.opn,
        point.rt1_ms,
        point.p90_ms,
        point.requests,
        point.errors,
        point.bytes,
    )


def show_request(logged: LoggedRequest) -> RequestShown:
    event = logged.event
    return RequestShown(
        ingested_at=show_instant(logged.ingested_at),
        started_at=show_instant(event.started_at),
        method=event.method,
        path=event.path,
        status_code=event.status,
        duration_ms=math.floor(min(event.duration_ms, float(COUNT_MAX)) + 0.5),  # halves up
        response_bytes=event.response_bytes,
        error=event.error,
        protocol="ws" if event.is_websocket else "http",
    )


def show_pair(pair: NewPair) -> PairShown:
    return PairShown(pair.access.reveal(), pair.refresh.reveal(), pair.seconds, ProfileShown(pair.email))
