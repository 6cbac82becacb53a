"""The server's own authority, for servers without a certificate from elsewhere.

It lives in the data folder and is made at first start:

    ca.pem           its certificate, to be trusted by who wants to: curl --cacert DATA/ca.pem
    ca-key.pem       its key (0600)
    leaf-key.pem     the key of every certificate it signs (0600); its public half is the pin

Trusting `ca.pem` is harmless beyond this server: critical name constraints allow the domain with what is
below it, and loopback (127.0.0.0/8, ::1, localhost), and nothing else. All leaves share one key, so a
renewed certificate has the same pin. A lost file is made again; a changed domain gives a new `ca.pem`.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from rustunnel_py.errors import ConfigError
from rustunnel_py.wire.pin import pin_of

if TYPE_CHECKING:
    from pathlib import Path

AUTHORITY_LIFE = datetime.timedelta(days=3650)
LEAF_LIFE = datetime.timedelta(days=90)  # browsers refuse more than 398
RENEW_BEFORE = datetime.timedelta(days=30)  # a third of a leaf's life, as ACME clients do
_CLOCK_SKEW = datetime.timedelta(days=1)  # a client whose clock is late can still connect

_LOOPBACK = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))
_LOOPBACK_NETWORKS = (ipaddress.IPv4Network("127.0.0.0/8"), ipaddress.IPv6Network("::1/128"))


class Authority:
    """Signs leaves for `domain` and what is below it. `folder` must exist. ConfigError: a file cannot be used."""

    def __init__(self, folder: Path, domain: str, now: datetime.datetime) -> None:
        self.domain = domain
        self.ca_path = folder / "ca.pem"
        self.leaf_key_path = folder / "leaf-key.pem"
        self._key = _kept_key(folder / "ca-key.pem")
        self._leaf_key = _kept_key(self.leaf_key_path)
        self._certificate = self._kept_certificate(now)
        self.pin = pin_of(self._leaf_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    def leaf(self, names: tuple[str, ...], now: datetime.datetime) -> x509.Certificate:
        """A certificate for host names, the first its common name; with the domain also for loopback addresses."""
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        if self.domain in names:
            alternatives += [x509.IPAddress(address) for address in _LOOPBACK]
        return (
            x509.CertificateBuilder()
            .subject_name(_name(names[0]))
            .issuer_name(self._certificate.subject)
            .public_key(self._leaf_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + LEAF_LIFE)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._leaf_key.public_key()), critical=False)
            .add_extension(self._issuer_identifier(), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _kept_certificate(self, now: datetime.datetime) -> x509.Certificate:
        if self.ca_path.exists():
            try:
                certificate = x509.load_pem_x509_certificate(self.ca_path.read_bytes())
            except (ValueError, OSError) as error:
                raise ConfigError(str(self.ca_path), f"cannot be read ({error}); remove it to have a new one") from None
            if self._still_good(certificate, now):
                return certificate
        certificate = self._new_certificate(now)
        write_private(self.ca_path, certificate.public_bytes(Encoding.PEM), mode=0o644)
        return certificate

    def _still_good(self, certificate: x509.Certificate, now: datetime.datetime) -> bool:
        """It has our key, allows exactly what we sign, and outlives every leaf signed today."""
        try:
            constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            return False
        return (
            certificate.public_key() == self._key.public_key()
            and constraints == self._constraints()
            and now + LEAF_LIFE < certificate.not_valid_after_utc
        )

    def _new_certificate(self, now: datetime.datetime) -> x509.Certificate:
        name = _name(f"rustunnel-py {self.domain}")
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(self._constraints(), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _constraints(self) -> x509.NameConstraints:
        names = dict.fromkeys((self.domain, "localhost"))
        permitted: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        permitted += [x509.IPAddress(network) for network in _LOOPBACK_NETWORKS]
        return x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None)

    def _issuer_identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())


def write_private(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file in one step; nobody ever sees half of it or reads it with a wider mode."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _kept_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key in that file, made at the first call."""
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return key
    try:
        kept = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(str(path), f"cannot be read ({error}); remove it to have a new one") from None
    if not isinstance(kept, ec.EllipticCurvePrivateKey):
        raise ConfigError(str(path), "is no elliptic-curve key; remove it to have a new one")
    return kept


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])  # 64: its bound in X.520


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
