"""A connection as a trio stream: trio's own checks, plain and TLS, on both pumps (design rule 16)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pytest
import trio
import trio.testing

from rustunnel_py.transport.pump import open_pump
from tests.support.pairs import stream_pair

if TYPE_CHECKING:
    from rustunnel_py.transport.stream import ConnectionStream

Kind = Literal["epoll", "portable", "instrument"]
both_pumps = pytest.mark.parametrize("pump_kind", ["epoll", "portable", "instrument"])
both_kinds = pytest.mark.parametrize("kind", ["tcp", "tls"])


# More than both kernel buffers of a connection ever hold.
CLOG = bytes(16 * 1024 * 1024)


async def clog(stream: ConnectionStream) -> None:
    """Give it more than the kernel takes, so that it waits for room."""
    with trio.move_on_after(0):
        await stream.wait_send_all_might_not_block()
    stream._send(memoryview(CLOG))
    assert not stream._roomy.is_set()


@both_pumps
@both_kinds
async def test_rule_16_trio_checks_half_closeable_stream(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump:

        async def make() -> tuple[ConnectionStream, ConnectionStream]:
            return stream_pair(kind, pump)

        async def make_clogged() -> tuple[ConnectionStream, ConnectionStream]:
            one, other = stream_pair(kind, pump)
            await clog(one)
            await clog(other)
            return one, other

        await trio.testing.check_half_closeable_stream(make, make_clogged)
        assert pump.crashes == 0


@both_pumps
@both_kinds
async def test_rule_16_trio_checks_two_way_stream(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump:

        async def make() -> tuple[ConnectionStream, ConnectionStream]:
            return stream_pair(kind, pump)

        await trio.testing.check_two_way_stream(make, None)
        assert pump.crashes == 0
