"""Messages inside a byte stream that passes by: WebSocket frames (RFC 6455 §5) and server-sent events.

Both watch only. They never hold anything up, keep what the caller's `Allowance` has room for, and count the rest.
What is malformed ends the watching, not the stream: the two ends are to judge it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

FRAMES_A_CALL = 1000  # a view has at most 256 KiB; smaller frames than that on average cost more than they tell
_HEAD_MAX = 14  # RFC 6455 §5.2: two bytes, a length of eight, a mask of four

_KINDS = {1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong"}
_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n")
_TAIL = 3  # bytes of an end that may lie before a view


class Seen(NamedTuple):
    """A message that is complete. `content` is its beginning, as far as there was room."""

    kind: str
    size: int
    content: bytes
    compressed: bool = False


class Allowance:
    """What may be kept of both directions of one exchange together."""

    __slots__ = ("bytes", "messages")

    def __init__(self, bytes: int, messages: int) -> None:
        self.bytes = bytes
        self.messages = messages


class FrameWatcher:
    """One direction of a WebSocket. `count` counts messages (control frames are messages too), `frames` frames."""

    __slots__ = (
        "_allowance",
        "_compressed",
        "_content",
        "_control",
        "_fin",
        "_head",
        "_kind",
        "_left",
        "_mask",
        "_masked_at",
        "_size",
        "count",
        "frames",
        "watching",
    )

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._head = b""
        self._left = 0  # of the present frame's payload
        self._mask = b""
        self._masked_at = 0
        self._fin = True
        self._kind = ""  # of the message under way, "" between messages
        self._size = 0
        self._content = bytearray()
        self._compressed = False
        self._control: tuple[str, int, bytearray] | None = None  # kind, size, content of a control frame
        self.count = 0
        self.frames = 0
        self.watching = True

    def feed(self, data: memoryview) -> list[Seen]:
        """The messages that ended in `data` and may be kept. More than FRAMES_A_CALL frames end the watching."""
        seen: list[Seen] = []
        at, size = 0, len(data)
        frames = 0
        while self.watching and at < size:
            if self._left:
                taken = min(self._left, size - at)
                self._payload(data[at : at + taken])
                at += taken
                self._left -= taken
                if not self._left:
                    self._frame_over(seen)
                continue
            missing = _HEAD_MAX - len(self._head)
            head = self._head + bytes(data[at : at + missing])
            used = _head_size(head)
            if len(head) < used:
                self._head = head
                break
            at += used - len(self._head)
            self._head = b""
            frames += 1
            if frames > FRAMES_A_CALL or not self._begin(head[:used]):
                self.watching = False
                break
            if not self._left:
                self._frame_over(seen)
        self.frames += frames
        return seen

    def _begin(self, head: bytes) -> bool:
        """A frame's head. False for what no WebSocket sends."""
        opcode = head[0] & 0x0F
        length = head[1] & 0x7F
        masked = head[1] & 0x80
        if length == 126:
            length = int.from_bytes(head[2:4], "big")
        elif length == 127:
            length = int.from_bytes(head[2:10], "big")
        self._mask = head[-4:] if masked else b""
        self._masked_at = 0
        self._left = length
        self._fin = bool(head[0] & 0x80)
        if opcode >= 8:
            if opcode not in _KINDS or not self._fin or length > 125:
                return False
            self._control = (_KINDS[opcode], length, bytearray())
            return True
        if opcode == 0:
            return self._kind != ""
        if opcode not in _KINDS or self._kind:
            return False
        self._kind = _KINDS[opcode]
        self._size = 0
        self._content = bytearray()
        self._compressed = bool(head[0] & 0x40)
        return True

    def _payload(self, data: memoryview) -> None:
        if self._control is not None:
            content = self._control[2]
        else:
            content = self._content
            self._size += len(data)
        allowance = self._allowance
        if allowance.messages > 0 and allowance.bytes > 0:
            kept = data[: allowance.bytes]
            allowance.bytes -= len(kept)
            content += self._unmasked(kept)
        self._masked_at += len(data)

    def _unmasked(self, data: memoryview) -> bytes:
        if not self._mask:
            return bytes(data)
        size = len(data)
        turn = self._masked_at % 4
        mask = (self._mask[turn:] + self._mask[:turn]) * (size // 4 + 1)
        return (int.from_bytes(data, "big") ^ int.from_bytes(mask[:size], "big")).to_bytes(size, "big")

    def _frame_over(self, seen: list[Seen]) -> None:
        control, self._control = self._control, None
        if control is not None:
            kind, size, content = control
            self._message_over(seen, Seen(kind, size, bytes(content)))
        elif self._fin:
            kind, self._kind = self._kind, ""
            self._message_over(seen, Seen(kind, self._size, bytes(self._content), self._compressed))
            self._content = bytearray()

    def _message_over(self, seen: list[Seen], message: Seen) -> None:
        self.count += 1
        if self._allowance.messages > 0:
            self._allowance.messages -= 1
            seen.append(message)


def _head_size(head: bytes) -> int:
    """How long the frame's head is, as far as can be told."""
    if len(head) < 2:
        return 2
    length = head[1] & 0x7F
    return 2 + (2 if length == 126 else 8 if length == 127 else 0) + (4 if head[1] & 0x80 else 0)


class EventWatcher:
    """Events of a text/event-stream: what stands between blank lines. Comments that keep alive count too."""

    __slots__ = ("_allowance", "_content", "_size", "_tail", "count")

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._size = 0  # of the event under way
        self._content = bytearray()
        self._tail = b""
        self.count = 0

    def feed(self, data: memoryview) -> list[Seen]:
        """The events that ended in `data` and may be kept."""
        raw = bytes(data)
        text = self._tail + raw
        before = len(self._tail)
        if self._allowance.messages <= 0:
            # An end within the tail alone was counted with the view before.
            self.count += _ends(text) - _ends(self._tail)
            self._tail = text[-_TAIL:]
            return []
        seen: list[Seen] = []
        at = 0
        for match in _EVENT_END.finditer(text):
            end = match.end() - before
            if end <= 0:
                continue
            self._take(raw[at:end])
            at = end
            if self._content.strip(b"\r\n") or self._size > len(self._content):
                self.count += 1
                if self._allowance.messages > 0:
                    self._allowance.messages -= 1
                    seen.append(Seen("event", self._size, bytes(self._content)))
            self._size = 0
            self._content = bytearray()
        self._take(raw[at:])
        self._tail = b"" if at == len(raw) else text[-_TAIL:]
        return seen

    def _take(self, data: bytes) -> None:
        self._size += len(data)
        allowance = self._allowance
        if allowance.bytes > 0 and allowance.messages > 0:
            kept = data[: allowance.bytes]
            allowance.bytes -= len(kept)
            self._content += kept


def _ends(text: bytes) -> int:
    """Counted in C: past what is kept nobody needs to know where they are."""
    return text.count(b"\n\n") + text.count(b"\n\r\n") + text.count(b"\r\r")
