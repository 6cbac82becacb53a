"""What a relay does with a direction that stays open after the other has ended: rows T09 and Y25."""

from __future__ import annotations

import math

import pytest

from rustunnel_py.errors import Expired
from rustunnel_py.transport.relay import HALF_CLOSED_SECONDS, LOOK_SECONDS, RelayEnd, join
from tests.support.fed_connection import FedConnection, FedPump

by_either = pytest.mark.parametrize("first", ["connection", "pipe"])


class Joined:
    """A connection and a pipe, joined; time passes in steps of a second, as the pump sweeps."""

    def __init__(self, *, high_water: float = math.inf) -> None:
        self.pump = FedPump()
        self.connection = FedConnection(high_water=high_water)
        self.pipe = FedConnection(high_water=high_water)
        self.ends: list[RelayEnd] = []
        join(self.pump, self.connection, self.pipe, on_end=self.ends.append)

    def sides(self, first: str) -> tuple[FedConnection, FedConnection]:
        """(the one that ends its direction first, the other)"""
        return (self.connection, self.pipe) if first == "connection" else (self.pipe, self.connection)

    def pass_seconds(self, seconds: float) -> None:
        assert self.pipe.due == math.inf  # a pipe of a link has no deadline
        until = self.pump.now + seconds
        while self.pump.now < until:
            self.pump.now += 1
            if self.connection.due <= self.pump.now:
                self.connection.expire(self.pump)


@by_either
def test_T09_Y25_who_stays_after_the_other_hung_up_is_let_go_when_nothing_moves(first: str) -> None:
    joined = Joined()
    ended, open_ = joined.sides(first)
    ended.feed(b"bye")
    ended.feed_eof()
    assert open_.take() == b"bye"
    joined.pass_seconds(HALF_CLOSED_SECONDS - 1)
    assert not joined.ends
    joined.pass_seconds(LOOK_SECONDS + 1)
    (end,) = joined.ends
    assert isinstance(end.error, Expired)
    assert end.by_a is (first == "pipe")
    assert joined.connection.end == joined.pipe.end == "abort"


@by_either
def test_T09_Y25_an_open_direction_in_which_something_moves_now_and_then_stays(first: str) -> None:
    joined = Joined()
    ended, open_ = joined.sides(first)
    joined.pass_seconds(10)
    ended.feed_eof()
    for _ in range(24):
        joined.pass_seconds(HALF_CLOSED_SECONDS - LOOK_SECONDS)
        open_.feed(b".")
    assert not joined.ends
    assert ended.take() == b"." * 24
    open_.feed_eof()
    assert [end.error for end in joined.ends] == [None]
    joined.pass_seconds(2 * HALF_CLOSED_SECONDS)
    assert not joined.connection.end


def test_T09_Y25_a_visitor_that_still_reads_what_came_before_the_end_stays() -> None:
    joined = Joined(high_water=1000)
    joined.pipe.feed(bytes(10_000))
    joined.pipe.feed_eof()
    read = 0
    for _ in range(40):
        joined.pass_seconds(HALF_CLOSED_SECONDS - LOOK_SECONDS)
        read += len(joined.connection.take(250))
    assert read == 10_000
    assert not joined.ends
    joined.pass_seconds(HALF_CLOSED_SECONDS + LOOK_SECONDS)
    assert [type(end.error) for end in joined.ends] == [Expired]


def test_a_silent_relay_with_both_directions_open_has_no_deadline() -> None:
    joined = Joined()
    joined.pass_seconds(10 * HALF_CLOSED_SECONDS)
    assert joined.connection.due == math.inf
    assert not joined.ends


def test_a_deadline_that_its_owner_set_ends_a_relay_that_is_open_both_ways() -> None:
    joined = Joined()
    joined.connection.due = joined.pump.now + 5
    joined.pass_seconds(5)
    assert [type(end.error) for end in joined.ends] == [Expired]
    assert joined.connection.end == joined.pipe.end == "abort"
