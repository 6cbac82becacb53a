"""The administrator's commands beside a server that runs: tokens with all options, backup and restore, replay."""

from __future__ import annotations

import http.client
import json
import signal
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from rustunnel_py import cli
from rustunnel_py.cli import when
from rustunnel_py.errors import ConfigError
from tests.e2e.test_kill import Asking, agent, local_service
from tests.support.server_process import ServerProcess, server_process, until

if TYPE_CHECKING:
    from pathlib import Path

ALL_OPTIONS = (
    *("--scope", "ci-*,tcp:20000-20010", "--role", "agent", "--expires", "2999-01-31", "--max-tunnels", "3"),
    *("--protocol", "http", "--protocol", "tcp"),
)
SHOWN = "ci  ci-*,tcp:20000-20010  until 2999-01-31T00:00:00Z  at most 3 tunnels  only http, tcp\n"


def run(data: Path, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error or the error's sentence."""
    outcome = CliRunner().invoke(cli.commands, [*words, "--data", str(data)])
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        return 1, outcome.stdout, str(outcome.exception)
    return outcome.exit_code, outcome.stdout, outcome.stderr


def create_all_and_list(data: Path) -> None:
    code, printed, said = run(data, "token", "create", "ci", *ALL_OPTIONS)
    assert (code, len(printed.strip())) == (0, 36), said
    assert run(data, "token", "create", "boss", "--role", "admin")[0] == 0
    _, listed, _ = run(data, "token", "list")
    first, second = listed.splitlines(keepends=True)
    assert first.split("  ", 2)[2] == SHOWN
    assert second.split("  ", 2)[2] == "boss  all names  role admin\n"
    assert run(data, "token", "delete", first[:36])[0] == 0
    assert run(data, "token", "list")[1] == second


def test_tokens_with_all_options_through_the_running_server_and_without_it(tmp_path: Path) -> None:
    with server_process(tmp_path / "running") as server:
        create_all_and_list(server.data)
    with server_process(tmp_path / "stopped") as server:
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    create_all_and_list(tmp_path / "stopped")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30d", timedelta(days=30)),
        ("12h", timedelta(hours=12)),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31T12:00:00Z", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31T12:00:00+02:00", datetime(2027, 1, 31, 10, tzinfo=UTC)),
    ],
)
def test_when_a_token_expires(text: str, expected: datetime | timedelta) -> None:
    now = datetime(2025, 6, 1, tzinfo=UTC)
    assert when(text, now) == (now + expected if isinstance(expected, timedelta) else expected)


@pytest.mark.parametrize("text", ["", "d", "30m", "-1d", "soon", "2027-13-01", "9999999d"])
def test_when_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--expires"):
        when(text, datetime.now(UTC))


def test_a_backup_of_a_running_server_is_put_back(tmp_path: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy.db"
    with server_process(data) as server:
        assert run(data, "token", "create", "before")[0] == 0
        code, printed, said = run(data, "backup", str(copy), "--captures")
        assert (code, printed.splitlines()) == (0, [str(copy), str(tmp_path / "copy.captured.db")]), said
        assert run(data, "backup", str(copy))[0] == 1
        assert run(data, "token", "create", "after")[0] == 0
        code, _, said = run(data, "restore", str(copy))
        assert code == 1
        assert "another server uses the folder" in said
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    code, _, said = run(data, "restore", str(copy), "--captures")
    assert code == 0
    assert said.count("what was there is now") == 2
    with server_process(data) as server:
        listed = run(data, "token", "list")[1]
        assert "before" in listed
        assert "after" not in listed


def visited(server: ServerProcess) -> str:
    """The id of a request that passed through the only tunnel."""
    ask = Asking(server.dashboard_port, server.admin_token)
    try:
        until(lambda: ask("/api/tunnels"))
        tunnel = ask("/api/tunnels")[0]
        visitor = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=20)
        visitor.request("POST", "/orders", b"original", {"Host": tunnel["label"]})
        assert visitor.getresponse().read() == b"original"
        visitor.close()
        return str(ask(f"/api/tunnels/{tunnel['tunnel_id']}/requests")[0]["id"])
    finally:
        ask.close()


def test_replay_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = tmp_path / "body"
    body.write_text("edited")
    with local_service() as service, server_process(tmp_path / "data") as server, agent(server, service):
        request_id = visited(server)
        code, printed, said = run(server.data, "replay", request_id, "--times", "2", "--body", str(body))
        assert code == 0, said
        lines = printed.splitlines()
        assert len(lines) == 2
        assert all(line.startswith("200  ") for line in lines)
        ask = Asking(server.dashboard_port, server.admin_token)
        tunnel = ask("/api/tunnels")[0]["tunnel_id"]
        newest = ask(f"/api/tunnels/{tunnel}/requests/{lines[-1].split()[-1]}")
        ask.close()
        assert (newest["replay_of"], newest["request_body"], newest["response_body"]) == (
            request_id,
            "edited",
            "edited",
        )
        assert run(server.data, "replay", "00000000-0000-4000-8000-000000000000")[0] == 1
        monkeypatch.setenv("RUSTUNNEL_TOKEN", server.admin_token)
        words = ("replay", request_id, "--header", "X-A: b", "--api", f"http://127.0.0.1:{server.dashboard_port}")
        outcome = CliRunner().invoke(cli.commands, words)
        assert outcome.exit_code == 0
        assert outcome.stdout.startswith("200  ")


def test_hangups_open_the_log_files_again(tmp_path: Path) -> None:
    access, audit = tmp_path / "access.log", tmp_path / "audit.log"
    environment = {
        "RUSTUNNEL_LOGGING__ACCESS_LOG_PATH": str(access),
        "RUSTUNNEL_LOGGING__ACCESS_LOG_FORMAT": "json",
        "RUSTUNNEL_LOGGING__AUDIT_LOG_PATH": str(audit),
    }
    with server_process(tmp_path / "data", environment=environment) as server:
        request = b"GET /%d HTTP/1.1\r\nHost: nobody.localhost\r\nConnection: close\r\n\r\n"
        server.ask(request % 1)
        until(lambda: access.stat().st_size)
        for path in (access, audit):
            path.rename(path.with_suffix(".1"))
        server.signal(signal.SIGHUP)
        until(lambda: access.exists() and audit.exists())
        server.ask(request % 2)
        until(lambda: access.stat().st_size)
    first, second = (json.loads(path.read_text()) for path in (access.with_suffix(".1"), access))
    assert [(line["path"], line["status"], line["host"]) for line in (first, second)] == [
        ("/1", 404, "nobody.localhost"),
        ("/2", 404, "nobody.localhost"),
    ]
    assert second["visitor"] == "127.0.0.1"
