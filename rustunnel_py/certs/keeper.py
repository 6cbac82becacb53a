"""Which certificate a TLS listener shows, by the name that the peer asks for (SNI).

With `tls.cert_path` there is one pair, for every name. Without, the server's own authority signs: one
certificate for the domain (with its wildcard, where the domain has a dot), and under a one-label domain
one per tunnel's name, since no client accepts `*.localhost`. Contexts are kept, as many as `_KEPT`.
"""

from __future__ import annotations

import datetime
import os
import ssl
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from rustunnel_py.certs.authority import LEAF_LIFE, RENEW_BEFORE, Authority
from rustunnel_py.errors import ConfigError, Unavailable
from rustunnel_py.model.names import judge_label
from rustunnel_py.transport.tls import server_context
from rustunnel_py.wire.pin import pin_of_certificate

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.config import Config, TlsConfig

_KEPT = 256  # contexts of some 50 KiB each; a visitor can ask for any name, so they must have a bound


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def check_pair(tls: TlsConfig, domain: str, *, now: datetime.datetime | None = None) -> None:
    """Whether the configured pair can be used, where there is one. ConfigError: why not."""
    if tls.cert_path is not None and tls.key_path is not None:
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _Configured(Path(tls.cert_path), Path(tls.key_path), domain, lambda: bare, now or _utc_now())


class _Source(Protocol):
    """Where contexts come from."""

    publicly_trusted: bool
    pin: str
    ca_path: Path | None

    def choose(self, name: str | None) -> ssl.SSLContext: ...


class Keeper:
    """The certificates of all TLS listeners. ConfigError: what is configured cannot be used.

    A listener's context asks `choose` at every handshake: `choose_certificate(server_context(), keeper.choose)`.
    `folder` is the data folder; `new_context` makes a server context without a certificate.
    """

    @classmethod
    def from_config(cls, config: Config, folder: Path) -> Keeper:
        return cls(config.tls, config.server.domain, folder)

    def __init__(
        self,
        tls: TlsConfig,
        domain: str,
        folder: Path,
        *,
        new_context: Callable[[], ssl.SSLContext] = server_context,
        now: Callable[[], datetime.datetime] = _utc_now,
    ) -> None:
        self._load: Callable[[], _Source]
        if tls.cert_path is not None and tls.key_path is not None:
            cert, key = Path(tls.cert_path), Path(tls.key_path)
            self._load = lambda: _Configured(cert, key, domain, new_context, now())
        else:
            self._load = lambda: _Signed(Authority(folder, domain, now()), folder, new_context, now)
        self._source: _Source = self._load()

    @property
    def publicly_trusted(self) -> bool:
        """Clients accept the domain's certificate without being told anything."""
        return self._source.publicly_trusted

    @property
    def pin(self) -> str:
        return self._source.pin

    @property
    def ca_path(self) -> Path | None:
        """The file that clients may trust; None with a certificate from elsewhere."""
        return self._source.ca_path

    def choose(self, name: str | None) -> ssl.SSLContext:
        """The context for a TLS peer that asks for `name`; None: it asks for none."""
        return self._source.choose(name)

    def reload(self) -> None:
        """Read the files again. What was in use stays in use if that raises ConfigError."""
        self._source = self._load()


class _Configured:
    """A pair from elsewhere."""

    ca_path: Path | None = None

    def __init__(
        self, cert: Path, key: Path, domain: str, new_context: Callable[[], ssl.SSLContext], now: datetime.datetime
    ) -> None:
        leaf = _leaf_of(cert, now)
        self._context = new_context()
        try:
            # The empty passphrase keeps OpenSSL from asking for one on the terminal.
            self._context.load_cert_chain(cert, key, password="")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError("tls.key_path", f"{key} is not the key of {cert}") from None
            raise ConfigError("tls.key_path", f"{key} is no private key without passphrase ({error.reason})") from None
        except OSError as error:
            raise ConfigError("tls.key_path", f"{key}: {error.strerror}") from None
        self.pin = pin_of_certificate(leaf.public_bytes(Encoding.DER))
        self.publicly_trusted = _system_trusts(self._context, domain)

    def choose(self, name: str | None) -> ssl.SSLContext:
        return self._context


class _Signed:
    """Leaves of our own authority."""

    publicly_trusted = False

    def __init__(
        self,
        authority: Authority,
        folder: Path,
        new_context: Callable[[], ssl.SSLContext],
        now: Callable[[], datetime.datetime],
    ) -> None:
        self._authority = authority
        self._folder = folder
        self._new_context = new_context
        self._now = now
        self._kept: OrderedDict[str, tuple[ssl.SSLContext, datetime.datetime]] = OrderedDict()
        self.pin = authority.pin
        self.ca_path: Path | None = authority.ca_path
        self.choose(None)  # a folder that cannot be written to shows at start

    def choose(self, name: str | None) -> ssl.SSLContext:
        subject = self._subject(name)
        now = self._now()
        kept = self._kept.get(subject)
        if kept is not None and now < kept[1]:
            self._kept.move_to_end(subject)
            return kept[0]
        context = self._sign(subject, now)
        self._kept[subject] = (context, now + LEAF_LIFE - RENEW_BEFORE)
        self._kept.move_to_end(subject)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return context

    def _subject(self, name: str | None) -> str:
        """Whose certificate is shown: the domain's, or under a one-label domain the tunnel's own."""
        domain = self._authority.domain
        if name is None or "." in domain:
            return domain
        label, _, rest = name.lower().removesuffix(".").partition(".")
        if rest != domain:
            return domain
        try:
            return f"{judge_label(label, shortest=1)}.{domain}"
        except Unavailable:
            return domain

    def _sign(self, subject: str, now: datetime.datetime) -> ssl.SSLContext:
        names = [subject]
        if subject == self._authority.domain:
            names += [f"*.{subject}"] if "." in subject else []
            names += ["localhost"] if subject != "localhost" else []
        leaf = self._authority.leaf(tuple(names), now)
        context = self._new_context()
        # ssl reads certificates from files only.
        descriptor, path = tempfile.mkstemp(prefix=".leaf-", dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(leaf.public_bytes(Encoding.PEM))
            context.load_cert_chain(path, self._authority.leaf_key_path)
        finally:
            Path(path).unlink()
        return context


def _leaf_of(cert: Path, now: datetime.datetime) -> x509.Certificate:
    """The first certificate of a configured file, which must be valid today."""
    try:
        leaf = x509.load_pem_x509_certificates(cert.read_bytes())[0]
    except OSError as error:
        raise ConfigError("tls.cert_path", f"{cert}: {error.strerror}") from None
    except ValueError:
        raise ConfigError("tls.cert_path", f"{cert} holds no PEM certificate") from None
    if now > leaf.not_valid_after_utc:
        raise ConfigError("tls.cert_path", f"{cert} has expired on {leaf.not_valid_after_utc:%Y-%m-%d}")
    if now < leaf.not_valid_before_utc:
        raise ConfigError("tls.cert_path", f"{cert} is not valid before {leaf.not_valid_before_utc:%Y-%m-%d}")
    return leaf


def _system_trusts(context: ssl.SSLContext, domain: str) -> bool:
    """Whether a client with this machine's trust store accepts it: asked of OpenSSL, in memory."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = ssl.create_default_context().wrap_bio(to_client, to_server, server_hostname=domain)
    for _ in range(8):  # a handshake takes two rounds
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
            if side is client:
                return True
    return False
