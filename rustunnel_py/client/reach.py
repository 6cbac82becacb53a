"""A TLS connection to the server, from a party that is who the login says.

Every call resolves the name again and tries its addresses a quarter of a second apart (RFC 8305, section 5), so
that a family that leads nowhere costs no more than that. The handshake is done by the connection; whom we met is
judged in the callback that says so, before the first byte is handed over.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from rustunnel_py.client.config import CaFile, Pin, ServerAddress, SystemTrust, Trust
from rustunnel_py.client.failure import AgentFailure, Unreachable, Untrusted
from rustunnel_py.client.local import Resolver, SockAddr, reason
from rustunnel_py.transport.tls import TlsConnection, connect_tls
from rustunnel_py.wire.pin import pin_of_certificate

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.errors import LinkLost
    from rustunnel_py.transport.pump import Pump

RESOLVE_SECONDS = 10.0
CONNECT_SECONDS = 10.0  # all addresses, TCP and TLS
STAGGER_SECONDS = 0.25  # RFC 8305's recommended delay between attempts
ADDRESSES_MAX = 8  # a name with more is a mistake or an attack; the first ones do

T = TypeVar("T")


class Reach:
    """How one server is reached and recognised."""

    def __init__(self, pump: Pump, resolver: Resolver, server: ServerAddress, trust: Trust | None) -> None:
        """`trust` None takes whoever answers: only for looking at the pin, before anything is said."""
        self.server = server
        self._pump = pump
        self._resolver = resolver
        self._trust = trust
        self._context = _context(trust)

    async def connect(self, take: Callable[[TlsConnection], T]) -> T:
        """Connect, and give what `take` makes of the connection; it sets the connection's sink before it returns.

        Raises Unreachable, or Untrusted for a server that is somebody else: nothing was sent to it then.
        """
        race = _Race(self._pump, self._context, self.server, self._trust, take)
        finished = False
        try:
            for address in interleave(await self._addresses()):
                race.start(address)
                with trio.move_on_after(STAGGER_SECONDS):
                    await race.wait_over()
                if race.won is not None or race.distrusted is not None:
                    break
            else:
                with trio.move_on_after(CONNECT_SECONDS):
                    await race.wait_over()
            finished = True
        finally:
            race.end(keep_winner=finished)
        if race.won is not None:
            return race.won[0]
        raise race.failure()

    async def _addresses(self) -> list[SockAddr]:
        host = self.server.host
        try:
            with trio.fail_after(RESOLVE_SECONDS):
                return await self._resolver.resolve(host, self.server.port)
        except trio.TooSlowError:
            raise Unreachable(f"the name {host} is not resolved within {RESOLVE_SECONDS:.0f} s") from None
        except (OSError, UnicodeError) as error:
            raise Unreachable(f"the name {host} cannot be resolved: {reason(error)}") from error


def interleave(addresses: list[SockAddr]) -> list[SockAddr]:
    """The families in turn, beginning with the system's first choice."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    other = [address for address in addresses if address[0] != addresses[0][0]]
    mixed: list[SockAddr] = []
    for index in range(max(len(first), len(other))):
        mixed += first[index : index + 1] + other[index : index + 1]
    return mixed[:ADDRESSES_MAX]


def _context(trust: Trust | None) -> ssl.SSLContext:
    match trust:
        case Pin() | None:
            # The pin, compared right after the handshake, takes the chain's place.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        case CaFile(path):
            try:
                context = ssl.create_default_context(cafile=str(path))
            except (OSError, ssl.SSLError) as error:
                raise AgentFailure(f"the authorities in {path} cannot be read: {reason(error)}") from error
        case SystemTrust():
            context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


class _Race(Generic[T]):
    """The attempts of one `connect`: the first that is trusted wins, the others are aborted."""

    def __init__(
        self,
        pump: Pump,
        context: ssl.SSLContext,
        server: ServerAddress,
        trust: Trust | None,
        take: Callable[[TlsConnection], T],
    ) -> None:
        self.won: tuple[T] | None = None
        self.distrusted: Untrusted | None = None
        self._pump = pump
        self._context = context
        self._server = server
        self._trust = trust
        self._take = take
        self._running: list[_Attempt] = []
        self._why = "no address"
        self._winner: TlsConnection | None = None
        self._over = trio.Event()

    def start(self, address: SockAddr) -> None:
        family, sockaddr = address
        attempt = _Attempt(self.connected, self.fell)
        try:
            attempt.connection = connect_tls(
                self._pump, family, sockaddr, self._context, self._server.host, attempt, connected=attempt.connected
            )
        except OSError as error:
            self._why = reason(error)
            return
        attempt.connection.due = self._pump.now + CONNECT_SECONDS
        self._running.append(attempt)

    async def wait_over(self) -> None:
        """Until one has won, or none is left that could."""
        while self._running and self.won is None and self.distrusted is None:
            await self._over.wait()
            self._over = trio.Event()

    def failure(self) -> AgentFailure:
        if self.distrusted is not None:
            return self.distrusted
        why = f"no answer within {CONNECT_SECONDS:.0f} s" if self._running else self._why
        return Unreachable(f"{self._server} cannot be reached: {why}")

    def end(self, *, keep_winner: bool) -> None:
        """Abort the losers; the winner too where its caller was cancelled at the same moment."""
        if self._winner is not None and not keep_winner:
            self._winner.abort()
        for attempt in self._running:
            if attempt.connection is not None:
                attempt.connection.abort()
        self._running.clear()

    def connected(self, attempt: _Attempt, connection: TlsConnection) -> None:
        if attempt in self._running:
            self._running.remove(attempt)
        if self.won is not None or self.distrusted is not None:
            connection.abort()
            return
        if isinstance(self._trust, Pin):
            shown = pin_of(connection)
            if shown != self._trust.value:
                connection.abort()
                self.distrusted = Untrusted(
                    f"{self._server} showed another key than the pinned one: {shown or 'none'}; "
                    "if its key was changed on purpose, log in again with the new pin",
                    shown,
                )
                self._over.set()
                return
        connection.due = float("inf")
        self._winner = connection
        self.won = (self._take(connection),)
        self._over.set()

    def fell(self, attempt: _Attempt, error: BaseException | str) -> None:
        if attempt in self._running:
            self._running.remove(attempt)
        if isinstance(error, ssl.SSLCertVerificationError):
            self.distrusted = Untrusted(f"the certificate of {self._server} is not trusted: {reason(error)}")
        self._why = error if isinstance(error, str) else reason(error)
        self._over.set()


def pin_of(connection: TlsConnection) -> str | None:
    """The pin of the key that the other end proved to have."""
    certificate = connection.ssl_object.getpeercert(True)
    try:
        return None if certificate is None else pin_of_certificate(certificate)
    except ValueError:
        return None


class _Attempt:
    """The sink of one connection in the making."""

    __slots__ = ("_connected", "_fell", "connection")

    def __init__(
        self,
        connected: Callable[[_Attempt, TlsConnection], None],
        fell: Callable[[_Attempt, BaseException | str], None],
    ) -> None:
        self.connection: TlsConnection | None = None
        self._connected = connected
        self._fell = fell

    def connected(self, connection: TlsConnection) -> None:
        self._connected(self, connection)

    def data(self, data: memoryview) -> None: ...

    def eof(self) -> None:
        if self.connection is not None:
            self.connection.abort()
        self._fell(self, "it closed the connection during the handshake")

    def room(self) -> None: ...

    def lost(self, error: LinkLost) -> None:
        self._fell(self, error if error.__cause__ is None else error.__cause__)

    def expired(self) -> None:
        if self.connection is not None:
            self.connection.abort()
        self._fell(self, f"no answer within {CONNECT_SECONDS:.0f} s")
