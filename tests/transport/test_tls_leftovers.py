"""What is left in the BIO does not swallow the edge of what comes meanwhile (rule 9)."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from rustunnel_py.transport.pump import EPOLLIN
from rustunnel_py.transport.tls import TlsConnection
from rustunnel_py.wire.sink import SilentSink
from tests.support.pairs import client_tls, server_tls, socket_pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.transport.pump import Flushable, Handler
    from rustunnel_py.wire.sink import Crashable


class EdgeOnlyPump:
    """Gives exactly the edges that the test gives, and what handlers ask to have again."""

    def __init__(self) -> None:
        self.now = 0.0
        self.crashes = 0
        self.passes = 0
        self.on_crash: Callable[[Exception], None] | None = None
        self.scratch = memoryview(bytearray(64 * 1024))  # less than what one read can bring on loopback
        self.asked: dict[Handler, int] = {}
        self.flushes: dict[Flushable, None] = {}

    def add(self, handler: Handler) -> None: ...

    def drop(self, handler: Handler) -> None: ...

    def later(self, by: Crashable, function: Callable[[], object]) -> None:
        function()

    call = later

    def again(self, handler: Handler, flags: int) -> None:
        self.asked[handler] = flags

    def flush_soon(self, what: Flushable) -> None:
        self.flushes[what] = None

    def on_sweep(self, function: Callable[[float], None]) -> Callable[[], None]:
        raise NotImplementedError

    def sweep(self, now: float) -> None: ...

    def crash(self, by: object, error: Exception) -> None:
        raise error

    def flush(self) -> None:
        flushes, self.flushes = self.flushes, {}
        for what in flushes:
            what.flush()

    def edge(self, handler: Handler) -> None:
        """An edge that comes together with what was asked for, as the epoll pump gives it: one call for both."""
        self.asked.pop(handler, None)
        handler.ready(EPOLLIN)
        self.flush()


class Collector(SilentSink):
    def __init__(self) -> None:
        self.size = 0
        self.connection: TlsConnection | None = None

    def data(self, data: memoryview) -> None:
        self.size += len(data)
        assert self.connection is not None
        self.connection.credit(len(data))


def test_rule_09_an_edge_that_comes_while_records_are_left_is_not_lost() -> None:
    pump, sink = EdgeOnlyPump(), Collector()
    ours, theirs = socket_pair()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_tls().wrap_bio(incoming, outgoing, server_hostname="localhost")
    connection = TlsConnection(pump, ours, server_tls(), sink, server_side=True)
    sink.connection = connection
    theirs.setblocking(False)
    while True:
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            theirs.send(outgoing.read())
            pump.edge(connection)
            incoming.write(theirs.recv(65536))
    theirs.send(outgoing.read())
    pump.edge(connection)

    def send_records(count: int) -> int:
        for _ in range(count):
            client.write(b"r" * 1024)
        theirs.send(outgoing.read())
        return count * 1024

    sent = send_records(55)  # one read takes them all; deciphering stops at most of the shared buffer
    pump.edge(connection)
    assert 0 < sink.size < sent
    sent += send_records(55)
    pump.edge(connection)  # the only edge for them
    for _ in range(20):
        if connection not in pump.asked:
            break
        pump.asked.clear()
        connection.ready(EPOLLIN)
    assert sink.size == sent
    connection.abort()
    theirs.close()
