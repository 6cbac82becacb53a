"""The rs-tunnel world on real sockets: the played CLI, the stand-in as a process, visitors, restarts."""

from __future__ import annotations

import hashlib
import json
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h11
import pytest
import trio

from rustunnel_py.hub import leases as leases_module
from rustunnel_py.model.access import Secret
from tests.support.rs_tunnel_cli import PlayedCli, Up, played_cli
from tests.support.rs_tunnel_contract import QUIET_METRICS, check_live, check_requests
from tests.support.running_server import RunningServer, running_server
from tests.support.services import HttpClient, http_service, pattern, tcp_service
from tests.support.standin import StandIn, stand_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MEBIBYTE = 1024 * 1024
QUIET: dict[str, Any] = {
    "region": None,
    "metrics": QUIET_METRICS,
    "requests": [],
}


async def log_in(cli: PlayedCli, server: RunningServer) -> None:
    await cli.login("dev@example.com", lambda url: cli.approve(url, server.admin_token))


async def get(server: RunningServer, label: str, target: str = "/") -> int:
    async with await server.connect() as stream:
        return (await HttpClient(stream).request(server.host(label), target)).status


async def native_tunnels(cli: PlayedCli, server: RunningServer) -> list[Any]:
    reply = await cli.api.send(
        "GET", "/api/tunnels", [("Host", "localhost"), ("Authorization", f"Bearer {server.admin_token}")]
    )
    found = json.loads(reply.body)
    assert isinstance(found, list)
    return found


async def check_captures(cli: PlayedCli, server: RunningServer, up: Up) -> None:
    """Its requests are in the inspector, and can be sent again."""
    headers = [("Host", "localhost"), ("Authorization", f"Bearer {server.admin_token}")]
    reply = await cli.api.send("GET", f"/api/tunnels/{up.id}/requests", headers)
    assert reply.status == 200
    captured = json.loads(reply.body)
    assert [one["path"] for one in captured] == ["/page/2", "/page/1", "/page/0"]
    again = b'{"send": true}'
    reply = await cli.api.send(
        "POST",
        f"/api/tunnels/{up.id}/replay/{captured[0]['id']}",
        [*headers, ("Content-Type", "application/json"), ("Content-Length", str(len(again)))],
        again,
    )
    assert reply.status == 200, reply


async def audited(cli: PlayedCli, server: RunningServer) -> list[str]:
    """The kinds of events, oldest first, without refusals (how often the stand-in knocks is chance)."""
    headers = [("Host", "localhost"), ("Authorization", f"Bearer {server.admin_token}")]
    reply = await cli.api.send("GET", "/api/audit?limit=100", headers)
    assert reply.status == 200
    found = [entry["event"] for entry in json.loads(reply.body)["entries"]]
    return [event for event in reversed(found) if event != "login_refused"]


async def test_the_played_cli_from_login_to_logout(tmp_path: Path) -> None:
    async with (
        http_service() as service,
        running_server(tmp_path, region={"id": "eu-1"}) as server,
        played_cli(server.ready.dashboard_url) as cli,
        played_cli(server.ready.dashboard_url) as other_shell,
    ):
        assert await cli.doctor()
        await log_in(cli, server)
        assert await cli.list() == []
        up = await cli.up(service.port, "demo")
        assert await native_tunnels(cli, server) == []
        async with stand_in(up.cloudflared_token) as child:
            assert "location=eu-1" in await child.wait_for("location=")
            for number in range(3):
                assert await get(server, "demo", f"/page/{number}") == 200
            assert [seen.target for seen in service.seen] == ["/page/0", "/page/1", "/page/2"]
            assert service.seen[0].header("host") == server.host("demo")
            (native,) = await native_tunnels(cli, server)
            assert (native["tunnel_id"], native["request_count"]) == (up.id, 3)
            reply = await cli.user_call("GET", "/v1/tunnels/telemetry")
            check_live(reply.json)
            assert reply.json[0]["metrics"]["requests"] == 3
            measured_bytes = reply.json[0]["metrics"]["bytes"]
            assert reply.json[0]["region"] == "EU-1"
            reply = await cli.user_call("GET", f"/v1/tunnels/{up.id}/requests")
            check_requests(reply.json)
            assert [one["path"] for one in reply.json] == ["/page/2", "/page/1", "/page/0"]
            assert all(one["responseBytes"] > 0 for one in reply.json)
            assert sum(one["responseBytes"] for one in reply.json) == measured_bytes
            await check_captures(cli, server, up)
            assert service.seen[-1].target == "/page/2"  # sent again
            assert (await cli.heartbeat(up)).status == 200
            assert (await cli.ingest(up, QUIET)).status == 200
            assert [one["status"] for one in await cli.list()] == ["active"]
            other_shell.access, other_shell.refresh_token = cli.access, cli.refresh_token
            assert (await other_shell.stop(up.hostname)).status == 200
            assert await child.wait() == 3
            assert child.lines[-1] == "the tunnel demo is gone: it was stopped, or its lease ran out"
        assert await get(server, "demo") == 404
        assert (await cli.heartbeat(up)).status == 404
        assert (await cli.ingest(up, QUIET)).status == 404
        assert (await cli.stop(up.id)).status == 404
        assert await cli.list() == []
        assert await audited(cli, server) == [
            "login_approved",
            "login_exchanged",
            "lease_created",
            "login_accepted",
            "tunnel_registered",
            "replayed",
            "lease_ended",
        ]
        await cli.logout()
        assert (await cli.user_call("GET", "/v1/tunnels")).status == 401


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[tuple[RunningServer, PlayedCli, Up, StandIn, Any]]:
    """A tunnel `app` that is served."""
    async with (
        http_service(keep_bodies=False) as service,
        running_server(tmp_path) as server,
        played_cli(server.ready.dashboard_url) as cli,
    ):
        cli.access = server.admin_token
        up = await cli.up(service.port, "app")
        async with stand_in(up.cloudflared_token) as child:
            await child.wait_for("location=")
            yield server, cli, up, child, service


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signals_end_it_with_0_and_more_of_them_change_nothing(serving: Any, number: signal.Signals) -> None:
    server, cli, up, child, _ = serving
    child.signal(number)
    child.signal(signal.SIGINT)
    began = trio.current_time()
    assert await child.wait() == 0
    assert trio.current_time() - began < 5.0  # a bound for a hang; it takes a fraction of a second
    assert child.lines[-1] == "ended as asked"
    assert [one["id"] for one in await cli.list()] == [up.id]
    assert (await cli.stop(up.id)).status == 200
    assert await get(server, "app") == 404


@pytest.mark.slow
async def test_100_megabytes_each_way(serving: Any) -> None:
    server, _, _, _, service = serving
    size = 100 * MEBIBYTE
    block = pattern(MEBIBYTE)
    expected = hashlib.sha256()

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(100):
            expected.update(block)
            yield block

    async with await server.connect() as stream:
        visitor = HttpClient(stream)
        assert (await visitor.request(server.host("app"), "/up", method="PUT", body=parts())).status == 200
        assert (service.seen[0].body_size, service.seen[0].body_sha256) == (size, expected.hexdigest())
        down = await visitor.request(server.host("app"), f"/size/{size}", keep_body=False)
        sent = hashlib.sha256()
        for start in range(0, size, 65536):
            sent.update(pattern(min(65536, size - start)))
        assert down.body.decode() == sent.hexdigest()


async def test_websockets(tmp_path: Path) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        """An upgrade as a service answers it, then what comes goes back."""
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some(4096)
        await stream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhi"  # RFC 6455's own example
        )
        async for data in stream:
            await stream.send_all(data)

    async with (
        tcp_service(echo) as port,
        running_server(tmp_path) as server,
        played_cli(server.ready.dashboard_url) as cli,
    ):
        cli.access = server.admin_token
        up = await cli.up(port, "ws")
        async with stand_in(up.cloudflared_token) as child, await server.connect() as visitor:
            await child.wait_for("location=")
            await visitor.send_all(
                f"GET /ws HTTP/1.1\r\nHost: {server.host('ws')}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            got = b""
            with trio.fail_after(20):
                while not got.endswith(b"hi"):
                    data = await visitor.receive_some(4096)
                    assert data, got
                    got += data
                assert got.startswith(b"HTTP/1.1 101 ")
                for message in (b"one", b"x" * 70_000):
                    await visitor.send_all(message)
                    back = b""
                    while len(back) < len(message):
                        back += await visitor.receive_some(65536)
                    assert back == message


async def test_the_server_is_gone_and_back_within_the_lease(tmp_path: Path) -> None:
    async with http_service() as service:
        async with running_server(tmp_path) as server, played_cli(server.ready.dashboard_url) as cli:
            await log_in(cli, server)
            up = await cli.up(service.port, "app")
            access = cli.access
            ports = server.fixed_ports()
        async with stand_in(up.cloudflared_token) as child:
            for times in (1, 2):
                await child.wait_for("not connected", times)
                async with running_server(tmp_path, server=ports) as server:
                    await child.wait_for("location=", times)
                    assert await get(server, "app") == 200
                    if times == 1:
                        continue
                    async with played_cli(server.ready.dashboard_url) as cli:
                        cli.access = access
                        (shown,) = await cli.list()
                        assert shown["id"] == up.id
                        assert (await cli.heartbeat(up)).status == 200
                        assert (await cli.ingest(up, QUIET)).status == 200
                        assert (await cli.stop(up.id)).status == 200
                        assert await child.wait() == 3


async def test_a_native_delete_ends_the_stand_in(serving: Any) -> None:
    server, cli, up, child, _ = serving
    reply = await cli.api.send(
        "DELETE", f"/api/tunnels/{up.id}", [("Host", "localhost"), ("Authorization", f"Bearer {server.admin_token}")]
    )
    assert reply.status == 204
    assert await child.wait() == 3
    assert "is gone" in child.lines[-1]


@dataclass
class SlowService:
    """Answers each request with `head` at once and `rest` when it is let."""

    head: bytes
    rest: bytes
    asked: trio.Event = field(default_factory=trio.Event)
    go: trio.Event = field(default_factory=trio.Event)

    async def handle(self, stream: trio.SocketStream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(self.head)
        self.asked.set()
        await self.go.wait()
        await stream.send_all(self.rest)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"


async def test_who_is_in_gets_the_reply_when_the_tunnel_is_stopped(tmp_path: Path) -> None:
    service = SlowService(HEAD + b"first", b"later")
    async with (
        tcp_service(service.handle) as port,
        running_server(tmp_path) as server,
        played_cli(server.ready.dashboard_url) as cli,
        played_cli(server.ready.dashboard_url) as other_shell,
    ):
        cli.access = other_shell.access = server.admin_token
        up = await cli.up(port, "app")
        bodies: list[bytes] = []

        async def visit() -> None:
            async with await server.connect() as stream:
                bodies.append((await HttpClient(stream).request(server.host("app"))).body)

        async with stand_in(up.cloudflared_token) as child:
            await child.wait_for("location=")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(visit)
                await service.asked.wait()
                nursery.start_soon(other_shell.stop, up.id)
                while [one["status"] for one in await cli.list()] != ["stopping"]:
                    await trio.lowlevel.checkpoint()
                assert await get(server, "app") == 404
                service.go.set()
            assert bodies == [b"firstlater"]
            assert await child.wait() == 3


@pytest.mark.parametrize("begun", [False, True], ids=["before the reply", "in the middle of it"])
async def test_who_is_in_is_cut_when_the_lease_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """An answer that says which hop failed, or a reply that does not look complete."""
    monkeypatch.setattr(leases_module, "LEASE_SECONDS", 4)
    service = SlowService(HEAD + b"first" if begun else b"", b"")
    async with (
        tcp_service(service.handle) as port,
        running_server(tmp_path) as server,
        played_cli(server.ready.dashboard_url) as cli,
    ):
        cli.access = server.admin_token
        up = await cli.up(port, "app")
        async with stand_in(up.cloudflared_token) as child:
            await child.wait_for("location=")
            async with await server.connect() as stream:
                visitor = HttpClient(stream)
                with trio.fail_after(20):
                    if begun:
                        with pytest.raises(ExceptionGroup) as cut:
                            await visitor.request(server.host("app"))
                        assert cut.group_contains((h11.RemoteProtocolError, trio.BrokenResourceError))
                    else:
                        reply = await visitor.request(server.host("app"))
                        assert reply.status == 502
                        assert b"agent" in reply.body
                        logged = await cli.user_call("GET", f"/v1/tunnels/{up.id}/requests")
                        assert [(one["statusCode"], one["error"]) for one in logged.json] == [(502, True)]
            assert await child.wait() == 3
        service.go.set()


async def test_a_lease_that_runs_out_ends_the_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "LEASE_SECONDS", 4)
    async with running_server(tmp_path) as server, played_cli(server.ready.dashboard_url) as cli:
        cli.access = server.admin_token
        up = await cli.up(1, "app")
        async with stand_in(up.cloudflared_token) as child:
            await child.wait_for("location=")
            assert (await cli.heartbeat(up)).status == 200
            assert await child.wait() == 3
            assert child.lines[-1] == "the tunnel app is gone: it was stopped, or its lease ran out"
        assert await cli.list() == []


async def test_a_token_of_yesterday(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server, played_cli(server.ready.dashboard_url) as cli:
        cli.access = server.admin_token
        up = await cli.up(1, "app")
        assert (await cli.stop(up.id)).status == 200
        async with stand_in(up.cloudflared_token) as child:
            assert await child.wait() == 3
            assert child.lines[-1] == "the tunnel app is gone: it was stopped, or its lease ran out"


async def test_another_server_in_its_place_is_not_trusted(tmp_path: Path) -> None:
    async with running_server(tmp_path / "one") as server, played_cli(server.ready.dashboard_url) as cli:
        cli.access = server.admin_token
        up = await cli.up(1, "app")
        ports = server.fixed_ports()
    async with running_server(tmp_path / "two", server=ports), stand_in(up.cloudflared_token) as child:
        assert await child.wait() == 3
        assert "another key" in child.lines[-1]


async def test_a_ca_file_is_honoured(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server, played_cli(server.ready.dashboard_url) as cli:
        cli.access = server.admin_token
        up = await cli.up(1, "app")
        async with stand_in(up.cloudflared_token, RUSTUNNEL_CA=str(tmp_path / "ca.pem")) as child:
            await child.wait_for("location=")
        up = await cli.up(1, "other")
        foreign = tmp_path / "foreign.pem"
        foreign.write_bytes(_foreign_authority())
        async with stand_in(up.cloudflared_token, RUSTUNNEL_CA=str(foreign)) as child:
            assert await child.wait() == 3


def _foreign_authority() -> bytes:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody else")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


async def test_the_one_that_serves_keeps_the_tunnel(serving: Any) -> None:
    server, _, up, child, _ = serving
    async with stand_in(up.cloudflared_token) as second:
        assert await second.wait() == 4
        assert "in use" in second.lines[-1]
    assert await get(server, "app") == 200
    assert child.is_running


async def test_an_orphan_goes_on_and_ends_with_its_tunnel(serving: Any) -> None:
    """The CLI was killed: nobody reads what it prints."""
    server, cli, up, child, _ = serving
    await child.close_reader()
    assert await get(server, "app") == 200
    assert (await cli.stop(up.id)).status == 200
    assert await child.wait() == 3


async def test_login_with_an_api_token_and_quota_by_user(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server, played_cli(server.ready.dashboard_url) as cli:
        assert isinstance(server.ready.admin_token, Secret)
        cli.access = server.admin_token
        ups = [await cli.up(3000) for _ in range(5)]
        refused = await cli.user_call("POST", "/v1/tunnels", {"port": 3000})
        assert (refused.status, refused.json["code"]) == (409, "TUNNEL_LIMIT_REACHED")
        for up in ups:
            assert (await cli.stop(up.id)).status == 200
