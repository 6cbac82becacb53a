"""The TCP edge: a listener per tunnel's port, and the visits that came through them. Implements `hub.ports.Ports`.

A visit is two pipes joined: the visitor's connection and one that the link opened to the local service. Nothing reads
its bytes. Where something must be waited for (the agent, a policy), the visitor is parked; what it sends
meanwhile is held, at most its connection's receive window, and goes first when it is served. A visit that cannot
be served is reset: on TCP there is no other way to say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from rustunnel_py.edges.limits import Census, EdgeLimits, ParkingLimits
from rustunnel_py.edges.parked import Parking
from rustunnel_py.edges.shared import VisitIds
from rustunnel_py.errors import Closed, HopError, PortInUse
from rustunnel_py.hub.gate import PASS, Answer, Delay, NeedBody, Pass, Slow, Wait
from rustunnel_py.hub.ports import PortTaken
from rustunnel_py.model.tunnel import TcpPort
from rustunnel_py.model.visit import Visit, VisitKind
from rustunnel_py.transport import relay
from rustunnel_py.transport.listen import Listener, bind
from rustunnel_py.transport.tcp import TcpConnection

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from rustunnel_py.edges.access_log import AccessLog
    from rustunnel_py.errors import LinkLost
    from rustunnel_py.hub.gate import Gate, Verdict
    from rustunnel_py.hub.link import Link
    from rustunnel_py.hub.registry import Tunnel
    from rustunnel_py.model.tunnel import Peer
    from rustunnel_py.transport.listen import Intake
    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.transport.tcp import SocketConnection

PORTS_KEY = "limits.tcp_port_range"  # the setting that a taken port is about


class TcpEdge:
    """All TCP tunnels of a server, on every address of `host`.

    `census` is the one that all edges of a server share; else one is made of `limits` and `parking`. Bounds of one
    tunnel are policies at its gate.
    """

    def __init__(
        self,
        pump: Pump,
        host: str,
        *,
        limits: EdgeLimits | None = None,
        parking: ParkingLimits | None = None,
        census: Census | None = None,
        intake: Intake | None = None,
        access: AccessLog | None = None,
    ) -> None:
        self.pump = pump
        self.access = access
        self.census = census or Census(limits, parking)
        self.ids = VisitIds()
        self.parking: Parking | None = None  # None until the edge runs
        self._host = host
        self._intake = intake
        self._ports: dict[int, tuple[Tunnel, list[Listener]]] = {}
        self._visits: dict[SocketConnection, _TcpVisit] = {}
        self._stopped = False
        self._empty = trio.Event()

    def __repr__(self) -> str:
        return f"<TcpEdge {len(self._ports)} ports, {len(self._visits)} visits>"

    @property
    def visitors(self) -> int:
        return len(self._visits)

    # hub.ports.Ports

    def open(self, tunnel: Tunnel, port: int) -> None:
        """Listen at once. Raises PortTaken. While the server stops nobody new is let in, and nothing listens."""
        if self._stopped:
            return
        try:
            sockets = bind(self._host, port, key=PORTS_KEY)
        except PortInUse as error:
            raise PortTaken(str(error)) from error

        def accepted(sock: socket.socket, peer: Peer) -> None:
            self._accepted(tunnel, sock, peer)

        self._ports[port] = tunnel, [Listener(self.pump, sock, accepted, self._intake) for sock in sockets]

    def close(self, port: int) -> None:
        """Stop listening; visits that are under way go on, and end as their link says."""
        _, listeners = self._ports.pop(port, (None, ()))
        for listener in listeners:
            listener.close()

    def owns(self, tunnel: Tunnel) -> bool:
        """Whether the tunnel still has its port; asked after a wait."""
        address = tunnel.address
        held = self._ports.get(address.port) if isinstance(address, TcpPort) else None
        return held is not None and held[0] is tunnel

    # life

    async def run(
        self, visits: trio.Nursery, *, task_status: trio.TaskStatus[list[Peer]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled, then stop listening. One task in `visits` stays until the last visit is over."""
        await visits.start(self._keep_visits)
        try:
            task_status.started([])
            await trio.sleep_forever()
        finally:
            self._stopped = True
            for port in list(self._ports):
                self.close(port)
            self._look_whether_empty()

    async def _keep_visits(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            self.parking = Parking(self.pump, nursery, self.owns, self.census)
            task_status.started()
            try:
                await self._empty.wait()
            finally:
                self.parking = None
                self.pump.call(self, self._end_visits)
            nursery.cancel_scope.cancel()

    def _end_visits(self) -> None:
        for visit in list(self._visits.values()):
            visit.end()

    def _look_whether_empty(self) -> None:
        if self._stopped and not self._visits:
            self._empty.set()

    def crashed(self, error: Exception) -> None:
        """Ending the visits failed half way; the pump has counted it, and ends the rest when it ends."""

    # connections

    def _accepted(self, tunnel: Tunnel, sock: socket.socket, peer: Peer) -> None:
        source = self.census.enter(peer.ip)
        if source is None:
            sock.close()
            return
        connection = TcpConnection(self.pump, sock, gone=self._gone)
        connection.peer = peer
        visit = self._visits[connection] = _TcpVisit(self, tunnel, connection, source)
        visit.begin()

    def _gone(self, connection: SocketConnection) -> None:
        visit = self._visits.pop(connection)
        self.census.leave(visit.source)
        visit.gone()
        self._look_whether_empty()


class _TcpVisit:
    """One visitor's connection; its sink until the two pipes are joined."""

    __slots__ = (
        "_back",
        "_connection",
        "_edge",
        "_eof",
        "_gate",
        "_held",
        "_scope",
        "_tunnel",
        "_visit",
        "_wait",
        "_wrap",
        "source",
    )

    def __init__(self, edge: TcpEdge, tunnel: Tunnel, connection: TcpConnection, source: str) -> None:
        self.source = source
        self._edge = edge
        self._tunnel = tunnel
        self._connection = connection
        self._gate: Gate | None = None  # admitted there: it is owed a `leave`
        self._wait: Wait | None = None
        self._scope: trio.CancelScope | None = None  # of the task that waits for us
        self._held = bytearray()
        self._back = 0  # bytes that the visitor got
        self._eof = False
        self._wrap: Callable[[Link], Link] | None = None
        self._visit = Visit(
            id=edge.ids.next(),
            tunnel_id=tunnel.id,
            kind=VisitKind.TCP,
            visitor=connection.peer,
            edge=connection.local,
            scheme="tcp",
            target=tunnel.target,
            connection=connection,
            arrived=edge.pump.now,
        )

    def __repr__(self) -> str:
        return f"<TCP visit {self._visit.id} of {self._connection!r}>"

    def begin(self) -> None:
        self._connection.sink = self
        self._tunnel.requests += 1
        gate = self._tunnel.gate
        if gate is None:
            self._serve()
        else:
            self._on_verdict(gate, gate.admit(self._tunnel, self._visit))

    # the gate

    def _on_verdict(self, gate: Gate, verdict: Pass | Answer | Wait) -> None:
        if isinstance(verdict, Answer):
            content = verdict.content
            self._refuse(content.code if isinstance(content, HopError) else "policy")
        elif isinstance(verdict, Wait):
            self._on_wait(gate, verdict)
        else:
            self._gate = gate
            if verdict.target is not None:
                self._visit.target = verdict.target
            self._wrap = verdict.wrap
            self._serve()

    def _on_wait(self, gate: Gate, wait: Wait) -> None:
        asked = wait.verdict
        self._wait = wait

        def settle(verdict: Verdict) -> None:
            self._scope = self._wait = None
            if not self._connection.is_gone:
                self._on_verdict(gate, wait.settle(verdict))

        def resume(_: None) -> None:
            settle(PASS)

        parking = self._edge.parking
        try:
            if parking is None:
                self._refuse("stopping")
            elif isinstance(asked, Delay):
                self._scope = parking.for_seconds(self, self._tunnel, asked.seconds, resume)
            elif isinstance(asked, Slow):
                self._scope = parking.for_slow(self, self._tunnel, asked.function, settle)
            elif isinstance(asked, NeedBody):
                self._wait = None
                self._on_verdict(gate, wait.settle(asked.then(b"")))  # TCP has none
        except HopError as error:
            self._refuse(error.code)

    # the link

    def _serve(self) -> None:
        link = self._tunnel.links.pick(self._visit)
        if link is not None:
            self._join(link)
            return
        parking = self._edge.parking
        if parking is None:
            self._refuse("agent-away")
            return
        try:
            self._scope = parking.for_link(self, self._tunnel, self._visit, self._on_link)
        except HopError as error:
            self._refuse(error.code)

    def _on_link(self, outcome: Link | HopError) -> None:
        self._scope = None
        if self._connection.is_gone:
            return
        if isinstance(outcome, HopError):
            self._refuse(outcome.code)
        else:
            self._join(outcome)

    def _join(self, link: Link) -> None:
        connection = self._connection
        if self._wrap is not None:
            link = self._wrap(link)
        try:
            pipe = link.open(self._visit)
        except HopError as error:
            self._refuse(error.code)
            return
        relay.join(self._edge.pump, connection, pipe, on_end=self._ended)
        # What came while it waited was delivered and not credited: the join does both now.
        sink = connection.sink
        if self._held:
            held, self._held = self._held, bytearray()
            sink.data(memoryview(held))
        if self._eof:
            sink.eof()

    def _ended(self, end: relay.RelayEnd) -> None:
        tally = self._tunnel.tally
        tally.bytes_in += end.forth
        tally.bytes_out += end.back
        self._back = end.back

    def _refuse(self, code: str) -> None:
        self._edge.census.count(code)
        self._connection.abort()

    # the connection's sink, while it waits

    def data(self, data: memoryview) -> None:
        self._held += data

    def eof(self) -> None:
        self._eof = True

    def room(self) -> None: ...

    def lost(self, error: LinkLost) -> None: ...

    def expired(self) -> None:
        self._connection.abort()

    # ends

    def end(self) -> None:
        """The server has waited long enough: cut work looks cut, on both sides."""
        sink = self._connection.sink
        self._connection.abort()
        if sink is not self:
            sink.lost(Closed("the server stops"))

    def gone(self) -> None:
        """The connection is over, however it ended."""
        if self._scope is not None:
            self._scope.cancel()
            self._scope = None
        if self._wait is not None:
            self._wait.abandon()
            self._wait = None
        if self._gate is not None:
            self._gate.leave(self._visit)
            self._gate = None
        self._tunnel.tally.visits += 1
        access, visit, address = self._edge.access, self._visit, self._tunnel.address
        if access is not None and isinstance(address, TcpPort):
            milliseconds = (self._edge.pump.now - visit.arrived) * 1000.0
            access.connection(visit.visitor, address.port, self._back, milliseconds, visit.id)

    def crashed(self, error: Exception) -> None:
        """What a task brought back could not be taken up."""
        self._connection.abort()
