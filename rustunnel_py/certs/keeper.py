"""Which certificate a TLS listener shows, by the name that the peer asks for (SNI).

`tls.cert_folder` comes first (`folder.py`). For every other name there is the pair of `tls.cert_path`; without it the
server's own authority signs: one certificate for the domain (with its wildcard, where the domain has a dot), and under
a one-label domain one per tunnel's name, since no client accepts `*.localhost`. Contexts are kept, as many as `_KEPT`.

Files are looked at every `WATCH_SECONDS`. What was in use stays in use until what replaces it could be loaded: a
handshake never waits and never fails for a renewal (S13).
"""

from __future__ import annotations

import datetime
import os
import ssl
import tempfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog
import trio
from cryptography.hazmat.primitives.serialization import Encoding

from rustunnel_py.certs.authority import LEAF_LIFE, RENEW_BEFORE, Authority
from rustunnel_py.certs.folder import CertificateFolder
from rustunnel_py.certs.pair import fingerprint, load_pair
from rustunnel_py.errors import ConfigError, Unavailable
from rustunnel_py.model.names import judge_label
from rustunnel_py.transport.tls import server_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.config import Config, TlsConfig

_KEPT = 256  # contexts of some 50 KiB each; a visitor can ask for any name, so they must have a bound

WATCH_SECONDS = 5.0  # so soon a renewed certificate is shown; a few system calls a file each time

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def check_certificates(tls: TlsConfig, domain: str, *, now: datetime.datetime | None = None) -> None:
    """Whether all that is configured can be used. ConfigError: why not."""

    def bare() -> ssl.SSLContext:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    now = now or _utc_now()
    if tls.cert_path is not None and tls.key_path is not None:
        _Configured(Path(tls.cert_path), Path(tls.key_path), domain, bare, now)
    if tls.cert_folder is not None:
        folder = CertificateFolder(Path(tls.cert_folder), bare)
        folder.load(now)
        for trouble in folder.troubles.values():
            raise ConfigError("", trouble)


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
        self.reloads = 0  # how often files were read again
        self.failures = 0  # how often some of them could not be used
        self._domain = domain
        self._new_context = new_context
        self._now = now
        self._files: tuple[Path, ...] = ()
        self._load: Callable[[], _Source]
        if tls.cert_path is not None and tls.key_path is not None:
            cert, key = self._files = Path(tls.cert_path), Path(tls.key_path)
            self._load = lambda: _Configured(cert, key, domain, new_context, now())
        else:
            self._load = lambda: _Signed(Authority(folder, domain, now()), folder, new_context, now)
        self._seen = fingerprint(*self._files)
        self._source: _Source = self._load()
        self._folder: CertificateFolder | None = None
        if tls.cert_folder is not None:
            self._folder = CertificateFolder(Path(tls.cert_folder), new_context)
            self._folder.load(now())
            self._tell_troubles({})

    def __repr__(self) -> str:
        return f"<Keeper {self._source!r} {self._folder or ''}>"

    @property
    def publicly_trusted(self) -> bool:
        """Clients accept the domain's certificate without being told anything."""
        pair = self._folder.find(self._domain) if self._folder is not None else None
        return self._source.publicly_trusted if pair is None else _system_trusts(pair.context, self._domain)

    @property
    def pin(self) -> str:
        """Of what is shown for the domain."""
        pair = self._folder.find(self._domain) if self._folder is not None else None
        return self._source.pin if pair is None else pair.pin

    @property
    def ca_path(self) -> Path | None:
        """The file that clients may trust; None where the domain's certificate is from elsewhere."""
        if self._folder is not None and self._folder.find(self._domain) is not None:
            return None
        return self._source.ca_path

    def choose(self, name: str | None) -> ssl.SSLContext:
        """The context for a TLS peer that asks for `name`; None: it asks for none."""
        if self._folder is not None:
            pair = self._folder.find(self._domain if name is None else name.lower().removesuffix("."))
            if pair is not None:
                return pair.context
        return self._source.choose(name)

    @property
    def has_files(self) -> bool:
        """There are configured files to watch."""
        return bool(self._files) or self._folder is not None

    def reload(self, *, only_changed: bool = False) -> None:
        """Read the files again. What was in use stays in use if that raises ConfigError; bad pairs of the folder are
        only logged.
        """
        self.reloads += 1
        try:
            if self._folder is not None:
                before = self._folder.troubles
                self._folder.load(self._now())
                self._tell_troubles(before)
            seen = fingerprint(*self._files)  # before they are read: what is written meanwhile is seen next time
            if seen != self._seen or not only_changed:
                self._seen = seen
                self._source = self._load()
        except ConfigError:
            self.failures += 1
            raise

    def changed(self) -> bool:
        """Whether configured files are not those that were read last."""
        try:
            if self._folder is not None and self._folder.changed():
                return True
        except ConfigError:
            return False  # gone for a moment, or for good: what is loaded stays
        return fingerprint(*self._files) != self._seen

    async def renew(self, *, only_changed: bool = False) -> bool:
        """`reload` in a thread, with a line in the log; whether it could be done."""
        try:
            await trio.to_thread.run_sync(partial(self.reload, only_changed=only_changed))
        except ConfigError as error:
            log.error("certificates could not be loaded; the old ones stay in use", error=str(error))
            return False
        log.info("certificates loaded")
        return True

    async def watch(self, renewed: Callable[[], None] = lambda: None) -> None:
        """Renew whenever configured files change, and call `renewed`; for ever."""
        while True:
            await trio.sleep(WATCH_SECONDS)
            # A folder may be on a network: nothing of it is waited for here.
            if await trio.to_thread.run_sync(self.changed) and await self.renew(only_changed=True):
                renewed()

    def _tell_troubles(self, before: dict[str, str]) -> None:
        troubles = self._folder.troubles if self._folder is not None else {}
        for name, trouble in troubles.items():
            if before.get(name) != trouble:
                self.failures += 1
                log.error("a certificate cannot be used", pair=name, error=trouble)


class _Configured:
    """A pair from elsewhere."""

    ca_path: Path | None = None

    def __init__(
        self, cert: Path, key: Path, domain: str, new_context: Callable[[], ssl.SSLContext], now: datetime.datetime
    ) -> None:
        pair = load_pair(cert, key, new_context(), now, "tls.cert_path", "tls.key_path")
        self._context = pair.context
        self.pin = pair.pin
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
