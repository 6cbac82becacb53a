"""yamux as a machine: bytes of the trunk in, streams and sink calls out (wire spec section 4, reliability 3.3).

A session is the sink of its trunk (a Pipe: one TLS connection, or the payloads of WebSocket messages) and writes
to it with `send`, which takes everything. Each stream is a Pipe of its own. How it predicts:

* Frames are parsed as they stream: only the 12 bytes of a header are ever put together; a payload goes to the
  stream's sink piece by piece, as views of what the trunk gave. So receiving needs no buffer and waits for nobody.
* A stream sends while the peer's window and the trunk have room. What is left is copied into the stream's `pending`;
  streams with something to send or to say wait in one queue, which is served a frame each in turn when the trunk
  says `room` or the peer widens a window. `room` is said to a sink when its pending bytes have left.
* Small frames (pongs, window updates, FIN, RST, SYN) never wait, so two peers that both fill their trunks cannot
  lock each other. Pongs are kept to the newest few while the trunk is full.
* A call on a stream never calls a sink; what follows from it (`streams_free`, the end of a drained session) is said
  through `later`. Everything else is said from within `data`, `room`, `eof`, `lost` of the session.
* What breaks the protocol ends the session: go-away, `lost(Reset)` to every stream, then `ended`. What merely hits
  a stream that is gone is dropped and counted, against budgets that `sweep` refills: the machine knows no clock.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from rustunnel_py.errors import Crash, Refused, Reset, YamuxError
from rustunnel_py.wire.sink import SILENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.errors import LinkLost
    from rustunnel_py.wire.sink import Buffer, Later, Pipe, Sink

_Moved: TypeAlias = tuple[int, int, int, int, int]

HEADER = struct.Struct(">BBHII")
HEADER_SIZE = HEADER.size

DATA = 0
WINDOW_UPDATE = 1
PING = 2
GO_AWAY = 3

SYN = 1
ACK = 2
FIN = 4
RST = 8

NORMAL = 0
PROTOCOL_ERROR = 1
INTERNAL_ERROR = 2

INITIAL_WINDOW = 262_144
"""What each side may send on a fresh stream, by the yamux spec."""
MAX_CREDIT = 2**32 - 1
MAX_ID = 2**32 - 1

FRAME_PAYLOAD = 65_536
"""The longest payload we send: long enough that headers cost nothing, short enough that streams alternate and a
ping is not held up. Stock agents take up to 16 MiB."""
JOIN_MAX = 4096
"""Up to here one copy of the payload behind its header is cheaper than a second call into the trunk."""
OPENING_MAX = 1024
"""So much of `first` leaves with the SYN even when the trunk has no room: a connection id and a bit more."""
PONGS_KEPT = 16
"""Pongs due while the trunk has no room; older ones are dropped (a peer that pings faster reads none of them)."""
PINGS_KEPT = 64
"""Pings of ours whose answer is still remembered."""
TINY_CREDIT = 256
"""A window update below this moves nothing; see TINY_A_MINUTE."""

UNKNOWN_A_MINUTE = 1000
"""Frames for streams that never were, or that nothing more may come for. An honest peer sends none."""
TINY_A_MINUTE = 10_000
"""Frames that carry nothing: no payload, no flag, hardly any credit."""
REFUSED_A_MINUTE = 1000
"""SYNs refused by RST: beyond the accept cap, after a go-away, or by a side that accepts nothing."""
RESETS_A_SECOND = 1000
"""Streams that the peer opened and reset itself (after CVE-2023-44487). Resets of streams that we opened are bounded
by our own opening."""
BUSY_GRANTS = 16
"""So often must half a window of a stream be passed on between two sweeps for it to grow: at 256 KiB, 2 MiB a second. A
round trip takes its time even on a quick line, as soon as either side's machine is busy: a window is what hides it."""
LATE_FRAMES = 16
"""Frames without payload that may still be under way to a stream when it ends: window updates, one FIN."""
GAPS_KEPT = 256
"""Skipped ids of the peer that may still be opened: a peer may number streams before it sends their SYNs,
up to its 256 unacknowledged ones."""


class Role(enum.Enum):
    """CLIENT opens odd ids, SERVER even ones. Our server is the yamux client, agents are yamux servers."""

    CLIENT = 1
    SERVER = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound of one session, with its default.

    `window` (bytes) is what the peer may send on a stream unread; above INITIAL_WINDOW the rest is granted with the
    SYN or ACK, and below it cannot go. A stream whose bytes are passed on fast may grow to `grown_window`, as long
    as all streams together have not grown by more than `growth` bytes. `max_streams` and `max_unacknowledged` bound
    what we open (a stock agent stands 512 and 256), `max_accepted` what the peer opens. `half_closed_seconds`: a
    stream that we ended and on which nothing moves for so long is reset (None: never), unless its sink owes credit:
    then it is not the peer that is silent. One that only the peer ended is its sink's to end, which alone knows
    whether what came is still being read. `error_is_final`: a peer that said go-away with code 1 takes no new streams;
    a stock agent complains so and goes on (wire spec section 4).
    """

    window: int = INITIAL_WINDOW
    grown_window: int = INITIAL_WINDOW
    growth: int = 0
    max_streams: int = 400
    max_unacknowledged: int = 256
    frame_max: int = 16 * 1024 * 1024
    max_accepted: int = 512
    half_closed_seconds: float | None = 300.0
    error_is_final: bool = True

    def __post_init__(self) -> None:
        if not INITIAL_WINDOW <= self.window <= MAX_CREDIT:
            raise ValueError(f"a yamux window is {INITIAL_WINDOW} to {MAX_CREDIT} bytes, not {self.window}")


class Group:
    """How many streams there are of those that were opened with it, for who shares a session out."""

    __slots__ = ("open", "unacknowledged")

    def __init__(self) -> None:
        self.open = 0
        self.unacknowledged = 0


class Session:
    """One yamux session over one trunk.

    Counters: `ignored` (frames without effect), `resets` (streams reset by the peer), `refused` (SYNs answered by
    RST), `crashes` (callbacks that raised), `pongs` (answers to our pings), `pings` (answered or coalesced).
    """

    __slots__ = (
        "_accept",
        "_acks",
        "_asked",
        "_blocked",
        "_current",
        "_draining",
        "_ended",
        "_fin",
        "_free_queued",
        "_gaps",
        "_growth_left",
        "_half_closed",
        "_head",
        "_highest",
        "_late_bytes",
        "_late_frames",
        "_later",
        "_left",
        "_limits",
        "_minute",
        "_next_id",
        "_over",
        "_parity",
        "_pongs",
        "_ready",
        "_refused_left",
        "_resets_left",
        "_second",
        "_starved",
        "_streams",
        "_streams_free",
        "_sweeps",
        "_tiny_left",
        "_trunk",
        "_unknown_left",
        "crashes",
        "goes_away",
        "ignored",
        "peer_code",
        "pings",
        "pongs",
        "refused",
        "resets",
        "role",
        "unacknowledged",
    )

    goes_away: bool  # either side said go-away, or ids are used up: no new streams
    peer_code: int | None  # the code of the peer's go-away
    unacknowledged: int

    def __init__(
        self,
        role: Role,
        trunk: Pipe,
        later: Later,
        *,
        accept: Callable[[Stream], None] | None = None,
        ended: Callable[[LinkLost], None] | None = None,
        streams_free: Callable[[], None] | None = None,
        limits: Limits = Limits(),
    ) -> None:
        """`accept` is called with each stream that the peer opens; it must set `stream.sink` before it returns.

        `ended` is called once, after every stream heard `lost`; its owner then closes the trunk, flushing it, since
        a go-away may be in there. A session that the peer told to go away ends when its last stream does.
        An owner who closes the trunk by itself calls `lost`, since the trunk then says nothing.
        `streams_free` is called when, after `can_open` was False, a stream may be opened again.
        """
        self.role = role
        self.goes_away = False
        self.peer_code = None
        self.unacknowledged = 0
        self.ignored = self.resets = self.refused = self.crashes = self.pongs = self.pings = 0
        self._trunk = trunk
        self._later = later
        self._accept = accept
        self._ended = ended
        self._streams_free = streams_free
        self._limits = limits
        self._growth_left = limits.growth
        self._parity = role.value
        self._next_id = 1 if role is Role.CLIENT else 2
        self._streams: dict[int, Stream] = {}
        self._over = False
        self._draining = False
        # receiving
        self._head = bytearray()  # the part of a header that came so far
        self._left = 0  # bytes of the present payload still to come
        self._current: Stream | None = None  # whose payload it is; None: nobody's
        self._fin = False  # the present frame carries a FIN, which counts after its payload
        self._acks: list[Stream] = []  # accepted and not acknowledged yet
        self._highest = 0  # the highest id that the peer opened
        self._gaps: dict[int, None] = {}
        # sending
        self._blocked = False  # the trunk has no room
        self._ready: deque[Stream] = deque()
        self._pongs: deque[int] = deque(maxlen=PONGS_KEPT)
        self._asked: dict[int, None] = {}
        self._starved = False  # can_open said no since streams_free was last called
        self._free_queued = False
        # what sweep looks after
        self._half_closed: dict[Stream, tuple[_Moved, float | None]] = {}
        self._sweeps = 0
        self._minute = self._second = float("-inf")
        self._unknown_left = UNKNOWN_A_MINUTE
        self._tiny_left = TINY_A_MINUTE
        self._refused_left = REFUSED_A_MINUTE
        self._resets_left = RESETS_A_SECOND
        self._late_bytes = 0  # what the peer may still have sent to streams that we reset
        self._late_frames = 0

    def __repr__(self) -> str:
        state = "over" if self._over else "goes away" if self.goes_away else "open"
        room = ", no room" if self._blocked else ""
        return f"<yamux {self.role.name.lower()} {state}: {len(self._streams)} streams{room}>"

    @property
    def open_streams(self) -> int:
        """Streams of which at least one direction is open."""
        return len(self._streams)

    @property
    def over(self) -> bool:
        """It has ended; nothing is heard or sent any more."""
        return self._over

    def can_open(self) -> bool:
        """A stream may be opened now: below both bounds and nobody said go-away."""
        limits = self._limits
        if (
            len(self._streams) < limits.max_streams
            and self.unacknowledged < limits.max_unacknowledged
            and not self.goes_away
        ):
            return True
        self._starved = True
        return False

    def tell_when_free(self) -> None:
        """Call `streams_free` when a stream has ended or was acknowledged, as after a False of `can_open`."""
        self._starved = True

    def open(self, first: Buffer, group: Group | None = None) -> Stream:
        """Open a stream; `first` goes out in the frame that carries the SYN (all of it while the trunk has room).

        It is counted in `group` while it lasts. Raises Refused where `can_open` is False.
        """
        if not self.can_open():
            raise Refused("no further stream may be opened on this session")
        stream = Stream(self, self._next_id, own=True)
        self._next_id += 2
        if self._next_id > MAX_ID:
            self.goes_away = self._draining = True
        self._streams[stream.id] = stream
        self.unacknowledged += 1
        if group is not None:
            stream._group = group
            group.open += 1
            group.unacknowledged += 1
        stream._flags = SYN
        extra = self._limits.window - INITIAL_WINDOW
        size = len(first)
        if size == 0:
            stream._grant(extra)
            return stream
        now = min(size, OPENING_MAX if self._blocked else FRAME_PAYLOAD)
        view = memoryview(first)
        stream._frame(view[:now])
        if extra:
            stream._grant(extra)
        if now < size:
            stream.send(view[now:])
            stream._full = False  # nobody was told to stop
        return stream

    def ping(self, value: int) -> None:
        """Send a ping; `pongs` counts the answers that were asked for. `value` is unsigned, 32 bits."""
        if self._over:
            return
        if len(self._asked) >= PINGS_KEPT:
            del self._asked[next(iter(self._asked))]
        self._asked[value] = None
        self._say(PING, SYN, 0, value)

    def go_away(self, code: int = NORMAL) -> None:
        """No new streams from now on; those that are open go on. (A stock agent drops its data socket on this.)"""
        if not self._over:
            self.goes_away = True
            self._say(GO_AWAY, 0, 0, code)

    # the trunk's sink

    def data(self, data: memoryview) -> None:
        at = 0
        size = len(data)
        unpack = HEADER.unpack_from
        streams = self._streams
        while at < size:
            if self._over:
                return
            left = self._left
            if left:
                end = at + left
                if end > size:
                    end = size
                stream = self._current
                self._left = left - (end - at)
                if stream is not None:
                    try:
                        stream.sink.data(data[at:end])
                    except Exception as error:
                        self._crashed(stream, error)
                at = end
                if self._fin and not self._left:
                    self._fin = False
                    if self._current is not None:
                        self._take_fin(self._current)
                continue
            if self._head or size - at < HEADER_SIZE:
                head = self._head
                part = data[at : at + HEADER_SIZE - len(head)]
                head += part
                at += len(part)
                if len(head) < HEADER_SIZE:
                    break
                version, kind, flags, ident, length = unpack(head)
                head.clear()
            else:
                version, kind, flags, ident, length = unpack(data, at)
                at += HEADER_SIZE
            if version == 0 and kind == DATA and flags == 0:
                known = streams.get(ident)
                if known is not None and known.acknowledged and 0 < length <= known._window_in:
                    known._window_in -= length
                    known.received += length
                    self._left = length
                    self._current = known
                    continue
            self._take(version, kind, flags, ident, length)
        if self._over:
            return
        if self._acks:
            self._send_acks()
        self._trunk.credit(size)

    def eof(self) -> None:
        where = " in the middle of a frame" if self._left or self._head else ""
        self._end(Reset(f"the peer ended the trunk{where}"))

    def room(self) -> None:
        if self._over:
            return
        self._blocked = False
        while self._pongs and not self._blocked:
            self._say(PING, ACK, 0, self._pongs.popleft())
        self._flush()

    def lost(self, error: LinkLost) -> None:
        self._end(error)

    def expired(self) -> None:
        """The trunk's own deadline is its owner's business."""

    def sweep(self, now: float) -> None:
        """Once a second: half-closed limits, budgets. `now` in seconds, on any clock that only goes forward."""
        if self._over:
            return
        self._sweeps += 1
        if now - self._second >= 1:
            self._second = now
            self._resets_left = RESETS_A_SECOND
        if now - self._minute >= 60:
            self._minute = now
            self._unknown_left = UNKNOWN_A_MINUTE
            self._tiny_left = TINY_A_MINUTE
            self._refused_left = REFUSED_A_MINUTE
        limit = self._limits.half_closed_seconds
        if limit is None:
            return
        for stream, (moved, since) in list(self._half_closed.items()):
            if stream not in self._half_closed:
                continue  # gone by a callback of one before it
            moves = stream._moved()
            if since is None or moves != moved or stream._owes_credit():
                self._half_closed[stream] = (moves, now)
            elif now - since >= limit:
                self._abort(stream, Reset("half closed, and nothing moved any more"))

    def crashed(self, error: Exception) -> None:
        """A deferred call of ours raised (`streams_free` or `ended`)."""
        self.crashes += 1

    # receiving, off the fast path

    def _take(self, version: int, kind: int, flags: int, ident: int, length: int) -> None:
        """One header that is no plain data for a known stream."""
        if version != 0:
            self._violate(f"version {version}")
        elif kind <= WINDOW_UPDATE:
            self._take_stream_frame(kind, flags, ident, length)
        elif kind == PING:
            self._take_ping(flags, length)
        elif kind == GO_AWAY:
            self._take_go_away(length)
        else:
            self._violate(f"frame type {kind}")

    def _take_stream_frame(self, kind: int, flags: int, ident: int, length: int) -> None:
        size = length if kind == DATA else 0
        if ident == 0:
            return self._violate("stream 0")
        if size > self._limits.frame_max:
            return self._violate(f"a frame of {size} bytes")
        if (flags & SYN and flags & (ACK | RST)) or (flags & FIN and flags & RST):
            return self._violate(f"flags {flags}")
        self._left = size
        self._current = None
        if flags & SYN:
            if size > INITIAL_WINDOW:
                return self._violate("past the window")
            stream = self._take_syn(ident)
            if stream is None:
                return None
        else:
            known = self._streams.get(ident)
            if known is None:
                return self._take_unknown(kind, flags, ident, size)
            stream = known
            if not stream.acknowledged:
                self._acknowledge(stream)
            elif flags & ACK:
                self.ignored += 1
        if flags & RST:
            return self._take_reset(stream)
        if kind == WINDOW_UPDATE:
            self._take_credit(stream, length, flags)
        else:
            self._take_data(stream, size, flags)
        if flags & FIN and not self._over:
            if self._left:
                self._fin = True
            else:
                self._take_fin(stream)
        return None

    def _take_data(self, stream: Stream, size: int, flags: int) -> None:
        if size == 0:
            if flags == 0:
                self._take_tiny()
        elif stream._got_fin:
            self._abort(stream, Reset("data after the end"))
        elif size > stream._window_in:
            self._violate("past the window")
        else:
            stream._window_in -= size
            stream.received += size
            self._current = stream

    def _take_credit(self, stream: Stream, credit: int, flags: int) -> None:
        stream._window_out += credit
        stream._credited += credit
        if stream._window_out > MAX_CREDIT:
            self._violate("a window beyond 32 bits")
            return
        if credit < TINY_CREDIT and flags == 0:
            self._take_tiny()
        if credit and (stream._full or stream._pending) and not self._over:
            stream._queue()
            self._flush()

    def _take_tiny(self) -> None:
        self.ignored += 1
        self._tiny_left -= 1
        if self._tiny_left < 0:
            self._violate("too many empty frames")

    def _take_fin(self, stream: Stream) -> None:
        if stream._got_fin or stream._dead:
            self.ignored += 1
            return
        stream._got_fin = True
        stream._window_in = 0  # so that data after the end leaves the fast path
        if stream._sent_fin:
            self._forget(stream)
        try:
            stream.sink.eof()
        except Exception as error:
            self._crashed(stream, error)

    def _take_reset(self, stream: Stream) -> None:
        self.resets += 1
        if not stream.own:
            self._resets_left -= 1
            if self._resets_left < 0:
                self._violate("too many resets")
                return
        self._drop(stream, Reset("the peer reset the stream"))

    def _take_syn(self, ident: int) -> Stream | None:
        """The stream that a SYN opens; None: refused, or the session has ended."""
        if ident & 1 == self._parity:
            # An even id on our client role is the peer's to use, an odd one is ours.
            self._violate(f"SYN with id {ident}, which is not the peer's to use")
            return None
        if ident in self._streams:
            self._violate(f"SYN twice on stream {ident}")
            return None
        if not self._is_fresh(ident) or self._accept is None or self.goes_away or self._accepted_full():
            self._refuse(ident)
            return None
        stream = Stream(self, ident, own=False)
        stream.acknowledged = True
        stream._flags = ACK
        self._streams[ident] = stream
        self._acks.append(stream)
        try:
            self._accept(stream)
        except Exception as error:
            self._crashed(stream, error)
        return None if stream._dead else stream

    def _accepted_full(self) -> bool:
        return len(self._streams) >= self._limits.max_accepted

    def _is_fresh(self, ident: int) -> bool:
        """Never used before. Notes it as used, and the ids that it skips as still to come."""
        if ident <= self._highest:
            if ident in self._gaps:
                del self._gaps[ident]
                return True
            return False
        first = self._highest + 2 if self._highest else 1 + self._parity
        for skipped in range(max(first, ident - 2 * GAPS_KEPT), ident, 2):
            self._gaps[skipped] = None
        while len(self._gaps) > GAPS_KEPT:
            del self._gaps[next(iter(self._gaps))]
        self._highest = ident
        return True

    def _refuse(self, ident: int) -> None:
        self.refused += 1
        self._refused_left -= 1
        if self._refused_left < 0:
            self._violate("too many SYNs")
        else:
            self._say(DATA, RST, ident, 0)

    def _take_unknown(self, kind: int, flags: int, ident: int, size: int) -> None:
        """A frame for no stream of ours: late for one that is gone, or for one that never was."""
        self.ignored += 1
        was = ident < self._next_id if ident & 1 == self._parity else ident <= self._highest
        if was and size <= self._late_bytes and (size or self._late_frames):
            if size:
                self._late_bytes -= size
            else:
                self._late_frames -= 1
            return
        self._unknown_left -= 1
        if self._unknown_left < 0:
            self._violate("too many frames for unknown streams")
        elif size > max(self._limits.window, self._limits.grown_window):
            self._violate("past the window of an unknown stream")
        elif kind == DATA and not flags & RST:
            self._say(DATA, RST, ident, 0)

    def _take_ping(self, flags: int, value: int) -> None:
        if flags & SYN and flags & ACK:
            self._violate(f"ping flags {flags}")
        elif flags & SYN:
            self.pings += 1
            if self._blocked:
                self._pongs.append(value)
            else:
                self._say(PING, ACK, 0, value)
        elif flags & ACK and value in self._asked:
            del self._asked[value]
            self.pongs += 1
        else:
            self.ignored += 1

    def _take_go_away(self, code: int) -> None:
        self.peer_code = code
        if code > INTERNAL_ERROR:
            self._end(Reset(f"the peer went away with code {code}"))
            return
        if code == PROTOCOL_ERROR and not self._limits.error_is_final:
            return
        # Streams that are open go on; when the last of them is done the session is of no use.
        self.goes_away = self._draining = True
        if not self._streams:
            self._end(Reset(f"the peer went away with code {code}"))

    def _acknowledge(self, stream: Stream) -> None:
        self._note_acknowledged(stream)
        self._maybe_free()

    def _note_acknowledged(self, stream: Stream) -> None:
        stream.acknowledged = True
        self.unacknowledged -= 1
        if stream._group is not None:
            stream._group.unacknowledged -= 1

    def _send_acks(self) -> None:
        """Acknowledge what was accepted in this call, unless its first frame has done so.

        At once, not with the first bytes of a slow local service: a peer stops opening at 256 without.
        """
        acks = self._acks
        extra = self._limits.window - INITIAL_WINDOW
        for stream in acks:
            if not stream._dead and (stream._flags or extra):
                stream._grant(0 if stream._got_fin else extra)
        acks.clear()

    # sending

    def _say(self, kind: int, flags: int, ident: int, length: int) -> None:
        """A frame without payload; it never waits."""
        if not self._trunk.send(HEADER.pack(0, kind, flags, ident, length)):
            self._blocked = True

    def _flush(self) -> None:
        """Serve the queue: one frame a stream in turn, then its `room`."""
        ready = self._ready
        while ready and not self._blocked and not self._over:
            stream = ready.popleft()
            stream._queued = False
            if stream._dead:
                continue
            pending = stream._pending is not None
            if pending:
                stream._send_pending()
                pending = stream._pending is not None
            if pending or self._blocked:
                # The latter: its room is due when the trunk has some.
                if stream._window_out or not pending:
                    stream._queue()
            elif stream._full and (stream._window_out or stream._shut):
                stream._full = False
                try:
                    stream.sink.room()
                except Exception as error:
                    self._crashed(stream, error)

    # ends

    def _forget(self, stream: Stream) -> None:
        """Both directions are done, or it was reset: its id is free of meaning."""
        if self._streams.pop(stream.id, None) is None:
            return
        self._half_closed.pop(stream, None)
        self._growth_left += stream._window - self._limits.window
        stream._window = self._limits.window
        if stream._group is not None:
            stream._group.open -= 1
        if not stream.acknowledged:
            self._note_acknowledged(stream)
        self._late_frames = min(self._late_frames + LATE_FRAMES, LATE_FRAMES * self._limits.max_streams)
        self._maybe_free()
        if self._draining and not self._streams:
            self._later(self, self._drained)

    def _drained(self) -> None:
        if not self._streams:
            why = "stream ids are used up" if self.peer_code is None else f"the peer went away, code {self.peer_code}"
            self._end(Reset(why))

    def _maybe_free(self) -> None:
        if self._starved and not self._free_queued and self._streams_free is not None:
            self._free_queued = True
            self._later(self, self._say_free)

    def _say_free(self) -> None:
        self._free_queued = False
        if self._over or not self.can_open():
            return
        self._starved = False
        if self._streams_free is not None:
            self._streams_free()

    def _kill(self, stream: Stream) -> None:
        """Nothing goes in or out of it any more."""
        stream._dead = stream._shut = True
        stream._pending = None
        if self._current is stream:
            self._current = None
        self._forget(stream)

    def _reset(self, stream: Stream) -> None:
        """RST from our side, without a word to its sink."""
        known = stream.id in self._streams
        if known and not stream._got_fin:
            limits = self._limits
            most = limits.window * limits.max_streams + limits.growth
            self._late_bytes = min(self._late_bytes + stream._window_in, most)
        self._kill(stream)
        if known and not self._over:
            self._say(DATA, RST, stream.id, 0)

    def _drop(self, stream: Stream, error: LinkLost) -> None:
        """It is over; its sink hears so."""
        if stream._dead:
            return
        self._kill(stream)
        sink = stream.sink
        stream.sink = SILENT
        try:
            sink.lost(error)
        except Exception:
            self.crashes += 1

    def _abort(self, stream: Stream, error: LinkLost) -> None:
        """RST from our side for the peer's fault or a deadline; its sink hears why."""
        sink = stream.sink
        self._reset(stream)
        stream.sink = SILENT
        try:
            sink.lost(error)
        except Exception:
            self.crashes += 1

    def _crashed(self, stream: Stream, error: Exception) -> None:
        self.crashes += 1
        if not stream._dead:
            crash = Crash(f"a callback raised {type(error).__name__}")
            crash.__cause__ = error
            self._abort(stream, crash)

    def _violate(self, what: str) -> None:
        """The peer broke the protocol: go-away, then the end."""
        self._say(GO_AWAY, 0, 0, PROTOCOL_ERROR)
        error = Reset(f"yamux: {what}")
        error.__cause__ = YamuxError(what, PROTOCOL_ERROR)
        self._end(error)

    def _end(self, error: LinkLost) -> None:
        if self._over:
            return
        self._over = self.goes_away = True
        self._left = 0
        self._fin = False
        streams = list(self._streams.values())
        for stream in streams:
            reason = error if isinstance(error, Reset) else Reset(str(error))
            self._drop(stream, reason)
        self._ready.clear()
        self._acks.clear()
        self._pongs.clear()
        if self._ended is not None:
            try:
                self._ended(error)
            except Exception:
                self.crashes += 1


class Stream:
    """One yamux stream: a Pipe. `id` is its number, `own` whether we opened it, `acknowledged` whether the peer
    answered our SYN (by any frame), `received` counts payload bytes."""

    __slots__ = (
        "_credited",
        "_dead",
        "_flags",
        "_full",
        "_got_fin",
        "_grants",
        "_group",
        "_owed",
        "_pending",
        "_queued",
        "_sent_fin",
        "_session",
        "_shut",
        "_since",
        "_window",
        "_window_in",
        "_window_out",
        "acknowledged",
        "id",
        "own",
        "received",
        "sink",
    )

    sink: Sink
    id: int
    acknowledged: bool

    def __init__(self, session: Session, ident: int, *, own: bool) -> None:
        self.sink = SILENT
        self.id = ident
        self.own = own
        self.acknowledged = False
        self.received = 0
        self._session = session
        self._group: Group | None = None
        self._flags = 0  # SYN or ACK: goes with the next frame, whatever it is
        self._window = session._limits.window  # what the peer may send unread
        self._grants = 0  # in this time between two sweeps, of which `_since` is the number
        self._since = 0
        self._window_in = INITIAL_WINDOW  # what the peer may still send
        self._window_out = INITIAL_WINDOW  # what we may still send
        self._owed = 0  # credit that was given and not told yet
        self._credited = 0  # bytes that the peer has widened our window by
        self._pending: bytearray | None = None
        self._full = False  # a send returned False: `room` is due
        self._queued = False
        self._shut = False  # no further send: FIN wanted, or dead
        self._sent_fin = False
        self._got_fin = False
        self._dead = False

    def __repr__(self) -> str:
        if self._dead:
            state = "dead"
        else:
            state = f"in {'ended' if self._got_fin else self._window_in}, out "
            state += "ended" if self._shut else str(self._window_out)
        return f"<yamux stream {self.id}: {state}, {len(self._pending or b'')} pending>"

    def send(self, data: Buffer) -> bool:
        """Take all of `data`; False: stop until `room`. After the end it is dropped."""
        size = len(data)
        session = self._session
        if self._shut:
            return True
        if self._pending is None and size <= self._window_out and size <= FRAME_PAYLOAD and not session._blocked:
            if size == 0:
                return True
            if self._frame(data):
                return True
            self._full = True
            self._queue()
            return False
        return self._send_parts(data, size)

    def send_eof(self) -> None:
        if self._shut:
            return
        self._shut = True
        if self._pending is None:
            self._send_fin()
        else:
            self._session._half_closed[self] = (self._moved(), None)

    def credit(self, size: int) -> None:
        """So much of what came has been passed on; told to the peer when half a window has come together."""
        owed = self._owed + size
        window = self._window
        if owed < window >> 1 or self._got_fin or self._dead:
            self._owed = owed
            return
        # Never more than the window in all, whatever the caller counted.
        self._owed = 0
        grant = min(owed, window - self._window_in)
        if self._session._growth_left:
            grant += self._grow()
        self._grant(grant)

    def reset(self) -> None:
        if not self._dead:
            self.sink = SILENT
            self._session._reset(self)

    def _frame(self, data: Buffer) -> bool:
        """One data frame now; the caller saw to it that it fits the window. Whether the trunk has room for more."""
        size = len(data)
        self._window_out -= size
        trunk = self._session._trunk
        head = HEADER.pack(0, DATA, self._flags, self.id, size)
        self._flags = 0
        if size <= JOIN_MAX:
            room = trunk.send(b"".join((head, data)))
        else:
            trunk.send(head)
            room = trunk.send(data)
        if not room:
            self._session._blocked = True
        return room

    def _grow(self) -> int:
        """By how much the window is widened with the present grant: what is passed on slowly keeps a small one."""
        session = self._session
        if self._since != session._sweeps:
            self._since = session._sweeps
            self._grants = 0
        self._grants += 1
        if self._grants < BUSY_GRANTS:
            return 0
        self._grants = 0
        more = min(self._window, session._limits.grown_window - self._window, session._growth_left)
        if more <= 0:
            return 0
        self._window += more
        session._growth_left -= more
        return more

    def _grant(self, credit: int) -> None:
        """A window update; with credit 0 it only carries a SYN or an ACK."""
        self._window_in += credit
        flags = self._flags
        self._flags = 0
        self._session._say(WINDOW_UPDATE, flags, self.id, credit)

    def _send_parts(self, data: Buffer, size: int) -> bool:
        """What fits goes out in frames, the rest is copied."""
        session = self._session
        view = memoryview(data)
        at = 0
        if self._pending is None:
            while at < size and self._window_out and not session._blocked:
                part = view[at : at + min(FRAME_PAYLOAD, self._window_out)]
                self._frame(part)
                at += len(part)
        if at < size:
            if self._pending is None:
                self._pending = bytearray(view[at:])
            else:
                self._pending += view[at:]
        elif self._pending is None and not session._blocked:
            return True
        self._full = True
        if self._window_out:
            self._queue()
        return False

    def _send_pending(self) -> None:
        """One frame of what is pending; behind the last one the FIN, if it was wanted."""
        pending = self._pending
        if pending is None or self._window_out == 0:
            return
        size = min(len(pending), FRAME_PAYLOAD, self._window_out)
        with memoryview(pending) as view, view[:size] as part:
            self._frame(part)
        if size < len(pending):
            del pending[:size]
            return
        self._pending = None
        if self._shut:
            self._send_fin()

    def _send_fin(self) -> None:
        session = self._session
        session._say(DATA, FIN | self._flags, self.id, 0)
        self._flags = 0
        self._sent_fin = True
        if self._got_fin:
            session._forget(self)
        else:
            session._half_closed[self] = (self._moved(), None)

    def _moved(self) -> _Moved:
        """What is different after anything has moved, in either direction: payload, or credit for it."""
        return self.received, self._window_in, self._owed, self._credited, self._window_out

    def _owes_credit(self) -> bool:
        """Something came that its sink has not passed on."""
        return not self._got_fin and self._window_in + self._owed < self._window

    def _queue(self) -> None:
        if not self._queued:
            self._queued = True
            self._session._ready.append(self)
