"""The command line: what it parses, what it calls, how it ends."""

from __future__ import annotations

import http.server
import json
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from click.testing import CliRunner

from rustunnel_py import cli
from rustunnel_py.client.config import (
    AgentConfig,
    HttpTunnel,
    LocalAddress,
    Login,
    Pin,
    Scheme,
    ServerAddress,
    SystemTrust,
    TcpTunnel,
)
from rustunnel_py.client.failure import NameRefused, TokenRefused
from rustunnel_py.config import Config, keys
from rustunnel_py.errors import ConfigError, PortInUse, StoreBroken
from rustunnel_py.store.folder import ApiAddress, DataFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rustunnel_py.model.access import Secret

ROOT = Path(__file__).parent.parent


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An empty home and no variable of ours; also this process's own for as long as the test runs."""
    for name in list(os.environ):
        if name.startswith(("RUSTUNNEL_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(environment: dict[str, str], *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rustunnel_py", *words]
    return subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["serve", "--check", "--http-port", "70000"], "server.http_port: 70000"),
        (["serve", "--config", "/nowhere/server.toml"], "--config: /nowhere/server.toml: No such file"),
        (["serve", "--check", "--cert", "/nowhere.pem", "--key", "/nowhere.key"], "tls.cert_path: /nowhere.pem"),
        (["token", "show-admin", "--data", "/nowhere"], "--data: /nowhere is no folder"),
        (["http", "0"], "0"),
        (["http", "3000"], "rustunnel-py login"),
        (["start", "/nowhere.toml"], "/nowhere.toml"),
    ],
)
def test_P13_a_setting_that_cannot_be_used_is_one_line_and_code_2(
    environment: dict[str, str], words: list[str], line: str
) -> None:
    done = run(environment, *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("rustunnel-py: ")
    assert line in done.stderr


def test_P13_unknown_option(environment: dict[str, str]) -> None:
    done = run(environment, "serve", "--colour")
    assert done.returncode == 2
    assert "--colour" in done.stderr


def test_P13_unknown_key_in_file_and_environment(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("[server]\ndomian = 'x'\n")
    assert "nearest is server.domain" in run(environment, "serve", "--check", "--config", str(file)).stderr
    done = run(environment, "serve", "--check", RUSTUNNEL_LIMITS__RATE="3")
    assert (done.returncode, "RUSTUNNEL_LIMITS__RATE" in done.stderr) == (2, True)


def test_check_leaves_nothing_behind(environment: dict[str, str], tmp_path: Path) -> None:
    done = run(environment, "serve", "--check", "--data", str(tmp_path / "data"))
    assert (done.returncode, done.stdout) == (0, "the settings can be used\n")
    assert not (tmp_path / "data").exists()


def test_every_flag_of_serve_sets_its_key(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "--domain": "t.example.com",
        "--host": "127.0.0.1",
        "--http-port": "1",
        "--https-port": "2",
        "--control-port": "3",
        "--dashboard-port": "4",
        "--dashboard-host": "::1",
        "--drain-seconds": "5",
        "--cert": "/c.pem",
        "--key": "/k.pem",
        "--cert-folder": "/live",
        "--tcp-ports": "6-7",
        "--log-level": "debug",
        "--log-format": "json",
    }
    truths = ["--dashboard-tls", "--no-require-auth", "--open-to-the-world"]
    seen: dict[str, Config] = {}
    pumps: list[str] = []

    def serve_command(config: Config, data: object, *, executable: str, pump_kind: str) -> int:
        seen["config"] = config
        pumps.append(pump_kind)
        return 0

    monkeypatch.setattr("rustunnel_py.server.serve_command", serve_command, raising=False)
    words = [word for pair in given.items() for word in pair] + truths
    assert CliRunner().invoke(cli.commands, ["serve", *words]).exit_code == 0
    known = {key.dotted: key for key in keys()}
    for dotted, *_ in cli.SERVE_FLAGS:
        value = getattr(getattr(seen["config"], known[dotted].table), known[dotted].name)
        if dotted != "server.dashboard_plain":
            assert value != known[dotted].default, dotted
    assert seen["config"].limits.tcp_port_range == (6, 7)
    assert CliRunner().invoke(cli.commands, ["serve", "--dashboard-plain"]).exit_code == 0
    assert seen["config"].server.dashboard_plain
    assert CliRunner().invoke(cli.commands, ["serve"], env={"RUSTUNNEL_PUMP": "epoll"}).exit_code == 0
    assert CliRunner().invoke(cli.commands, ["serve"], env={"RUSTUNNEL_PUMP": "bicycle"}).exit_code == 2
    assert pumps == ["auto", "auto", "epoll"]


@pytest.mark.usefixtures("environment")
class TestLogin:
    @pytest.fixture
    def seen(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, object, object]]:
        """What `login` is called with: server, token, pin, whether there is somebody to ask."""
        seen: list[tuple[str, str, object, object]] = []

        async def login(server: ServerAddress, *, token: Secret, pin: object, confirm: object, **_: object) -> Login:
            seen.append((str(server), token.reveal(), pin, confirm))
            return Login(server, token, SystemTrust())

        monkeypatch.setattr("rustunnel_py.client.login.login", login)
        return seen

    def test_token_from_standard_input(self, seen: list[object]) -> None:
        pin = "sha256:" + "ab" * 32
        outcome = CliRunner().invoke(cli.commands, ["login", "T.example:99", "--pin", pin], input="hush\n")
        assert outcome.exit_code == 0
        assert "logged in to t.example:99" in outcome.stdout
        assert "hush" not in outcome.output
        assert seen == [("t.example:99", "hush", Pin(pin), None)]

    def test_token_from_the_environment(self, seen: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RUSTUNNEL_TOKEN", "of-the-environment")
        outcome = CliRunner().invoke(cli.commands, ["login", "t.example"], input="hush\n")
        assert "RUSTUNNEL_TOKEN" in outcome.stderr
        assert seen == [("t.example:4040", "of-the-environment", None, None)]

    def test_no_token(self, seen: list[object]) -> None:
        outcome = CliRunner().invoke(cli.commands, ["login", "t.example"], input="")
        assert str(outcome.exception) == "standard input: the token is empty"
        assert seen == []


@pytest.mark.usefixtures("environment")
class TestAgent:
    """The commands that open tunnels, up to the agent itself."""

    @pytest.fixture
    def seen(self, monkeypatch: pytest.MonkeyPatch) -> list[AgentConfig]:
        seen: list[AgentConfig] = []

        async def run_agent(config: AgentConfig, screen: object, *, pump_kind: str) -> int:
            seen.append(config)
            return 4

        monkeypatch.setattr("rustunnel_py.client.agent.run_agent", run_agent)
        monkeypatch.setenv("RUSTUNNEL_SERVER", "t.example")
        monkeypatch.setenv("RUSTUNNEL_TOKEN", "hush")
        return seen

    def run(self, *words: str) -> int:
        return CliRunner().invoke(cli.commands, words).exit_code

    def test_http(self, seen: list[AgentConfig]) -> None:
        options = ["--subdomain", "web", "--host-header", "rewrite", "--take-over", "--local-insecure"]
        assert self.run("http", "https://app:3000", *options) == 4
        local = LocalAddress("app", 3000, Scheme.HTTPS)
        assert seen[0].tunnels == (HttpTunnel(local, "web", "rewrite", local_insecure=True, take_over=True),)
        assert (str(seen[0].login.server), seen[0].login.token.reveal()) == ("t.example:4040", "hush")
        assert not seen[0].options.websocket
        assert self.run("http", "3000", "--proxy-protocol", "v2", "--websocket", "--server", "other:9") == 4
        assert seen[1].tunnels == (HttpTunnel(LocalAddress("localhost", 3000), proxy_protocol=2),)
        assert (str(seen[1].login.server), seen[1].options.websocket) == ("other:9", True)

    def test_tcp(self, seen: list[AgentConfig]) -> None:
        assert self.run("tcp", "db:5432", "--port", "20005") == 4
        assert seen[0].tunnels == (TcpTunnel(LocalAddress("db", 5432), 20005),)

    def test_start(self, seen: list[AgentConfig], tmp_path: Path) -> None:
        file = tmp_path / "agent.toml"
        file.write_text(
            "server = 'of-the-file'\nwebsocket = true\n[tunnels.a]\nprotocol = 'http'\nlocal = 3000\n"
            "[tunnels.b]\nprotocol = 'tcp'\nlocal = 22\n"
        )
        assert self.run("start", str(file)) == 4
        wanted = (HttpTunnel(LocalAddress("localhost", 3000)), TcpTunnel(LocalAddress("localhost", 22)))
        assert (seen[0].tunnels, seen[0].options.websocket) == (wanted, True)
        assert str(seen[0].login.server) == "t.example:4040"  # the environment goes first

    def test_an_exit_code_of_the_agent_is_that_of_the_process(self) -> None:
        assert cli.exit_code(TokenRefused("no")) == 3
        assert cli.exit_code(NameRefused("no")) == 4


def test_data_folder() -> None:
    assert cli.data_path(Path("/x"), {"XDG_STATE_HOME": "/state"}) == Path("/x")
    assert cli.data_path(None, {"XDG_STATE_HOME": "/state"}) == Path("/state/rustunnel-py")
    for unset in ({}, {"XDG_STATE_HOME": ""}, {"XDG_STATE_HOME": "relative"}):
        assert cli.data_path(None, unset) == Path.home() / ".local/state/rustunnel-py"
    assert cli.data_path(Path("x"), {}).is_absolute()


def test_the_executable_is_absolute_and_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/my tools/rustunnel-py", "serve"])
    assert cli.executable() == "'/opt/my tools/rustunnel-py'"
    monkeypatch.setattr(sys, "argv", [str(ROOT / "rustunnel_py" / "__main__.py")])
    assert shlex.split(cli.executable()) == [sys.executable, "-m", "rustunnel_py"]


def test_exit_codes() -> None:
    assert cli.exit_code(ConfigError("key", "no")) == 2
    assert cli.exit_code(PortInUse("server.http_port", "taken")) == 2
    assert cli.exit_code(StoreBroken("no")) == 1


@pytest.mark.parametrize("words", [["--help"], ["http", "--help"], ["serve", "--help"], ["--version"]])
def test_help_imports_neither_half(environment: dict[str, str], words: list[str]) -> None:
    script = f"""
import sys
from click.testing import CliRunner
from rustunnel_py.cli import commands
assert CliRunner().invoke(commands, {words!r}).exit_code == 0
print([name for name in ("trio", "cryptography", "quart", "rustunnel_py.server") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class FakeApi(http.server.BaseHTTPRequestHandler):
    """`/api/tokens` and `/api/status` of a running server, over a dict."""

    tokens: ClassVar[dict[str, dict[str, str | None]]] = {}

    def answer(self, status: int, content: object) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def let_in(self) -> bool:
        if self.headers["Authorization"] == "Bearer the-admin-token":
            return True
        self.answer(401, {"error": "invalid token"})
        return False

    def do_GET(self) -> None:
        if self.path == "/api/status":
            self.answer(200, {"ok": True})
        elif self.let_in():
            self.answer(200, list(self.tokens.values()))

    def do_POST(self) -> None:
        wish = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.let_in():
            self.tokens["id-1"] = {"id": "id-1", "created_at": "2025-01-01T00:00:00Z", "token_hash": "x", **wish}
            self.answer(201, {"id": "id-1", "label": wish["label"], "token": "raw-token"})

    def do_DELETE(self) -> None:
        if self.let_in():
            found = self.tokens.pop(self.path.removeprefix("/api/tokens/"), None)
            self.answer(*((204, None) if found else (404, {"error": "token not found"})))

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def running(tmp_path: Path) -> Iterator[DataFolder]:
    """A data folder as a running server has it."""
    FakeApi.tokens.clear()
    folder = DataFolder(tmp_path / "data")
    folder.write_private("admin-token", "the-admin-token\n")
    with folder.lock(), http.server.HTTPServer(("127.0.0.1", 0), FakeApi) as api:
        thread = threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        folder.publish_address(ApiAddress(f"http://127.0.0.1:{api.server_port}"))
        yield folder
        api.shutdown()
        thread.join()


def token(folder: DataFolder, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error or the error's sentence."""
    outcome = CliRunner().invoke(cli.commands, ["token", *words, "--data", str(folder.path)])
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        return 1, outcome.stdout, str(outcome.exception)
    return outcome.exit_code, outcome.stdout, outcome.stderr


@pytest.mark.usefixtures("environment")
class TestTokensOfARunningServer:
    def test_create_list_delete(self, running: DataFolder) -> None:
        code, printed, said = token(running, "create", "ci deploy", "--scope", "ci-*")
        assert (code, printed) == (0, "raw-token\n")
        assert "only now" in said
        assert token(running, "list")[:2] == (0, "id-1  2025-01-01T00:00:00Z  ci deploy  ci-*\n")
        assert token(running, "delete", "id-1")[0] == 0
        assert token(running, "list")[:2] == (0, "")

    def test_unknown_token(self, running: DataFolder) -> None:
        assert token(running, "delete", "a/b") == (1, "", "the server refused: token not found")

    def test_wrong_admin_token(self, running: DataFolder) -> None:
        running.write_private("admin-token", "another\n")
        assert token(running, "list") == (1, "", "the server refused: invalid token")

    def test_configured_admin_token(self, running: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        running.write_private("admin-token", "another\n")
        monkeypatch.setenv("RUSTUNNEL_AUTH__ADMIN_TOKEN", "the-admin-token")
        assert token(running, "list")[0] == 0

    def test_show_admin(self, running: DataFolder) -> None:
        assert token(running, "show-admin")[:2] == (0, "the-admin-token\n")

    def test_health(self, running: DataFolder) -> None:
        words = ["health", "--data", str(running.path)]
        assert CliRunner().invoke(cli.commands, words).exit_code == 0
        running.withdraw_address()
        assert CliRunner().invoke(cli.commands, words).exit_code == 1
        running.publish_address(ApiAddress("http://127.0.0.1:1"))
        assert CliRunner().invoke(cli.commands, words).exit_code == 1


@pytest.mark.usefixtures("environment")
class TestTokensOfAServerThatDoesNotRun:
    def test_create_list_delete(self, tmp_path: Path) -> None:
        folder = DataFolder(tmp_path / "data")
        code, printed, said = token(folder, "create", "ci deploy", "--scope", "ci-*")
        assert code == 0
        assert said.count("\n") == 1
        code, listed, _ = token(folder, "list")
        token_id, created_at, rest = listed.split("  ", 2)
        assert rest == "ci deploy  ci-*\n"
        assert created_at.endswith("Z")
        assert printed.strip() not in listed
        assert token(folder, "delete", token_id)[0] == 0
        assert token(folder, "list")[:2] == (0, "")
        assert token(folder, "delete", token_id) == (1, "", "token not found")

    def test_a_token_that_reads_for_another(self, tmp_path: Path) -> None:
        folder = DataFolder(tmp_path / "data")
        token(folder, "create", "agent")
        agent_id = token(folder, "list")[1].split()[0]
        assert token(folder, "create", "reader", "--reads", agent_id.upper())[0] == 0
        assert token(folder, "create", "of admin", "--role", "read", "--reads", "admin")[0] == 0
        lines = token(folder, "list")[1].splitlines()
        assert lines[1].endswith(f"reader  all names  role read  of {agent_id}")
        assert lines[2].endswith("of admin  all names  role read  of admin")
        code, printed, said = token(folder, "create", "x", "--role", "agent", "--reads", "admin")
        assert (code, printed, said) == (1, "", "reads: goes with the role read")

    def test_a_bad_scope_is_refused(self, tmp_path: Path) -> None:
        code, printed, said = token(DataFolder(tmp_path / "data"), "create", "x", "--scope", " ")
        assert (code, printed) == (1, "")
        assert "scope" in said

    def test_while_the_folder_is_held_the_database_stays_closed(self, tmp_path: Path) -> None:
        folder = DataFolder(tmp_path / "data")
        with folder.lock():
            assert "another server" in token(folder, "list")[2]
        assert not (folder.path / "main.db").exists()

    def test_no_admin_token_yet(self, tmp_path: Path) -> None:
        folder = DataFolder(tmp_path / "data")
        code, printed, said = token(folder, "show-admin")
        assert (code, printed) == (1, "")
        assert "no admin token yet" in said
        assert not folder.admin_token_file.exists()
