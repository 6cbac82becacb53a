"""A certificate from elsewhere and its key, in two PEM files: checked, and loaded into a context."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from rustunnel_py.errors import ConfigError
from rustunnel_py.wire.pin import pin_of_certificate

if TYPE_CHECKING:
    import datetime
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pair:
    """A loaded pair. `names` are its host names in lower case, wildcards as `*.example.com`."""

    context: ssl.SSLContext
    names: tuple[str, ...]
    pin: str
    ends: datetime.datetime


def load_pair(
    cert: Path, key: Path, context: ssl.SSLContext, now: datetime.datetime, cert_setting: str, key_setting: str
) -> Pair:
    """Load both into `context`. ConfigError says what is wrong, and which setting it is about."""
    leaf = _leaf_of(cert, now, cert_setting)
    try:
        # The empty passphrase keeps OpenSSL from asking for one on the terminal.
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(key_setting, f"{key} is not the key of {cert}") from None
        raise ConfigError(key_setting, f"{key} is no private key without passphrase ({error.reason})") from None
    except OSError as error:
        raise ConfigError(key_setting, f"{key}: {error.strerror}") from None
    return Pair(context, _names_of(leaf), pin_of_certificate(leaf.public_bytes(Encoding.DER)), leaf.not_valid_after_utc)


def files_of(entry: Path) -> tuple[Path, Path] | None:
    """The certificate and the key that a folder's entry stands for."""
    if entry.suffix == ".pem":
        key = entry.with_suffix(".key")
        return (entry, key) if key.exists() else None
    cert, key = entry / "fullchain.pem", entry / "privkey.pem"
    return (cert, key) if cert.exists() and key.exists() else None


def fingerprint(*files: Path) -> tuple[object, ...]:
    """Differs when one of the files was written, replaced, or led elsewhere by a link."""
    prints: list[object] = []
    for file in files:
        try:
            found = file.stat()
        except OSError:
            prints.append(None)
        else:
            prints.append((found.st_ino, found.st_mtime_ns, found.st_size))
    return tuple(prints)


def _leaf_of(cert: Path, now: datetime.datetime, setting: str) -> x509.Certificate:
    """The first certificate of a file, which must be valid today."""
    try:
        leaf = x509.load_pem_x509_certificates(cert.read_bytes())[0]
    except OSError as error:
        raise ConfigError(setting, f"{cert}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(setting, f"{cert} holds no PEM certificate") from None
    if now > leaf.not_valid_after_utc:
        raise ConfigError(setting, f"{cert} has expired on {leaf.not_valid_after_utc:%Y-%m-%d}")
    if now < leaf.not_valid_before_utc:
        raise ConfigError(setting, f"{cert} is not valid before {leaf.not_valid_before_utc:%Y-%m-%d}")
    return leaf


def _names_of(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(name.lower() for name in extension.value.get_values_for_type(x509.DNSName))
