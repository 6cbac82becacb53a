"""Two ends in one process: loopback sockets, connections on a pump, streams over them, certificates."""

from __future__ import annotations

import datetime
import functools
import pathlib
import socket
import ssl
import tempfile
from typing import TYPE_CHECKING

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from rustunnel_py.transport.stream import ConnectionStream
from rustunnel_py.transport.tcp import TcpConnection
from rustunnel_py.transport.tls import TlsConnection, server_context
from rustunnel_py.wire.sink import SILENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.transport.tcp import SocketConnection
    from rustunnel_py.wire.sink import Sink

    Gone = Callable[[SocketConnection], None]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two TCP sockets on loopback, joined: (the one that connected, the one that was accepted)."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        one = socket.socket()
        one.connect(listener.getsockname())
        other, _ = listener.accept()
    return one, other


def send_urgent(sock: socket.socket, before: bytes, urgent: bytes, after: bytes) -> None:
    """The mark is behind the last byte of `urgent`; all of it leaves at once where the system can hold it together."""
    cork = getattr(socket, "TCP_CORK", None)
    if cork is not None:
        sock.setsockopt(socket.IPPROTO_TCP, cork, 1)
    sock.send(before)
    sock.send(urgent, socket.MSG_OOB)
    sock.send(after)
    if cork is not None:
        sock.setsockopt(socket.IPPROTO_TCP, cork, 0)


_KEY_USAGE = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


@functools.cache
def certificate(*names: str) -> tuple[pathlib.Path, pathlib.Path]:
    """A self-signed certificate for `names` and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    start = datetime.datetime(2020, 1, 1)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(datetime.datetime(2099, 1, 1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_KEY_USAGE, critical=True)  # Python 3.13 verifies strictly
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = pathlib.Path(tempfile.mkdtemp(prefix="rustunnel-test-"))
    chain, private = folder / "certificate.pem", folder / "key.pem"
    chain.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, private


def server_tls(*names: str) -> ssl.SSLContext:
    return server_context(*certificate(*(names or ("localhost",))))


def client_tls(*names: str) -> ssl.SSLContext:
    """Trusts what `server_tls` with the same names shows."""
    return ssl.create_default_context(cafile=str(certificate(*(names or ("localhost",)))[0]))


def tcp_pair(
    pump: Pump, one: Sink = SILENT, other: Sink = SILENT, *, gone: Gone | None = None
) -> tuple[TcpConnection, TcpConnection]:
    """Two plain connections on `pump`, joined; `gone` is the second one's."""
    a, b = socket_pair()
    return TcpConnection(pump, a, one), TcpConnection(pump, b, other, gone=gone)


def tls_pair(
    pump: Pump, one: Sink = SILENT, other: Sink = SILENT, *, gone: Gone | None = None
) -> tuple[TlsConnection, TlsConnection]:
    """A TLS client and the server that it is joined to, on `pump`."""
    a, b = socket_pair()
    client = TlsConnection(pump, a, client_tls(), one, server_side=False, server_hostname="localhost")
    return client, TlsConnection(pump, b, server_tls(), other, server_side=True, gone=gone)


def pair(kind: str, pump: Pump, one: Sink = SILENT, other: Sink = SILENT) -> tuple[SocketConnection, SocketConnection]:
    """`tcp` or `tls`."""
    return tcp_pair(pump, one, other) if kind == "tcp" else tls_pair(pump, one, other)


def stream_pair(kind: str, pump: Pump) -> tuple[ConnectionStream, ConnectionStream]:
    one, other = pair(kind, pump)
    return ConnectionStream(one), ConnectionStream(other)


def do(pump: Pump, connection: SocketConnection, *steps: Callable[[], object]) -> None:
    """Several calls on `connection` in one go, as a trio task makes them."""

    def run() -> None:
        for step in steps:
            step()

    pump.call(connection, run)


async def spin(condition: Callable[[], bool], rounds: int = 100_000) -> None:
    """Let everybody run until `condition` holds; AssertionError after so many turns of the loop."""
    for _ in range(rounds):
        if condition():
            return
        await trio.lowlevel.checkpoint()
    raise AssertionError("it never came true")
