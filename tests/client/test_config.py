"""Words, files, environment and flags become one struct, or a sentence that says what is wrong."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from rustunnel_py.client.config import (
    CaFile,
    Flags,
    HttpTunnel,
    LocalAddress,
    Login,
    Pin,
    Scheme,
    ServerAddress,
    SystemTrust,
    TcpTunnel,
    check_tunnel,
    parse_host_header,
    parse_local,
    parse_pin,
    parse_server,
    parse_token,
)
from rustunnel_py.client.sources import find_login, login_path, machine_id, read_agent_file, read_login, write_login
from rustunnel_py.errors import ConfigError
from rustunnel_py.model.access import Secret

PIN = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3000", LocalAddress("localhost", 3000)),
        (":3000", LocalAddress("localhost", 3000)),
        ("localhost:3000", LocalAddress("localhost", 3000)),
        ("APP.internal:80", LocalAddress("app.internal", 80)),
        ("[::1]:3000", LocalAddress("::1", 3000)),
        ("http://127.0.0.1", LocalAddress("127.0.0.1", 80)),
        ("https://host", LocalAddress("host", 443, Scheme.HTTPS)),
        ("https://host:3000/", LocalAddress("host", 3000, Scheme.HTTPS)),
    ],
)
def test_local_address(text: str, expected: LocalAddress) -> None:
    assert parse_local(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "host", "0", "70000", "-1", "3000x", "٣٠٠٠", "ftp://x:1", "http://x:1/path", "a b:1", "[::1", "::1:x", "x:y"],
)
def test_local_address_that_cannot_be_used(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^local: "):
        parse_local(text)


def test_local_address_of_a_tcp_tunnel_has_no_scheme() -> None:
    with pytest.raises(ConfigError, match="without a scheme"):
        parse_local("http://x:1", tcp=True)


def test_server_address() -> None:
    assert parse_server("T.example") == ServerAddress("t.example", 4040)
    assert parse_server("[::1]:99") == ServerAddress("::1", 99)
    assert parse_server("::1") == ServerAddress("::1", 4040)
    assert str(ServerAddress("::1", 99)) == "[::1]:99"
    for bad in ("", "https://x", "x/y", "x:0", ":1", "a@b"):
        with pytest.raises(ConfigError):
            parse_server(bad)


def test_pin_and_token_and_host() -> None:
    assert parse_pin("SHA256:" + ":".join(["AB"] * 32)) == Pin(PIN)
    for bad in ("", "sha256:", "ab" * 32, "sha1:" + "ab" * 20, PIN + "0"):
        with pytest.raises(ConfigError):
            parse_pin(bad)
    assert parse_token(" abc\n").reveal() == "abc"
    for bad in ("", "\n", "a\x00b", "a" * 5000):
        with pytest.raises(ConfigError) as caught:
            parse_token(bad)
        assert not bad.strip() or bad not in str(caught.value)
    for bad in ("", "a b", "a\r\nx", "a/b", "x" * 300):
        with pytest.raises(ConfigError):
            parse_host_header(bad)


def test_host_header_rewrite_is_the_local_address() -> None:
    assert HttpTunnel(LocalAddress("app", 3000), host_header="rewrite").sent_host == "app:3000"
    assert HttpTunnel(LocalAddress("::1", 80), host_header="rewrite").sent_host == "[::1]"
    assert HttpTunnel(LocalAddress("app", 443, Scheme.HTTPS), host_header="rewrite").sent_host == "app"
    assert HttpTunnel(LocalAddress("app", 1), host_header="other").sent_host == "other"
    assert HttpTunnel(LocalAddress("app", 1)).sent_host is None


@pytest.mark.parametrize(
    "tunnel",
    [
        HttpTunnel(LocalAddress("a", 1), local_insecure=True),
        HttpTunnel(LocalAddress("a", 1, Scheme.HTTPS), proxy_protocol=2),
        HttpTunnel(LocalAddress("a", 1), proxy_protocol=3),  # type: ignore[arg-type]
        HttpTunnel(LocalAddress("a", 1), subdomain="a.b"),
    ],
)
def test_combination_that_cannot_work_is_refused(tunnel: HttpTunnel) -> None:
    with pytest.raises(ConfigError):
        check_tunnel(tunnel, "x")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home"), "XDG_STATE_HOME": str(tmp_path / "state")}


def test_login_file_round_trip_is_private_and_whole(environ: dict[str, str]) -> None:
    path = login_path(environ)
    assert path == Path(environ["HOME"]) / ".config/rustunnel-py/login.toml"
    assert read_login(path) is None
    login = Login(ServerAddress("a.example", 4040), Secret('quo"te\\'), Pin(PIN))
    write_login(path, login)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["login.toml"]
    back = read_login(path)
    assert back is not None
    assert (back.server, back.token.reveal(), back.trust) == (login.server, 'quo"te\\', login.trust)
    path.write_text('server = "a"\ntoken = "x"\npni = "x"\n')
    with pytest.raises(ConfigError, match="did you mean 'pin'"):
        read_login(path)
    path.write_text('server = "a"\ntoken = 5\n')
    with pytest.raises(ConfigError, match="log in again"):
        read_login(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not TOML"):
        read_login(path)


def test_flag_then_environment_then_file_then_login(environ: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rustunnel-py login"):
        find_login(Flags(), environ)
    write_login(login_path(environ), Login(ServerAddress("kept"), Secret("kept-token"), Pin(PIN)))
    found = find_login(Flags(), environ)
    assert (found.server.host, found.token.reveal(), found.trust) == ("kept", "kept-token", Pin(PIN))

    ca = tmp_path / "ca.pem"
    ca.write_text("x")
    environ |= {"RUSTUNNEL_TOKEN": "env-token", "RUSTUNNEL_CA": str(ca)}
    found = find_login(Flags(), environ)
    assert (found.server.host, found.token.reveal(), found.trust) == ("kept", "env-token", CaFile(ca))

    environ["RUSTUNNEL_SERVER"] = "env:1"
    assert find_login(Flags(), environ).server == ServerAddress("env", 1)
    other = "sha256:" + "cd" * 32
    found = find_login(Flags(server="flag", pin=other), environ)
    assert (found.server.host, found.trust) == ("flag", Pin(other))


def test_token_and_pin_of_the_login_never_go_to_another_server(environ: dict[str, str]) -> None:
    write_login(login_path(environ), Login(ServerAddress("kept"), Secret("kept-token"), Pin(PIN)))
    environ["RUSTUNNEL_SERVER"] = "other"
    with pytest.raises(ConfigError, match="no token for other:4040"):
        find_login(Flags(), environ)
    environ["RUSTUNNEL_TOKEN"] = "t"
    assert find_login(Flags(), environ).trust == SystemTrust()


AGENT = f"""
server = "t.example"
pin = "{PIN}"
websocket = true

[tunnels.web]
protocol = "http"
local = 3000
subdomain = "web"
host_header = "rewrite"

[tunnels.db]
protocol = "tcp"
local = "db:5432"
port = 20005
"""


def test_agent_file(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(AGENT)
    file = read_agent_file(path)
    assert file.tunnels == (
        HttpTunnel(LocalAddress("localhost", 3000), "web", "rewrite"),
        TcpTunnel(LocalAddress("db", 5432), 20005),
    )
    assert file.options.websocket
    found = find_login(Flags(), {"HOME": str(tmp_path), "RUSTUNNEL_TOKEN": "t"}, file)
    assert (found.server.host, found.trust) == ("t.example", Pin(PIN))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "names no tunnel"),
        ("[tunnels.a]\nprotocol='http'\nlocal=3000\nsubdomian='x'", r"tunnels\.a\.subdomian.*did you mean 'subdomain'"),
        ("[tunnels.a]\nprotocol='tcp'\nlocal=3000\nsubdomain='x'", r"tunnels\.a\.subdomain"),
        ("[tunnels.a]\nprotocol='udp'\nlocal=3000", r"tunnels\.a\.protocol"),
        ("[tunnels.a]\nprotocol='http'", r"tunnels\.a.*local"),
        ("[tunnels.a]\nprotocol='http'\nlocal=true", r"tunnels\.a"),
        ("[tunnels.a]\nprotocol='http'\nlocal=99999", r"tunnels\.a\.local"),
        ("[tunnels.a]\nprotocol='tcp'\nlocal=1\nport=0", r"tunnels\.a\.port"),
        ("token = 'x'", "token.*no known key"),
        ("tunnels = 3", "tunnels"),
    ],
)
def test_agent_file_that_cannot_be_used_names_the_key(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_agent_file(path)
    assert re.search(named, str(caught.value))


def test_token_file_beside_the_agent_file(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("server='t'\ntoken_file='tok'\n[tunnels.a]\nprotocol='tcp'\nlocal=1")
    file = read_agent_file(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        find_login(Flags(), {"HOME": str(tmp_path)}, file)
    (tmp_path / "tok").write_text("secret\n")
    assert find_login(Flags(), {"HOME": str(tmp_path)}, file).token.reveal() == "secret"


def test_machine_id_is_made_once_and_kept(environ: dict[str, str]) -> None:
    made = machine_id(environ)
    assert made is not None
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert machine_id(environ) == made
    kept = Path(environ["XDG_STATE_HOME"]) / "rustunnel-py-agent/machine"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    kept.write_text("rubbish")
    assert machine_id(environ) not in (made, None)


def test_machine_id_without_a_folder_to_keep_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert machine_id({"HOME": "/", "XDG_STATE_HOME": str(tmp_path / "file")}) is None
