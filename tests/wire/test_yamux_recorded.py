"""The recorded data sockets, fed to our machines in both roles, are understood frame by frame."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from rustunnel_py.wire.yamux import FIN, PING, RST, SYN, WINDOW_UPDATE, Role
from tests.support.golden import data_conversations, data_messages, recordings
from tests.support.muxpair import Hearing, Side, feed, hear, split_frames

if TYPE_CHECKING:
    from tests.support.golden import Line, RecordedFrame


class Replay:
    """One conversation with our session in one seat: what the other side said is fed, what the seat's own side
    said is done by calls."""

    def __init__(self, seat: str) -> None:
        self.seat = seat
        self.side = Side(Role.CLIENT if seat == "server" else Role.SERVER)
        self.hearings: dict[int, Hearing] = {}
        self.side.on_accept = lambda hearing: self.hearings.__setitem__(
            hearing.stream.id if hearing.stream else 0, hearing
        )
        self.expected: dict[int, list[RecordedFrame]] = {}
        self.cut = False  # the last message was clipped
        self.clipped: set[int] = set()  # streams of which the recorder did not keep all payload
        self.eofs: set[int] = set()
        self.losts: set[int] = set()
        self.gone: set[int] = set()
        self.pongs_due: list[int] = []
        self.pongs_said: list[int] = []

    def run(self, lines: list[Line]) -> None:
        for line, raw in data_messages(lines):
            if line.sender == self.seat:
                for frame in line.frames:
                    self.act(frame)
            else:
                for frame in line.frames:
                    self.expect(frame)
                    if frame.length > 64 and (line.length is not None or self.cut):
                        self.clipped.add(frame.stream)
                self.cut = line.length is not None
                feed(self.side.session, raw)
            self.side.later.run()
            self.pongs_said += [f.length for f in split_frames(self.side.trunk.take()) if (f.kind, f.flags) == (2, 2)]

    def act(self, frame: RecordedFrame) -> None:
        session = self.side.session
        if frame.kind == PING:
            if frame.bits & SYN:
                session.ping(frame.length)
            return
        if frame.kind == WINDOW_UPDATE:
            return  # our machine gives its own credit
        if frame.bits & SYN and frame.stream not in self.hearings:
            # The recorded server numbers streams before it sends their SYNs; those skipped get their bytes later.
            while frame.stream not in self.hearings:
                stream = session.open(b"")
                self.hearings[stream.id] = hear(stream)
        if frame.stream in self.gone:
            return
        hearing = self.hearings[frame.stream]
        assert hearing.stream is not None
        hearing.stream.send(frame.payload())
        if frame.bits & FIN:
            hearing.stream.send_eof()
        if frame.bits & RST:
            self.gone.add(frame.stream)
            hearing.stream.reset()

    def expect(self, frame: RecordedFrame) -> None:
        if frame.kind == PING and frame.bits & SYN:
            self.pongs_due.append(frame.length)
        if frame.kind == 0 and frame.stream not in self.gone:
            self.expected.setdefault(frame.stream, []).append(frame)
            if frame.bits & FIN:
                self.eofs.add(frame.stream)
            if frame.bits & RST:
                self.losts.add(frame.stream)


def check(replay: Replay) -> None:
    session = replay.side.session
    assert not session.over
    assert session.crashes == session.refused == 0
    assert replay.pongs_said == replay.pongs_due
    for ident, hearing in replay.hearings.items():
        frames = replay.expected.get(ident, [])
        at = 0
        for frame in frames:
            payload = hearing.received[at : at + frame.length]
            at += frame.length if frame.kind == 0 else 0
            assert payload.startswith(bytes.fromhex(frame.payload_hex))
            if frame.sha256 and ident not in replay.clipped:
                assert sha256(payload).hexdigest() == frame.sha256
        if ident in replay.gone:
            assert not hearing.events
        else:
            assert len(hearing.received) == at
            assert ("eof" in hearing.events) == (ident in replay.eofs)
            assert ("lost" in hearing.events) == (ident in replay.losts)


@pytest.mark.parametrize("name", [name for name in recordings() if data_conversations(name)])
@pytest.mark.parametrize("seat", ["server", "agent"])
def test_recorded_data_sockets(name: str, seat: str) -> None:
    for lines in data_conversations(name):
        replay = Replay(seat)
        replay.run(lines)
        check(replay)


def test_the_recordings_hold_every_kind_of_frame_of_a_stock_agent() -> None:
    seen = {
        (frame.type, tuple(frame.flags))
        for name in recordings()
        for lines in data_conversations(name)
        for line in lines
        if line.sender == "agent"
        for frame in line.frames
    }
    assert seen >= {
        ("data", ()),
        ("data", ("ACK",)),
        ("data", ("FIN",)),
        ("data", ("RST",)),
        ("ping", ("SYN",)),
        ("ping", ("ACK",)),
        ("window_update", ("ACK",)),
    }


def test_an_agent_acknowledges_with_its_first_frame() -> None:
    """Recording 05: the first frame back is a window update with ACK."""
    replay = Replay("server")
    (lines,) = data_conversations("05-upload-download")
    replay.run(lines)
    assert replay.side.session.unacknowledged == 0


def test_pings_of_the_recorded_server_are_answered_in_both_seats() -> None:
    replay = Replay("agent")
    replay.run(data_conversations("01-http-idle")[0])
    assert replay.side.session.pings == len(replay.pongs_due) > 1
    assert replay.side.session.pongs > 1
