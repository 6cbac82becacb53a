"""First contact: who the server is, whether the token opens it, what is kept of it."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from rustunnel_py.client.config import CaFile, Pin, ServerAddress
from rustunnel_py.client.failure import TokenRefused, Unreachable, Untrusted
from rustunnel_py.client.login import login
from rustunnel_py.client.sources import read_login
from rustunnel_py.errors import ConfigError
from rustunnel_py.model.access import Secret
from tests.support.agent_under_test import closed_port
from tests.support.played_server import PlayedServer, make_identity, played_server, read_websocket, websocket_frame

if TYPE_CHECKING:
    from pathlib import Path

    import trio

TOKEN = Secret("sesame")


async def accept(server: PlayedServer) -> None:
    control = await server.next_control()
    await control.welcome()
    assert control.auth["token"] == "sesame"
    opcode, payload = await read_websocket(control.upgrade.source)
    assert opcode == 8  # it leaves politely
    await control.send_raw(websocket_frame(8, payload))


async def refuse(server: PlayedServer) -> None:
    control = await server.next_control()
    await control.expect("auth")
    await control.send({"type": "auth_error", "message": "no"})


def address(server: PlayedServer) -> ServerAddress:
    return ServerAddress("localhost", server.port)


async def test_pin_that_is_right_stores_server_token_and_pin(tmp_path: Path, nursery: trio.Nursery) -> None:
    path = tmp_path / "deep/login.toml"
    async with played_server() as server:
        nursery.start_soon(accept, server)
        await login(address(server), TOKEN, path, pin=Pin(server.identity.pin))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        kept = read_login(path)
        assert kept is not None
        assert (kept.server, kept.token.reveal()) == (address(server), "sesame")
        assert kept.trust == Pin(server.identity.pin)


async def test_pin_that_is_wrong_stores_nothing_and_sends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "login.toml"
    async with played_server() as server:
        with pytest.raises(Untrusted) as caught:
            await login(address(server), TOKEN, path, pin=Pin(make_identity().pin))
        assert caught.value.pin == server.identity.pin
        assert server.application_bytes == 0
        assert not path.exists()


async def test_without_pin_and_terminal_it_refuses_with_the_line_to_use(tmp_path: Path) -> None:
    async with played_server() as server:
        with pytest.raises(Untrusted) as caught:
            await login(address(server), TOKEN, tmp_path / "login.toml")
        line = f"rustunnel-py login localhost:{server.port} --pin {server.identity.pin}"
        assert line in str(caught.value)
        assert server.application_bytes == 0


async def test_without_pin_a_person_is_shown_it_and_asked(tmp_path: Path, nursery: trio.Nursery) -> None:
    path = tmp_path / "login.toml"
    asked: list[str] = []

    def confirm(question: str, answer: bool) -> bool:
        asked.append(question)
        return answer

    async with played_server() as server:
        with pytest.raises(Untrusted):
            await login(address(server), TOKEN, path, confirm=lambda question: confirm(question, False))
        assert not path.exists()
        assert server.application_bytes == 0
        nursery.start_soon(accept, server)
        await login(address(server), TOKEN, path, confirm=lambda question: confirm(question, True))
        assert all(server.identity.pin in question for question in asked)
        kept = read_login(path)
        assert kept is not None
        assert kept.trust == Pin(server.identity.pin)


async def test_certificate_of_a_trusted_authority_needs_no_question(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "login.toml"
    async with played_server() as server:
        ca = tmp_path / "ca.pem"
        ca.write_bytes(server.identity.certificate)
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))  # what the system trusts, to OpenSSL
        nursery.start_soon(accept, server)
        made = await login(address(server), TOKEN, path)
        assert not isinstance(made.trust, Pin | CaFile)


async def test_refused_token_stores_nothing(tmp_path: Path, nursery: trio.Nursery) -> None:
    path = tmp_path / "login.toml"
    async with played_server() as server:
        nursery.start_soon(refuse, server)
        with pytest.raises(TokenRefused, match="the server refused the token: no"):
            await login(address(server), TOKEN, path, pin=Pin(server.identity.pin))
        assert not path.exists()


async def test_server_that_is_not_there(tmp_path: Path) -> None:
    port = await closed_port()
    with pytest.raises(Unreachable, match="refused"):
        await login(ServerAddress("127.0.0.1", port), TOKEN, tmp_path / "login.toml")


async def test_folder_that_cannot_be_written(tmp_path: Path, nursery: trio.Nursery) -> None:
    (tmp_path / "file").write_text("")
    async with played_server() as server:
        nursery.start_soon(accept, server)
        with pytest.raises(ConfigError, match="cannot be written"):
            await login(address(server), TOKEN, tmp_path / "file/login.toml", pin=Pin(server.identity.pin))
