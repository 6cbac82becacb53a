"""Certificates in a folder: both layouts, which one is shown, and what a bad one costs."""

from __future__ import annotations

import datetime
import ssl
from typing import TYPE_CHECKING

import pytest

from rustunnel_py.certs import folder as folders
from rustunnel_py.certs.folder import CertificateFolder
from rustunnel_py.certs.keeper import Keeper, check_certificates
from rustunnel_py.config import TlsConfig
from rustunnel_py.errors import ConfigError
from tests.support.certificates import make_pair

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime.datetime.now(datetime.UTC)


def new_context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def put(folder: Path, stem: str, *names: str, days: float = 30) -> None:
    pem, key = make_pair(names, days=days)
    (folder / f"{stem}.pem").write_bytes(pem)
    (folder / f"{stem}.key").write_bytes(key)


def put_certbots(folder: Path, lineage: str, *names: str) -> None:
    """As certbot has it: `live/NAME` holds links into `archive`."""
    pem, key = make_pair(names)
    archive = folder.parent / "archive"
    archive.mkdir(exist_ok=True)
    (folder / lineage).mkdir()
    for name, content in (("fullchain", pem), ("privkey", key)):
        (archive / f"{lineage}-{name}1.pem").write_bytes(content)
        (folder / lineage / f"{name}.pem").symlink_to(archive / f"{lineage}-{name}1.pem")


@pytest.fixture
def live(tmp_path: Path) -> Path:
    made = tmp_path / "live"
    made.mkdir()
    return made


def loaded(live: Path) -> CertificateFolder:
    folder = CertificateFolder(live, new_context)
    folder.load(NOW)
    return folder


def test_both_layouts_side_by_side(live: Path) -> None:
    put(live, "one", "one.example", "www.one.example")
    put_certbots(live, "two.example", "two.example", "*.two.example")
    (live / "README").write_text("certbot's")
    (live / "chain.pem").write_text("no pair: it has no key")
    folder = loaded(live)
    assert folder.troubles == {}
    assert folder.find("one.example") is folder.find("www.one.example") is not None
    assert folder.find("two.example") is folder.find("any.two.example") is not None
    for name in ("example", "deep.any.two.example", "x.one.example", "", "*.two.example.org"):
        assert folder.find(name) is None


def test_a_name_goes_before_a_wildcard_and_the_longer_valid_among_equals(live: Path) -> None:
    put(live, "a", "*.example.org", days=90)
    put(live, "b", "app.example.org", days=10)
    put(live, "c", "app.example.org", days=20)
    folder = loaded(live)
    found = folder.find("app.example.org")
    assert found is not None
    assert found.names == ("app.example.org",)
    assert (found.ends - NOW).days in (19, 20)
    other = folder.find("other.example.org")
    assert other is not None
    assert other.names == ("*.example.org",)


def test_S13_a_bad_pair_costs_its_own_names_only(live: Path) -> None:
    put(live, "good", "good.example")
    put(live, "old", "old.example", days=-1)
    put(live, "wrong", "wrong.example")
    (live / "wrong.key").write_bytes((live / "good.key").read_bytes())
    (live / "half.pem").write_text("-----BEGIN CERTIFICATE-----\nMII")
    (live / "half.key").write_text("")
    folder = loaded(live)
    assert folder.find("good.example") is not None
    assert folder.find("old.example") is folder.find("wrong.example") is None
    assert "has expired" in folder.troubles["old.pem"]
    assert "is not the key of" in folder.troubles["wrong.pem"]
    assert "no PEM certificate" in folder.troubles["half.pem"]
    assert not folder.changed()  # nothing is read again until a file changes


def test_S13_only_what_changed_is_read_again(live: Path) -> None:
    put(live, "one", "one.example")
    put(live, "two", "two.example")
    folder = loaded(live)
    one, two = folder.find("one.example"), folder.find("two.example")
    assert not folder.changed()
    put(live, "two", "two.example")
    assert folder.changed()
    folder.load(NOW)
    assert folder.find("one.example") is one
    assert folder.find("two.example") is not two
    assert not folder.changed()


def test_the_number_of_pairs_is_bounded(live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "PAIRS_MAX", 2)
    for name in ("a", "b"):
        put(live, name, f"{name}.example")
    loaded(live)
    put(live, "c", "c.example")
    with pytest.raises(ConfigError, match="more than 2"):
        loaded(live)


def test_P13_a_folder_that_is_not_there_and_a_check_of_what_is(live: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls\.cert_folder.*No such file"):
        loaded(tmp_path / "nowhere")
    tls = TlsConfig(cert_folder=str(live))
    put(live, "good", "good.example")
    check_certificates(tls, "t.example.com")
    put(live, "old", "old.example", days=-1)
    with pytest.raises(ConfigError, match=r"^tls\.cert_folder: .*old\.pem has expired"):
        check_certificates(tls, "t.example.com")


def test_the_domains_own_certificate_may_be_in_the_folder(live: Path, tmp_path: Path) -> None:
    """Then its key is the server's pin, and it is what a peer without a name gets."""
    (tmp_path / "data").mkdir()
    put(live, "mine", "t.example.com", "*.t.example.com")
    keeper = Keeper(TlsConfig(cert_folder=str(live)), "t.example.com", tmp_path / "data", new_context=new_context)
    found = loaded(live).find("t.example.com")
    assert found is not None
    assert keeper.pin == found.pin
    assert keeper.choose(None) is keeper.choose("t.example.com") is keeper.choose("APP.t.example.com.")
    assert keeper.choose("elsewhere.org") is not keeper.choose(None)
    assert not keeper.publicly_trusted
    assert keeper.ca_path is None
