"""The session files of the rs-tunnel CLI: the recorded vector, and what `rs-tunnel login-file` writes."""

from __future__ import annotations

import base64
import json
import stat
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from rustunnel_py.cli import commands
from rustunnel_py.client.rs_tunnel_files import Profile, Session, parse_api, seal, unseal, write_session
from rustunnel_py.errors import ConfigError
from rustunnel_py.model.access import Secret
from tests.support.golden import DATA

if TYPE_CHECKING:
    from pathlib import Path


def recorded() -> Any:
    first = (DATA / "rs-tunnel" / "17-credentials.jsonl").read_bytes().splitlines()[0]
    return json.loads(first)


def test_the_recorded_session_is_read() -> None:
    line = recorded()
    session = unseal(line["session_enc"], base64.b64decode(line["session_key"]))
    assert session == Session("fake-opaque-token", "none", 4102444800, Profile("ops@local"))


def test_what_is_sealed_has_the_recorded_shape() -> None:
    line = recorded()
    key = base64.b64decode(line["session_key"])
    text = seal(unseal(line["session_enc"], key), key, bytes(range(12)))
    ours, theirs = json.loads(text), json.loads(line["session_enc"])
    assert list(ours) == list(theirs) == ["iv", "tag", "data"]
    assert ours["iv"] == theirs["iv"]
    assert list(json.loads(line["plaintext"])) == ["accessToken", "refreshToken", "expiresAtEpochSec", "profile"]
    assert len(base64.b64decode(ours["tag"])) == 16
    assert unseal(text, key).access_token == "fake-opaque-token"


@pytest.mark.parametrize("text", ["", "{}", '{"iv":"","tag":"","data":""}', '{"iv":"AAAA","tag":"!","data":""}'])
def test_what_is_no_session(text: str) -> None:
    with pytest.raises(ValueError):
        unseal(text, bytes(32))


def test_the_command_writes_three_private_files(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        commands,
        ["rs-tunnel", "login-file", "--api", "http://127.0.0.1:4041/", "--home", str(tmp_path)],
        input="the-token\n",
        env={"RUSTUNNEL_TOKEN": None},
    )
    assert done.exit_code == 0, done.output
    folder = tmp_path / ".rs-tunnel"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "session.enc", "session.key"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert json.loads((folder / "config.json").read_text()) == {"apiBaseUrl": "http://127.0.0.1:4041"}
    session = unseal((folder / "session.enc").read_text(), base64.b64decode((folder / "session.key").read_text()))
    assert session.access_token == "the-token"
    assert len(session.refresh_token) >= 10
    assert session.expires_at_epoch_sec > 4_000_000_000
    assert "@" in session.profile.email
    assert b"the-token" not in (folder / "session.enc").read_bytes()


def test_the_clis_own_key_is_kept(tmp_path: Path) -> None:
    write_session(tmp_path, "http://localhost:1", Secret("one"))
    key = (tmp_path / ".rs-tunnel" / "session.key").read_text()
    write_session(tmp_path, "http://localhost:1", Secret("two"))
    assert (tmp_path / ".rs-tunnel" / "session.key").read_text() == key
    (tmp_path / ".rs-tunnel" / "session.key").write_text("broken")
    write_session(tmp_path, "http://localhost:1", Secret("three"))
    assert len(base64.b64decode((tmp_path / ".rs-tunnel" / "session.key").read_text())) == 32


@pytest.mark.parametrize("url", ["http://localhost:4041", "https://dash.example.com/prefix", "http://[::1]:4041"])
def test_base_urls(url: str) -> None:
    assert parse_api(url + "//") == url


@pytest.mark.parametrize(
    "url", ["", "localhost:4041", "ftp://x", "https://", "http://x:99999", "http://u@x", "http://x?y", "http://x y"]
)
def test_what_is_no_base_url(url: str) -> None:
    with pytest.raises(ConfigError, match="--api"):
        parse_api(url)


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_session(tmp_path / "file", "http://localhost:1", Secret("x"))
