"""The stand-in by itself: arguments, lines, what it gives up for. The whole of it is in tests/e2e/test_rs_tunnel.py."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from rustunnel_py.client.cloudflared import Lines, _write, configure, run
from rustunnel_py.client.config import CaFile, HttpTunnel, LocalAddress, Pin, ServerAddress
from rustunnel_py.client.news import Connected, DataLost, Disconnected, Ended, LocalTrouble, Ready, TunnelUp
from rustunnel_py.errors import ConfigError
from rustunnel_py.wire.agent_token import AgentToken, AgentTokenError, decode, encode
from tests.support.standin import COMMAND, ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

TOKEN = AgentToken(
    server="t.example.com:4040",
    pin="sha256:" + "0f" * 32,
    tunnel="00000000-0000-4000-8000-000000000001",
    name="demo",
    port=41234,
    lease=60,
    secret="s" * 43,
)
SEEN_AS_REGION = re.compile(r"(?:location|region|colo)=([A-Za-z0-9-]+)", re.IGNORECASE)


# the token


def test_a_token_comes_back_as_it_was() -> None:
    text = encode(TOKEN)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", text)
    assert decode(text) == TOKEN
    assert TOKEN.secret not in repr(TOKEN)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300) | st.binary(max_size=200).map(lambda raw: raw.hex()))
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(AgentTokenError):
        decode(text)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"pin": "sha256:xyz"},
        {"port": 0},
        {"port": 65536},
        {"name": "a.b"},
        {"name": "a\n"},
        {"secret": "short"},
        {"secret": "é" * 43},
        {"server": ""},
        {"lease": 0},
    ],
)
def test_tokens_with_something_wrong(change: dict[str, object]) -> None:
    fields = msgspec.structs.asdict(TOKEN) | change
    with pytest.raises(AgentTokenError) as caught:
        decode(encode(AgentToken(**fields)))
    assert "s" * 43 not in str(caught.value)


def test_a_token_that_is_too_long() -> None:
    with pytest.raises(AgentTokenError, match="too long"):
        decode("A" * 5000)


def test_what_the_agent_is_told() -> None:
    config = configure(TOKEN, {})
    assert config.login.server == ServerAddress("t.example.com", 4040)
    assert config.login.token.reveal() == TOKEN.secret
    assert config.login.trust == Pin(TOKEN.pin)
    assert config.tunnels == (HttpTunnel(LocalAddress("127.0.0.1", 41234), "demo"),)


def test_a_ca_takes_the_place_of_the_pin(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("")
    assert configure(TOKEN, {"RUSTUNNEL_CA": str(ca)}).login.trust == CaFile(ca)
    with pytest.raises(ConfigError, match="RUSTUNNEL_CA"):
        configure(TOKEN, {"RUSTUNNEL_CA": str(tmp_path / "nothing")})


# arguments


def test_version_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"], {}) == 0
    out, err = capfd.readouterr()
    assert re.fullmatch(r"rustunnel-cloudflared \S+\n", out)
    assert err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["tunnel", "run"],
        ["tunnel", "run", "--token"],
        ["tunnel", "--no-autoupdate", "run", "--token", "garbage"],
        ["tunnel", "run", "--token=garbage"],
        ["tunnel", "run", "--token", ""],
    ],
)
def test_arguments_that_cannot_be_used(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(arguments, {}) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


def test_the_program_starts_as_a_process() -> None:
    done = subprocess.run([*COMMAND, "--version"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("rustunnel-cloudflared ")


def test_a_reader_that_is_gone_is_no_reason_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int, __: bytes) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", broken)
    _write("nobody reads this")


# lines


@pytest.mark.parametrize(
    ("region", "shown"),
    [("eu-1", "eu-1"), (None, "default"), ("", "default"), ("my region.x", "my-region-x"), ("x" * 40, "x" * 16)],
)
async def test_one_line_has_the_region(mock_clock: MockClock, region: str | None, shown: str) -> None:
    lines: list[str] = []
    screen = Lines(TOKEN, lines.append)
    screen.show(Connected("t.example.com:4040", region, True))
    screen.show(TunnelUp("id", "http", "http://demo.t.example.com", "127.0.0.1:41234"))
    screen.show(Ready())
    screen.show(DataLost("colo=XX location=YY"))
    screen.show(Disconnected("the server said Region=ZZ", 0.3))
    screen.show(LocalTrouble("127.0.0.1:41234", "location=Q"))
    found = [match[1] for line in lines for match in [SEEN_AS_REGION.search(line)] if match]
    assert found == [shown]
    assert len(lines) == 5


async def test_it_gives_up_when_the_lease_must_be_over(mock_clock: MockClock) -> None:
    stopping = trio.Event()
    screen = Lines(TOKEN, lambda _: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(screen.give_up, stopping)

        async def pass_time(seconds: float) -> None:
            mock_clock.jump(seconds)
            await trio.testing.wait_all_tasks_blocked()

        await pass_time(60)
        screen.show(Ready())
        await pass_time(3600)
        screen.show(Disconnected("gone", 1.0))
        await pass_time(30)
        screen.show(Disconnected("still gone", 1.0))
        await pass_time(39.9)
        assert not stopping.is_set()
        await pass_time(0.1)
        assert stopping.is_set()
        assert screen.gave_up


async def test_why_it_ended_is_kept(mock_clock: MockClock) -> None:
    screen = Lines(TOKEN, lambda _: None)
    screen.show(Ended(3, "the server refused the token: invalid token"))
    assert screen.why == "the server refused the token: invalid token"
