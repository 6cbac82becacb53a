"""The pin of a server: a name for its public key that outlives every certificate.

pin = "sha256:" + 64 lower-case hex digits of SHA-256 over the SubjectPublicKeyInfo, DER (RFC 5280, 4.1)
"""

from __future__ import annotations

import hashlib
import re

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_PIN = re.compile(r"sha256:[0-9a-f]{64}")


def is_pin(text: str) -> bool:
    return _PIN.fullmatch(text) is not None


def pin_of(spki_der: bytes) -> str:
    """The pin of a SubjectPublicKeyInfo in DER."""
    return f"sha256:{hashlib.sha256(spki_der).hexdigest()}"


def pin_of_certificate(der: bytes) -> str:
    """The pin of a certificate in DER, as `getpeercert(True)` gives it. ValueError: it is none."""
    key = x509.load_der_x509_certificate(der).public_key()
    return pin_of(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
