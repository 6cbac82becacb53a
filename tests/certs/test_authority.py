"""The authority's certificates, as OpenSSL, curl, Python and Node judge them."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import shutil
import socket
import ssl
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from rustunnel_py.certs.authority import AUTHORITY_LIFE, Authority
from rustunnel_py.errors import ConfigError
from rustunnel_py.wire.pin import is_pin, pin_of, pin_of_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = datetime.datetime.now(datetime.UTC)
GOOD = ("t.example.com", "abc.t.example.com")
FOREIGN = "victim.example.org"


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@contextlib.contextmanager
def listening(authority: Authority, names: tuple[str, ...], folder: Path) -> Iterator[int]:
    """A TLS server with a leaf for `names` that answers every connection with a short HTTP reply."""
    leaf = folder / "leaf.pem"
    leaf.write_bytes(authority.leaf(names, NOW).public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf, authority.leaf_key_path)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(30)

    def answer() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), plain:
                plain.settimeout(30)
                with context.wrap_socket(plain, server_side=True) as connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def python_accepts(ca: Path, port: int, name: str) -> bool:
    context = ssl.create_default_context(cafile=ca)
    if hasattr(ssl, "VERIFY_X509_STRICT"):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=name):
                return True
        except ssl.SSLCertVerificationError:
            return False


def curl_accepts(ca: Path, port: int, name: str) -> bool:
    where = name if name[0].isdigit() else f"{name}:{port}:127.0.0.1"
    resolve = [] if name[0].isdigit() else ["--resolve", where]
    command = [tool("curl"), "-sS", "--cacert", str(ca), *resolve, f"https://{name}:{port}/"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return done.returncode == 0 and done.stdout == b"ok"


def openssl_accepts(ca: Path, port: int, name: str) -> bool:
    how = "-verify_ip" if name[0].isdigit() else "-verify_hostname"
    command = [tool("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(ca)]
    command += ["-verify_return_error", how, name]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=60, check=False)
    return b"Verify return code: 0 (ok)" in done.stdout


def node_accepts(ca: Path, port: int, name: str) -> bool:
    asked = "host: name" if name[0].isdigit() else "host: '127.0.0.1', servername: name"
    script = f"""
        const [ca, port, name] = process.argv.slice(1);
        const tls = require('tls').connect({{port, {asked}, ca: require('fs').readFileSync(ca)}},
            () => process.exit(tls.authorized ? 0 : 1));
        tls.on('error', () => process.exit(1));
    """
    command = [tool("node"), "-e", script, str(ca), str(port), name]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("accepts", [python_accepts, curl_accepts, openssl_accepts, node_accepts])
def test_clients_accept_the_domain_and_loopback_and_nothing_else(tmp_path: Path, accepts) -> None:  # type: ignore[no-untyped-def]
    authority = Authority(tmp_path, "t.example.com", NOW)
    with listening(authority, ("t.example.com", "*.t.example.com", "localhost"), tmp_path) as port:
        for name in (*GOOD, "localhost", "127.0.0.1"):
            assert accepts(authority.ca_path, port, name), name
        assert not accepts(authority.ca_path, port, FOREIGN)
    # Even if its key were stolen: a leaf that names a foreign host is refused for every name.
    with listening(authority, ("t.example.com", FOREIGN), tmp_path) as port:
        assert not accepts(authority.ca_path, port, FOREIGN)
        assert not accepts(authority.ca_path, port, "t.example.com")


def test_one_label_domain(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "localhost", NOW)
    with listening(authority, ("abc.localhost",), tmp_path) as port:
        assert curl_accepts(authority.ca_path, port, "abc.localhost")
        assert not curl_accepts(authority.ca_path, port, "xyz.localhost")


def test_files(tmp_path: Path) -> None:
    Authority(tmp_path, "localhost", NOW)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"ca.pem": 0o644, "ca-key.pem": 0o600, "leaf-key.pem": 0o600}


def test_everything_is_kept(tmp_path: Path) -> None:
    first = Authority(tmp_path, "localhost", NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = Authority(tmp_path, "localhost", NOW + AUTHORITY_LIFE / 2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert again.pin == first.pin


def test_pin_is_that_of_every_leaf(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "localhost", NOW)
    later = authority.leaf(("b.localhost",), NOW + datetime.timedelta(days=400))
    assert is_pin(authority.pin)
    for leaf in (authority.leaf(("localhost",), NOW), later):
        assert pin_of_certificate(leaf.public_bytes(Encoding.DER)) == authority.pin
    command = [tool("openssl"), "pkey", "-in", str(authority.leaf_key_path), "-pubout", "-outform", "DER"]
    spki = subprocess.run(command, capture_output=True, check=True).stdout
    assert authority.pin == pin_of(spki) == f"sha256:{hashlib.sha256(spki).hexdigest()}"


def test_another_domain_gives_another_certificate_of_the_same_keys(tmp_path: Path) -> None:
    first = Authority(tmp_path, "localhost", NOW)
    text = first.ca_path.read_bytes()
    second = Authority(tmp_path, "t.example.com", NOW)
    assert second.pin == first.pin
    assert second.ca_path.read_bytes() != text


def test_an_old_authority_is_renewed_in_time(tmp_path: Path) -> None:
    first = Authority(tmp_path, "localhost", NOW)
    text = first.ca_path.read_bytes()
    later = NOW + AUTHORITY_LIFE - datetime.timedelta(days=80)
    leaf = Authority(tmp_path, "localhost", later).leaf(("localhost",), later)
    renewed = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    assert (tmp_path / "ca.pem").read_bytes() != text
    assert leaf.not_valid_after_utc < renewed.not_valid_after_utc
    leaf.verify_directly_issued_by(renewed)


def test_a_lost_certificate_comes_back_under_the_same_keys(tmp_path: Path) -> None:
    first = Authority(tmp_path, "localhost", NOW)
    (tmp_path / "ca.pem").unlink()
    again = Authority(tmp_path, "localhost", NOW)
    again.leaf(("localhost",), NOW).verify_directly_issued_by(
        x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    )
    assert again.pin == first.pin


@pytest.mark.parametrize("name", ["ca.pem", "ca-key.pem", "leaf-key.pem"])
def test_P13_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    Authority(tmp_path, "localhost", NOW)
    (tmp_path / name).write_text("nonsense")
    with pytest.raises(ConfigError, match=name):
        Authority(tmp_path, "localhost", NOW)
