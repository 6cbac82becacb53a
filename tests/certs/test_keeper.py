"""Which certificate is shown, and when it is changed."""

from __future__ import annotations

import datetime
import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from rustunnel_py.certs import keeper as keeping
from rustunnel_py.certs.keeper import Keeper
from rustunnel_py.config import TlsConfig
from rustunnel_py.errors import ConfigError
from rustunnel_py.transport.tls import choose_certificate, server_context
from rustunnel_py.wire.pin import pin_of_certificate

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime.datetime:
        return self.now


def new_context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def signing(folder: Path, domain: str, clock: Clock | None = None) -> Keeper:
    return Keeper(TlsConfig(), domain, folder, new_context=new_context, now=clock or Clock())


def shown(context: ssl.SSLContext) -> x509.Certificate:
    """The certificate that a client of this context sees."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    client = trusting.wrap_bio(to_client, to_server)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass
    der = client.getpeercert(True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


def names(context: ssl.SSLContext) -> list[str]:
    extension = shown(context).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    addresses = [str(address) for address in extension.value.get_values_for_type(x509.IPAddress)]
    return extension.value.get_values_for_type(x509.DNSName) + addresses


def pair(
    folder: Path, name: str, *, start: datetime.datetime = NOW - DAY, passphrase: bytes | None = None
) -> TlsConfig:
    """A self-signed pair valid for 10 days from `start`, in files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + 10 * DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = folder / f"{name}.pem", folder / f"{name}.key"
    cert_path.write_bytes(certificate.public_bytes(Encoding.PEM))
    lock = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    return TlsConfig(cert_path=str(cert_path), key_path=str(key_path))


def test_domain_with_a_dot_has_one_certificate_for_all(tmp_path: Path) -> None:
    keeper = signing(tmp_path, "t.example.com")
    context = keeper.choose("abc.t.example.com")
    assert names(context) == ["t.example.com", "*.t.example.com", "localhost", "127.0.0.1", "::1"]
    for name in (None, "t.example.com", "xyz.t.example.com", "localhost", "elsewhere.org"):
        assert keeper.choose(name) is context


def test_one_label_domain_has_one_certificate_a_name(tmp_path: Path) -> None:
    keeper = signing(tmp_path, "localhost")
    assert names(keeper.choose(None)) == ["localhost", "127.0.0.1", "::1"]
    assert names(keeper.choose("Abc.localhost.")) == ["abc.localhost"]
    assert keeper.choose("abc.localhost") is keeper.choose("ABC.LOCALHOST")
    for name in (
        "localhost",
        "a.b.localhost",
        "*.localhost",
        "a_b.localhost",
        ".localhost",
        "x" * 64 + ".localhost",
        "",
    ):
        assert keeper.choose(name) is keeper.choose(None)


def test_all_show_the_pin(tmp_path: Path) -> None:
    keeper = signing(tmp_path, "localhost")
    for name in (None, "abc.localhost"):
        assert pin_of_certificate(shown(keeper.choose(name)).public_bytes(Encoding.DER)) == keeper.pin
    assert keeper.ca_path == tmp_path / "ca.pem"
    assert not keeper.publicly_trusted


def test_contexts_kept_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_KEPT", 3)
    keeper = signing(tmp_path, "localhost")
    first, second = keeper.choose("one.localhost"), keeper.choose("two.localhost")
    assert keeper.choose("one.localhost") is first
    keeper.choose("three.localhost")
    keeper.choose("four.localhost")
    assert keeper.choose("one.localhost") is first
    assert keeper.choose("two.localhost") is not second


def test_no_file_stays_behind(tmp_path: Path) -> None:
    signing(tmp_path, "localhost").choose("abc.localhost")
    assert {path.name for path in tmp_path.iterdir()} == {"ca.pem", "ca-key.pem", "leaf-key.pem"}


def test_renewed_before_it_expires(tmp_path: Path) -> None:
    clock = Clock()
    keeper = signing(tmp_path, "localhost", clock)
    first = keeper.choose("abc.localhost")
    clock.now = NOW + 59 * DAY
    assert keeper.choose("abc.localhost") is first
    clock.now = NOW + 61 * DAY
    second = keeper.choose("abc.localhost")
    assert shown(second).not_valid_after_utc > clock.now + 89 * DAY
    assert pin_of_certificate(shown(second).public_bytes(Encoding.DER)) == keeper.pin


def test_configured_pair(tmp_path: Path) -> None:
    keeper = Keeper(pair(tmp_path, "t.example.com"), "t.example.com", tmp_path, new_context=new_context)
    assert names(keeper.choose("anything")) == ["t.example.com"]
    assert keeper.choose(None) is keeper.choose("abc.t.example.com")
    assert keeper.pin == pin_of_certificate(shown(keeper.choose(None)).public_bytes(Encoding.DER))
    assert keeper.ca_path is None
    assert not keeper.publicly_trusted
    assert not (tmp_path / "ca.pem").exists()


def test_publicly_trusted_is_what_the_system_trusts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = pair(tmp_path, "t.example.com")
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.cert_path))
    assert Keeper(tls, "t.example.com", tmp_path, new_context=new_context).publicly_trusted
    assert not Keeper(tls, "other.example.com", tmp_path, new_context=new_context).publicly_trusted


def refused(tls: TlsConfig, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        Keeper(tls, "t.example.com", folder, new_context=new_context)
    return str(caught.value)


def test_P13_bad_certificates(tmp_path: Path) -> None:
    good, other = pair(tmp_path, "a"), pair(tmp_path, "b")
    assert "is not the key of" in refused(TlsConfig(cert_path=good.cert_path, key_path=other.key_path), tmp_path)
    assert "has expired on" in refused(pair(tmp_path, "c", start=NOW - 11 * DAY), tmp_path)
    assert "is not valid before" in refused(pair(tmp_path, "d", start=NOW + DAY), tmp_path)
    assert "passphrase" in refused(pair(tmp_path, "e", passphrase=b"secret"), tmp_path)
    assert "no PEM certificate" in refused(TlsConfig(cert_path=good.key_path, key_path=good.key_path), tmp_path)
    assert "no private key" in refused(TlsConfig(cert_path=good.cert_path, key_path=good.cert_path), tmp_path)
    missing = str(tmp_path / "missing")
    assert refused(TlsConfig(cert_path=missing, key_path=good.key_path), tmp_path).startswith("tls.cert_path: ")
    assert refused(TlsConfig(cert_path=good.cert_path, key_path=missing), tmp_path).startswith("tls.key_path: ")


def test_reload_keeps_the_old_pair_until_the_new_one_loads(tmp_path: Path) -> None:
    tls = pair(tmp_path, "a")
    keeper = Keeper(tls, "a", tmp_path, new_context=new_context)
    first, pin = keeper.choose(None), keeper.pin
    content = (tmp_path / "a.pem").read_bytes()
    (tmp_path / "a.pem").write_text("half written")
    with pytest.raises(ConfigError):
        keeper.reload()
    assert keeper.choose(None) is first
    (tmp_path / "a.pem").write_bytes(content)
    keeper.reload()
    assert keeper.choose(None) is not first
    assert keeper.pin == pin
    pair(tmp_path, "a")
    keeper.reload()
    assert keeper.pin != pin


def test_a_listener_without_a_certificate_shows_what_the_keeper_chooses(tmp_path: Path) -> None:
    keeper = Keeper(TlsConfig(), "localhost", tmp_path)
    context = server_context()
    choose_certificate(context, keeper.choose)
    assert names(context) == ["localhost", "127.0.0.1", "::1"]
    assert pin_of_certificate(shown(context).public_bytes(Encoding.DER)) == keeper.pin


def test_check_certificates(tmp_path: Path) -> None:
    keeping.check_certificates(TlsConfig(), "t.example.com")
    keeping.check_certificates(pair(tmp_path, "a"), "a")
    with pytest.raises(ConfigError, match="has expired"):
        keeping.check_certificates(pair(tmp_path, "b", start=NOW - 11 * DAY), "b")
