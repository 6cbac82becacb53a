"""The recorded conversations under tests/data, as typed lines."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

from tests.support.muxpair import HEADER

DATA = Path(__file__).parent.parent / "data"

KINDS = {"data": 0, "window_update": 1, "ping": 2, "go_away": 3}
FLAGS = {"SYN": 1, "ACK": 2, "FIN": 4, "RST": 8}


class RecordedFrame(msgspec.Struct, frozen=True):
    """One yamux frame as the recorder read it; of a payload at most the first 64 bytes are kept."""

    type: str
    flags: list[str]
    stream: int
    length: int
    payload_hex: str = ""
    sha256: str = ""

    @property
    def kind(self) -> int:
        return KINDS[self.type]

    @property
    def bits(self) -> int:
        return sum(FLAGS[flag] for flag in self.flags)

    def payload(self) -> bytes:
        """The payload; what was not recorded of it is filled with zeros."""
        if self.kind != 0:
            return b""
        return bytes.fromhex(self.payload_hex).ljust(self.length, b"\0")

    def encode(self) -> bytes:
        return HEADER.pack(0, self.kind, self.bits, self.stream, self.length) + self.payload()


class Line(msgspec.Struct, frozen=True, rename={"sender": "from"}):
    """One line of a recording: a WebSocket frame (`op`) or an event."""

    t: float
    socket: str = ""
    conn: int = 0
    agent: str = ""
    sender: str = ""
    op: str = ""
    json: str | None = None
    hex: str = ""
    length: int | None = None
    frames: list[RecordedFrame] = []
    event: str = ""
    text: str = ""
    injected_hex: str = ""

    def payload(self) -> bytes:
        """The message's bytes; what was not recorded of it is filled with zeros."""
        if self.json is not None:
            return self.json.encode()
        return bytes.fromhex(self.hex).ljust(self.length or 0, b"\0")


def recordings(world: str = "rustunnel") -> list[str]:
    """The names of all recordings of one world, without suffix."""
    return sorted(path.stem for path in (DATA / world).glob("*.jsonl"))


@cache
def golden(name: str, world: str = "rustunnel") -> tuple[Line, ...]:
    """All lines of one recording, in order of time."""
    lines = (DATA / world / f"{name}.jsonl").read_bytes().splitlines()
    return tuple(msgspec.json.decode(line, type=Line) for line in lines)


def control_messages(name: str) -> list[Line]:
    """What was said on control sockets as JSON, by either side."""
    return [line for line in golden(name) if line.json is not None]


def data_conversations(name: str) -> list[list[Line]]:
    """The binary messages of each data socket, in order; one list a connection."""
    conversations: dict[tuple[str, int], list[Line]] = {}
    for line in golden(name):
        if line.op == "binary" and line.socket.startswith("data"):
            conversations.setdefault((line.agent, line.conn), []).append(line)
    return list(conversations.values())


def data_messages(conversation: list[Line]) -> list[tuple[Line, bytes]]:
    """Each message of one data socket with its bytes, put together from the frames where the recorder clipped it:
    headers are exact everywhere, and messages are cut where they were cut."""
    streams = {
        sender: b"".join(frame.encode() for line in conversation if line.sender == sender for frame in line.frames)
        for sender in ("agent", "server")
    }
    at = {"agent": 0, "server": 0}
    messages = []
    for line in conversation:
        size = len(line.payload())
        start = at[line.sender]
        at[line.sender] += size
        clipped = line.length is not None
        messages.append((line, streams[line.sender][start : start + size] if clipped else line.payload()))
    return messages
