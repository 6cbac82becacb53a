"""Captures in SQLite: written in batches, read newest first, pruned in small steps.

Order is `seq`, never the clock. A batch is one statement for many rows, so that the interpreter's lock is let go
of once and not for each row. Writing twice what is there already changes nothing. Everything raises StoreError.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from rustunnel_py.model.capture import Capture, Headers, Kind, Message
from rustunnel_py.model.tunnel import Peer
from rustunnel_py.store.instants import from_micros, to_micros

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from rustunnel_py.store.database import Database, Row, Transaction

# Of 15 values each: SQLite takes 32 766, and parsing grows with them. The connection keeps each statement, and each
# statement the values of its last use: so there are three, and only that for a single row ever has large values.
ROWS_A_STATEMENT = (64, 8, 1)
JOINED_BYTES_MAX = 8192  # of a row that shares its statement
ROWS_A_TRANSACTION = 512  # the disk has a turn in between, and so have the others
ROW_OVERHEAD = 200  # bytes that a row costs besides its blobs, with its places in the indexes
PRUNED_AT_ONCE = 500  # rows a step
SEARCHED_BYTES_MAX = 64 * 1024 * 1024  # what one search reads of bodies before it gives a cursor back
LOOKED_AT_A_STEP = 1000  # rows; then it is asked whether that is enough

_COLUMNS = (
    "seq, tunnel, id, size, at, status, method, path, facts, request_headers, response_headers, request_body,"
    " response_body, messages, pinned"
)
_WIDTH = 15
_ROW = f"({', '.join('?' * _WIDTH)})"
_SIZE = 3  # its place in a row


class _Facts(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """The `facts` of a row; new ones come at the end, with a default."""

    connection_id: str
    ip: str
    port: int
    scheme: str
    minor: int
    reason: str
    request_bytes: int
    response_bytes: int
    flags: int
    queue_ms: float | None
    agent_ms: float | None
    first_byte_ms: float | None
    duration_ms: float
    hop: str | None = None
    code: str | None = None
    kind: int = 0
    messages_forth: int = 0
    messages_back: int = 0
    origin: str | None = None
    request_trailers: Headers = ()
    response_trailers: Headers = ()


class _MessageFacts(msgspec.Struct, array_like=True):
    forth: bool
    kind: str
    size: int
    at_ms: float
    content: bytes
    compressed: bool


_REQUEST_CLIPPED, _RESPONSE_CLIPPED, _REQUEST_WITHHELD, _RESPONSE_WITHHELD, _UNWATCHED, _IMPORTED = (
    1 << n for n in range(6)
)

_encode = msgspec.msgpack.Encoder().encode
_decode_facts = msgspec.msgpack.Decoder(_Facts).decode
_decode_headers = msgspec.msgpack.Decoder(tuple[tuple[bytes, bytes], ...]).decode
_decode_messages = msgspec.msgpack.Decoder(list[_MessageFacts]).decode


@dataclass(frozen=True, slots=True)
class Filter:
    """What a search is for; everything that is set must hold. Texts are found without regard to ASCII case.

    `header` is a part of a name, or `name: part of the value`, of the request or the reply; `body` a part of a body or
    a message. `statuses` is inclusive; `since` and `until` are about the moment of capture, `until` exclusive.
    """

    method: str | None = None
    statuses: tuple[int, int] | None = None
    path: str | None = None
    header: str | None = None
    body: bytes | None = None
    since: datetime | None = None
    until: datetime | None = None
    pinned: bool | None = None

    def fits(self, capture: Capture) -> bool:
        """The same question for one in memory."""
        if self.method is not None and capture.method.upper() != self.method.upper():
            return False
        if self.statuses is not None and not self.statuses[0] <= capture.status <= self.statuses[1]:
            return False
        if self.path is not None and self.path.lower() not in capture.path.lower():
            return False
        if self.since is not None and capture.captured_at < self.since:
            return False
        if self.until is not None and capture.captured_at >= self.until:
            return False
        if self.pinned is not None and capture.pinned is not self.pinned:
            return False
        return self.fits_headers(capture) and (self.body is None or _has_text(capture, self.body.lower()))

    def fits_headers(self, capture: Capture) -> bool:
        if self.header is None:
            return True
        name, colon, value = self.header.lower().encode("latin-1", "replace").partition(b":")
        name, value = name.strip(), value.strip()
        return any(
            (name == key.lower() if colon else name in key.lower()) and value in content.lower()
            for headers in (capture.request_headers, capture.response_headers)
            for key, content in headers
        )


def _has_text(capture: Capture, text: bytes) -> bool:
    if text in capture.request_body.lower() or text in capture.response_body.lower():
        return True
    return any(text in message.content.lower() for message in capture.messages)


@dataclass(frozen=True, slots=True)
class Found:
    """`cursor` is where to go on, None at the end."""

    captures: list[Capture]
    cursor: int | None


@dataclass(slots=True)
class Share:
    """What one tunnel has in the store."""

    rows: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Retention:
    """What may stay; 0 is no bound. Pinned captures count, and stay."""

    seconds: float
    rows_per_tunnel: int
    bytes_per_tunnel: int
    rows: int
    bytes: int


class Captures:
    """`shares`, `owners` (both by tunnel id) and `last_seq` are there after `load`; what is done here keeps them up."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._keys: dict[str, int] = {}  # tunnel id → what rows say for it
        self._ids: dict[int, str] = {}
        self.owners: dict[str, str] = {}
        self.shares: dict[str, Share] = {}
        self.last_seq = 0

    async def load(self) -> None:
        """Count what is there, and forget the tunnels that have nothing; again after something went wrong."""

        async def work(transaction: Transaction) -> tuple[list[Row], list[Row], Row | None]:
            await transaction.execute(
                "DELETE FROM captured_tunnels WHERE NOT EXISTS (SELECT 1 FROM captures WHERE tunnel = key)"
            )
            tunnels = await transaction.fetch_all("SELECT key, id, owner FROM captured_tunnels")
            counted = await transaction.fetch_all("SELECT tunnel, count(*), sum(size) FROM captures GROUP BY tunnel")
            return tunnels, counted, await transaction.fetch_one("SELECT max(seq) FROM captures")

        tunnels, counted, last = await self._database.write(work)
        self._keys = {tunnel_id: key for key, tunnel_id, _ in tunnels}
        self._ids = {key: tunnel_id for key, tunnel_id, _ in tunnels}
        self.owners = {tunnel_id: owner for _, tunnel_id, owner in tunnels}
        self.shares = {self._ids[key]: Share(rows, size) for key, rows, size in counted}
        self.last_seq = max(self.last_seq, (last[0] if last is not None else None) or 0)

    # writing

    async def write(self, captures: Sequence[Capture], owners: dict[str, str]) -> None:
        """All of them, in one transaction. `owners` by tunnel id."""
        rows = sorted((_row(capture) for capture in captures), key=lambda row: row[0])
        sizes: dict[int, int] = {row[0]: row[3] for row in rows}
        unknown = {tunnel_id: owner for tunnel_id, owner in owners.items() if tunnel_id not in self._keys}
        keys = dict(self._keys)

        async def work(transaction: Transaction) -> None:
            for tunnel_id, owner in unknown.items():
                await transaction.execute(
                    "INSERT OR IGNORE INTO captured_tunnels (id, owner) VALUES (?, ?)", (tunnel_id, owner)
                )
                known = await transaction.fetch_one("SELECT key FROM captured_tunnels WHERE id = ?", (tunnel_id,))
                keys[tunnel_id] = known[0] if known is not None else 0
            for row in rows:
                row[1] = keys[row[1]]
            await _insert(transaction, rows)

        await self._database.write(work)
        # All of them: pruning may have emptied one meanwhile, and forgotten it.
        self._keys |= {tunnel_id: keys[tunnel_id] for tunnel_id in owners}
        self._ids |= {keys[tunnel_id]: tunnel_id for tunnel_id in owners}
        self.owners |= owners
        for capture in captures:
            share = self.shares.setdefault(capture.tunnel_id, Share())
            share.rows += 1
            share.bytes += sizes[capture.seq]
        self.last_seq = max(self.last_seq, max((capture.seq for capture in captures), default=0))

    async def pin(self, tunnel_id: str, capture_id: str, pinned: bool) -> bool:
        """False: it is not there."""

        async def work(transaction: Transaction) -> int:
            return await transaction.execute(
                f"UPDATE captures SET pinned = ? WHERE {_ONE}", (int(pinned), *self._one(tunnel_id, capture_id))
            )

        return await self._database.write(work) > 0

    async def pinned(self, tunnel_id: str) -> Share:
        """How many of a tunnel's captures are pinned."""

        async def work(transaction: Transaction) -> Row | None:
            return await transaction.fetch_one(
                "SELECT count(*), coalesce(sum(size), 0) FROM captures WHERE pinned = 1 AND tunnel = ?",
                (self._keys.get(tunnel_id, 0),),
            )

        row = await self._database.read(work)
        return Share() if row is None else Share(row[0], row[1])

    async def delete(self, tunnel_id: str, capture_id: str) -> bool:
        """False: it is not there."""

        async def work(transaction: Transaction) -> int:
            row = await transaction.fetch_one(
                f"SELECT size FROM captures WHERE {_ONE}", self._one(tunnel_id, capture_id)
            )
            if row is None:
                return -1
            await transaction.execute(f"DELETE FROM captures WHERE {_ONE}", self._one(tunnel_id, capture_id))
            return int(row[0])

        size = await self._database.write(work)
        if size < 0:
            return False
        self._forget({tunnel_id: Share(1, size)})
        return True

    # reading

    async def get(self, tunnel_id: str, capture_id: str) -> Capture | None:
        async def work(transaction: Transaction) -> Row | None:
            return await transaction.fetch_one(
                f"SELECT {_COLUMNS} FROM captures WHERE {_ONE}", self._one(tunnel_id, capture_id)
            )

        row = await self._database.read(work)
        return None if row is None else _capture(row, tunnel_id)

    async def tunnel_of(self, capture_id: str) -> str | None:
        """The id of the tunnel that has it."""

        async def work(transaction: Transaction) -> Row | None:
            return await transaction.fetch_one(
                "SELECT tunnel FROM captures WHERE id = ?", (uuid.UUID(capture_id).bytes,)
            )

        row = await self._database.read(work)
        return None if row is None else self._ids.get(row[0])

    async def search(self, tunnel_id: str, wanted: Filter, before: int | None, limit: int) -> Found:
        """At most `limit` with a `seq` below `before`, newest first. Stops early once SEARCHED_BYTES_MAX were read."""
        key = self._keys.get(tunnel_id)
        if key is None:
            return Found([], None)
        conditions, values = _conditions(wanted)
        deep, deep_values = _deep_conditions(wanted)

        async def work(transaction: Transaction) -> tuple[list[Row], int | None]:
            at = before if before is not None else 2**62
            if not deep:
                rows = await transaction.fetch_all(
                    f"{_FROM} WHERE tunnel = ? AND seq < ?{conditions} ORDER BY seq DESC LIMIT ?",
                    (key, at, *values, limit + 1),
                )
                return rows[:limit], rows[limit - 1][0] if len(rows) > limit else None
            return await _dig(transaction, key, at, limit, conditions + deep, (*values, *deep_values))

        rows, cursor = await self._database.read(work)
        captures = [_capture(row, tunnel_id) for row in rows]
        return Found([capture for capture in captures if wanted.fits_headers(capture)], cursor)

    # pruning

    async def prune(self, retention: Retention, now: datetime) -> int:
        """One small step towards `retention`; how many rows it took. Pinned ones stay."""
        for tunnel_id, share in self.shares.items():
            surplus = share.rows - retention.rows_per_tunnel if retention.rows_per_tunnel else 0
            if surplus <= 0 and retention.bytes_per_tunnel and share.bytes > retention.bytes_per_tunnel:
                surplus = _rows_for(share, share.bytes - retention.bytes_per_tunnel)
            if surplus > 0:
                pruned = await self._prune_oldest(min(surplus, PRUNED_AT_ONCE), tunnel_id)
                if pruned:
                    return pruned
        rows = sum(share.rows for share in self.shares.values())
        size = sum(share.bytes for share in self.shares.values())
        surplus = rows - retention.rows if retention.rows else 0
        if surplus <= 0 and retention.bytes and size > retention.bytes:
            surplus = _rows_for(Share(rows, size), size - retention.bytes)
        if surplus > 0:
            pruned = await self._prune_oldest(min(surplus, PRUNED_AT_ONCE), None)
            if pruned:
                return pruned
        if not retention.seconds or not rows:
            return 0
        oldest = to_micros(now) - int(retention.seconds * 1_000_000)
        return await self._prune_oldest(PRUNED_AT_ONCE, None, oldest)

    async def _prune_oldest(self, count: int, tunnel_id: str | None, before: int | None = None) -> int:
        async def work(transaction: Transaction) -> list[Row]:
            of_tunnel = "" if tunnel_id is None else " AND tunnel = ?"
            values = () if tunnel_id is None else (self._keys.get(tunnel_id, 0),)
            # `at` is not in the index: it is only asked for where it matters.
            at = "0" if before is None else "at"
            rows = await transaction.fetch_all(
                f"SELECT seq, size, tunnel, {at} FROM captures WHERE pinned = 0{of_tunnel} ORDER BY seq LIMIT ?",
                (*values, count),
            )
            if before is not None:
                rows = [row for row in rows if row[3] < before]
            if rows:
                marks = ", ".join("?" * len(rows))
                await transaction.execute(f"DELETE FROM captures WHERE seq IN ({marks})", tuple(row[0] for row in rows))
            return rows

        rows = await self._database.write(work)
        gone: dict[str, Share] = {}
        for _, size, of, _ in rows:
            share = gone.setdefault(self._ids.get(of, ""), Share())
            share.rows += 1
            share.bytes += size
        self._forget(gone)
        return len(rows)

    def _one(self, tunnel_id: str, capture_id: str) -> tuple[object, ...]:
        return uuid.UUID(capture_id).bytes, self._keys.get(tunnel_id, 0)

    def _forget(self, gone: dict[str, Share]) -> None:
        for tunnel_id, share in gone.items():
            known = self.shares.get(tunnel_id)
            if known is None:
                continue
            known.rows -= share.rows
            known.bytes -= share.bytes
            if known.rows <= 0:
                del self.shares[tunnel_id]
                self.owners.pop(tunnel_id, None)
                self._ids.pop(self._keys.pop(tunnel_id, 0), None)


_ONE = "id = ? AND tunnel = ?"
_FROM = f"SELECT {_COLUMNS} FROM captures INDEXED BY captures_of_tunnel"


def _rows_for(share: Share, surplus: int) -> int:
    """About how many of the oldest rows have so many bytes; at least one."""
    return max(1, surplus * share.rows // max(1, share.bytes))


async def _insert(transaction: Transaction, rows: list[list[Any]]) -> None:
    for some in _statements(rows):
        await transaction.execute(
            f"INSERT OR IGNORE INTO captures ({_COLUMNS}) VALUES {', '.join([_ROW] * len(some))}",
            [value for row in some for value in row],
        )


def _statements(rows: list[list[Any]]) -> Iterator[list[list[Any]]]:
    small = [row for row in rows if row[_SIZE] <= JOINED_BYTES_MAX]
    at = 0
    for count in ROWS_A_STATEMENT:
        while len(small) - at >= count:
            yield small[at : at + count]
            at += count
    for row in rows:
        if row[_SIZE] > JOINED_BYTES_MAX:
            yield [row]


def _conditions(wanted: Filter) -> tuple[str, tuple[object, ...]]:
    """What the small columns say."""
    pairs: list[tuple[str, object]] = []
    if wanted.method is not None:
        pairs.append(("upper(method) = ?", wanted.method.upper()))
    if wanted.statuses is not None:
        pairs += ("status >= ?", wanted.statuses[0]), ("status <= ?", wanted.statuses[1])
    if wanted.path is not None:
        pairs.append(("instr(lower(path), ?)", wanted.path.lower()))
    if wanted.since is not None:
        pairs.append(("at >= ?", to_micros(wanted.since)))
    if wanted.until is not None:
        pairs.append(("at < ?", to_micros(wanted.until)))
    if wanted.pinned is not None:
        pairs.append(("pinned = ?", int(wanted.pinned)))
    return "".join(f" AND {condition}" for condition, _ in pairs), tuple(value for _, value in pairs)


def _deep_conditions(wanted: Filter) -> tuple[str, tuple[object, ...]]:
    """What must be read for. Of a header this is only a first sieve (`fits_headers` is exact)."""
    conditions, values = "", list[object]()
    if wanted.header is not None:
        for part in wanted.header.lower().encode("latin-1", "replace").split(b":", 1):
            if part.strip():
                conditions += " AND (instr(lower(request_headers), ?1) OR instr(lower(response_headers), ?1))"
                conditions = conditions.replace("?1", "CAST(? AS TEXT)")
                values += [part.strip()] * 2
    if wanted.body is not None:
        columns = ("request_body", "response_body", "messages")
        conditions += f" AND ({' OR '.join(f'instr(lower({column}), CAST(? AS TEXT))' for column in columns)})"
        values += [wanted.body.lower()] * len(columns)
    return conditions, tuple(values)


async def _dig(
    transaction: Transaction, key: int, before: int, limit: int, conditions: str, values: tuple[object, ...]
) -> tuple[list[Row], int | None]:
    """Newest first, a step at a time, until there is enough or enough was read."""
    found: list[Row] = []
    read = 0
    while read < SEARCHED_BYTES_MAX:
        step = await transaction.fetch_all(
            "SELECT seq, size FROM captures WHERE tunnel = ? AND seq < ? ORDER BY seq DESC LIMIT ?",
            (key, before, LOOKED_AT_A_STEP),
        )
        if not step:
            return found, None
        lowest = step[-1][0]
        for seq, size in step:
            read += size
            if read >= SEARCHED_BYTES_MAX:
                lowest = seq
                break
        missing = limit - len(found)
        found += await transaction.fetch_all(
            f"{_FROM} WHERE tunnel = ? AND seq >= ? AND seq < ?{conditions} ORDER BY seq DESC LIMIT ?",
            (key, lowest, before, *values, missing),
        )
        if len(found) == limit:
            return found, found[-1][0]
        before = lowest
    return found, before


def _row(capture: Capture) -> list[Any]:
    """A capture as a row is written; the tunnel's id where its key will be."""
    flags = (
        capture.request_clipped * _REQUEST_CLIPPED
        | capture.response_clipped * _RESPONSE_CLIPPED
        | capture.request_withheld * _REQUEST_WITHHELD
        | capture.response_withheld * _RESPONSE_WITHHELD
        | capture.messages_unwatched * _UNWATCHED
        | capture.imported * _IMPORTED
    )
    facts = _Facts(
        capture.connection_id,
        capture.visitor.ip,
        capture.visitor.port,
        capture.scheme,
        capture.minor,
        capture.reason,
        capture.request_bytes,
        capture.response_bytes,
        flags,
        capture.queue_ms,
        capture.agent_ms,
        capture.first_byte_ms,
        capture.duration_ms,
        capture.hop,
        capture.code,
        int(capture.kind),
        capture.messages_forth,
        capture.messages_back,
        capture.origin,
        capture.request_trailers,
        capture.response_trailers,
    )
    messages = None
    if capture.messages:
        messages = _encode([(m.forth, m.kind, m.size, m.at_ms, m.content, m.compressed) for m in capture.messages])
    packed, sent, got = _encode(facts), _encode(capture.request_headers), _encode(capture.response_headers)
    size = ROW_OVERHEAD + len(capture.path) + len(packed) + len(sent) + len(got)
    size += len(capture.request_body) + len(capture.response_body) + (0 if messages is None else len(messages))
    return [
        capture.seq,
        capture.tunnel_id,
        bytes.fromhex(capture.id.replace("-", "")),
        size,
        to_micros(capture.captured_at),
        capture.status,
        capture.method,
        capture.path,
        packed,
        sent,
        got,
        capture.request_body,
        capture.response_body,
        messages,
        int(capture.pinned),
    ]


def _capture(row: Row, tunnel_id: str) -> Capture:
    (seq, _, capture_id, _, at, status, method, path, packed, *blobs, messages, pinned) = row
    request_headers, response_headers, request_body, response_body = blobs
    facts = _decode_facts(packed)
    return Capture(
        seq=seq,
        id=str(uuid.UUID(bytes=capture_id)),
        tunnel_id=tunnel_id,
        connection_id=facts.connection_id,
        captured_at=from_micros(at),
        visitor=Peer(facts.ip, facts.port),
        scheme=facts.scheme,
        method=method,
        path=path,
        minor=facts.minor,
        request_headers=_decode_headers(request_headers),
        request_trailers=facts.request_trailers,
        request_body=request_body,
        request_bytes=facts.request_bytes,
        request_withheld=bool(facts.flags & _REQUEST_WITHHELD),
        status=status,
        reason=facts.reason,
        response_headers=_decode_headers(response_headers),
        response_trailers=facts.response_trailers,
        response_body=response_body,
        response_bytes=facts.response_bytes,
        response_withheld=bool(facts.flags & _RESPONSE_WITHHELD),
        request_clipped=bool(facts.flags & _REQUEST_CLIPPED),
        response_clipped=bool(facts.flags & _RESPONSE_CLIPPED),
        queue_ms=facts.queue_ms,
        agent_ms=facts.agent_ms,
        first_byte_ms=facts.first_byte_ms,
        duration_ms=facts.duration_ms,
        hop=facts.hop,
        code=facts.code,
        kind=Kind(facts.kind),
        messages=() if messages is None else tuple(_message(message) for message in _decode_messages(messages)),
        messages_forth=facts.messages_forth,
        messages_back=facts.messages_back,
        messages_unwatched=bool(facts.flags & _UNWATCHED),
        origin=facts.origin,
        imported=bool(facts.flags & _IMPORTED),
        pinned=bool(pinned),
    )


def _message(facts: _MessageFacts) -> Message:
    return Message(facts.forth, facts.kind, facts.size, facts.at_ms, facts.content, facts.compressed)
