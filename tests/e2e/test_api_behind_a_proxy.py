"""Who calls the API behind a trusted proxy, and how: per request, and from nobody else (H59)."""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

import pytest
import tomli
import trio

from tests.support.certificates import make_pair
from tests.support.proxy import block, nginx_command, running_proxy
from tests.support.running_server import RunningServer, running_server
from tests.support.services import HttpClient, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PROXY = "127.0.0.1"
ANYBODY = "127.9.9.9"
TRUSTING: dict[str, object] = {"trusted_proxies": (PROXY,)}
STARTS_A_MINUTE = 10  # of /v1/auth/slack/start, for each address


class Caller:
    """One connection to the dashboard's port, as a proxy keeps it for all its visitors."""

    def __init__(self, client: HttpClient, host: str) -> None:
        self._client = client
        self.host = host

    async def ask(
        self, path: str, *told: tuple[str, str], body: object = None, form: dict[str, str] | None = None
    ) -> Reply:
        if form is not None:
            content, kind = urlencode(form).encode(), "application/x-www-form-urlencoded"
        elif body is not None:
            content, kind = json.dumps(body).encode(), "application/json"
        else:
            return await self._client.request(self.host, path, headers=told)
        headers = (*told, ("Content-Type", kind))
        return await self._client.request(self.host, path, method="POST", headers=headers, body=content)

    async def start(self, *told: tuple[str, str]) -> Reply:
        wanted = {"email": "dev@example.com", "codeChallenge": "x" * 43}
        return await self.ask("/v1/auth/slack/start", *told, body=wanted)


@asynccontextmanager
async def calling(server: RunningServer, ip: str = PROXY) -> AsyncIterator[Caller]:
    host = server.ready.dashboard_url.partition("://")[2]
    port = int(host.rpartition(":")[2])
    async with await trio.open_tcp_stream("127.0.0.1", port, local_address=ip) as stream:
        yield Caller(HttpClient(stream), host)


def forwarded(*addresses: str) -> tuple[str, str]:
    return "X-Forwarded-For", ", ".join(addresses)


def bearer(token: str) -> tuple[str, str]:
    return "Authorization", f"Bearer {token}"


async def refused_peers(server: RunningServer) -> list[str]:
    """The addresses of the refused logins in the audit log, oldest first."""
    async with calling(server) as caller:
        reply = await caller.ask("/api/audit?event=login_refused", bearer(server.admin_token))
    assert reply.status == 200
    return [entry["details"]["peer"].rpartition(":")[0] for entry in reversed(json.loads(reply.body)["entries"])]


async def test_H59_audit_events_name_the_visitor_of_each_request(tmp_path: Path) -> None:
    async with running_server(tmp_path, server=TRUSTING) as server:
        async with calling(server) as caller:
            for told in ([forwarded("198.51.100.1")], [forwarded("192.0.2.66", "198.51.100.2")], []):
                assert (await caller.ask("/api/tunnels", bearer("wrong"), *told)).status == 401
        assert await refused_peers(server) == ["198.51.100.1", "198.51.100.2", PROXY]


@pytest.mark.parametrize("trusting", [TRUSTING, {}], ids=["of others", "of anybody"])
async def test_H59_nobody_else_is_believed(tmp_path: Path, trusting: dict[str, object]) -> None:
    async with running_server(tmp_path, server=trusting) as server:
        for ip in (ANYBODY,) if trusting else (ANYBODY, PROXY):
            async with calling(server, ip) as caller:
                assert (await caller.ask("/api/tunnels", bearer("wrong"), forwarded("198.51.100.1"))).status == 401
            assert (await refused_peers(server))[-1] == ip


async def test_a_login_says_from_where_it_was_started(tmp_path: Path) -> None:
    async with running_server(tmp_path, server=TRUSTING) as server, calling(server) as caller:
        started = json.loads((await caller.start(forwarded("198.51.100.7"))).body)
        url = urlsplit(started["authorizeUrl"])
        page = await caller.ask(f"{url.path}?{url.query}", forwarded("198.51.100.8"))
        assert b"<dt>Asked from</dt><dd>198.51.100.7</dd>" in page.body


async def test_visitors_of_a_proxy_do_not_use_up_each_other_s_calls(tmp_path: Path) -> None:
    async with running_server(tmp_path, server=TRUSTING) as server, calling(server) as caller:
        first, second = forwarded("198.51.100.1"), forwarded("198.51.100.2")
        for _ in range(STARTS_A_MINUTE):
            assert (await caller.start(first)).status == 200
        assert (await caller.start(first)).status == 429
        assert (await caller.start(second)).status == 200
        async with calling(server, ANYBODY) as other:
            for number in range(STARTS_A_MINUTE):
                assert (await other.start(forwarded(f"198.51.100.{number}"))).status == 200
            assert (await other.start(forwarded("198.51.100.99"))).status == 429


async def test_metrics_stay_closed_for_who_comes_by_a_proxy(tmp_path: Path) -> None:
    async with running_server(tmp_path, server=TRUSTING) as server, calling(server) as caller:
        assert (await caller.ask("/metrics")).status == 200
        for ip in ("198.51.100.1", "127.0.0.1"):
            assert (await caller.ask("/metrics", forwarded(ip))).status == 401


# how they come


HTTPS = ("X-Forwarded-Proto", "https")


@pytest.mark.parametrize(
    ("ip", "told", "scheme"),
    [
        (PROXY, [HTTPS], "https"),
        (PROXY, [("X-Forwarded-Proto", "https, http")], "http"),
        (PROXY, [("X-Forwarded-Proto", "gopher")], "http"),
        (PROXY, [], "http"),
        (ANYBODY, [HTTPS], "http"),
    ],
)
async def test_the_login_page_s_link_and_cookie_are_of_the_visitor_s_scheme(
    tmp_path: Path, ip: str, told: list[tuple[str, str]], scheme: str
) -> None:
    async with running_server(tmp_path, server=TRUSTING) as server, calling(server, ip) as caller:
        url = json.loads((await caller.start(*told)).body)["authorizeUrl"]
        assert url.startswith(f"{scheme}://{caller.host}/v1/auth/approve?")
        page = await caller.ask(url.partition(caller.host)[2], *told)
        cookie = page.header("set-cookie")
        assert cookie is not None
        assert ("secure" in cookie.lower().split("; ")) is (scheme == "https")


@pytest.mark.parametrize(
    ("ip", "told", "origin", "status"),
    [
        (PROXY, [HTTPS], "https://HOST", 200),
        (PROXY, [HTTPS], "http://HOST", 403),  # a page that came unencrypted may be anybody's
        (PROXY, [HTTPS], "https://evil.example", 403),
        (PROXY, [], "https://HOST", 200),  # a proxy that does not say how its visitors come
        (PROXY, [], "http://HOST", 200),
        (ANYBODY, [HTTPS], "http://HOST", 200),
        (ANYBODY, [HTTPS, ("X-Forwarded-Host", "evil.example")], "https://evil.example", 403),
        (PROXY, [HTTPS, ("X-Forwarded-Host", "evil.example")], "https://evil.example", 403),
    ],
)
async def test_the_login_page_s_form_is_of_the_visitor_s_origin(
    tmp_path: Path, ip: str, told: list[tuple[str, str]], origin: str, status: int
) -> None:
    async with running_server(tmp_path, server=TRUSTING) as server, calling(server, ip) as caller:
        form, cookie = await opened(caller, *told)
        site = "Origin", origin.replace("HOST", caller.host)
        assert (await caller.ask("/v1/auth/approve", *told, site, cookie, form=form)).status == status


async def opened(caller: Caller, *told: tuple[str, str]) -> tuple[dict[str, str], tuple[str, str]]:
    """The form of a login's page, filled in to refuse, and the page's cookie."""
    started = json.loads((await caller.start(*told)).body)
    page = await caller.ask(f"/v1/auth/approve?state={started['state']}", *told)
    bound = re.search(rb'name="bound" value="([0-9a-f]{64})"', page.body)
    cookie = page.header("set-cookie")
    assert bound is not None
    assert cookie is not None
    form = {"state": started["state"], "bound": bound[1].decode(), "answer": "refuse"}
    return form, ("Cookie", cookie.partition(";")[0])


@pytest.mark.parametrize("told", [[HTTPS], []], ids=["told", "not told"])
@pytest.mark.parametrize("host", ["t.example.com:443", "T.example.com"])
async def test_a_proxy_may_name_the_port_that_browsers_leave_out(
    tmp_path: Path, host: str, told: list[tuple[str, str]]
) -> None:
    """`proxy_set_header Host $host:$server_port` is in many configurations of nginx."""
    async with (
        running_server(tmp_path, server={**TRUSTING, "domain": "t.example.com"}) as server,
        calling(server) as caller,
    ):
        caller.host = host
        form, cookie = await opened(caller, *told)
        sent = await caller.ask("/v1/auth/approve", *told, ("Origin", "https://t.example.com"), cookie, form=form)
        assert sent.status == 200


# behind a real nginx, as the page says

NAME = "dash.example.com"


@asynccontextmanager
async def nginx(folder: Path, dashboard: str, port: int) -> AsyncIterator[None]:
    """The block of the page, between this port and the dashboard's."""
    folder.mkdir()
    pem, key = make_pair([NAME])
    (folder / "proxy.pem").write_bytes(pem)
    (folder / "proxy.key").write_bytes(key)
    text = block("nginx", "dashboard").replace(f"/etc/ssl/{NAME}", str(folder / "proxy"))
    text = re.sub(r"listen \[::\]:443.*\n", "", text.replace("127.0.0.1:4041", dashboard))
    upgrades = 'map $http_upgrade $tunnel_connection { default upgrade; "" ""; }'
    http = f"{upgrades}\n{text.replace('listen 443', f'listen 127.0.0.1:{port}')}"
    async with running_proxy(nginx_command(folder, http=http), folder, port):
        yield


@pytest.mark.peer
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nginx") is None, reason="not installed: nginx (Debian has it)")
async def test_the_page_s_nginx_tells_visitors_apart_and_their_scheme(tmp_path: Path) -> None:
    settings = tomli.loads(block("toml", "dashboard"))["server"] | TRUSTING
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    async with running_server(tmp_path / "data", server=settings) as server:
        dashboard = server.ready.dashboard_url.partition("://")[2]
        async with nginx(tmp_path / "proxy", dashboard, port):
            context = ssl.create_default_context(cafile=str(tmp_path / "proxy" / "proxy.pem"))
            for ip in ("127.9.9.1", "127.9.9.2"):
                raw = await trio.open_tcp_stream("127.0.0.1", port, local_address=ip)
                async with trio.SSLStream(raw, context, server_hostname=NAME, https_compatible=True) as stream:
                    caller = Caller(HttpClient(stream), NAME)
                    forged = forwarded("198.51.100.1")
                    assert (await caller.ask("/api/tunnels", bearer("wrong"), forged)).status == 401
                    started = json.loads((await caller.start(forged)).body)
                    assert started["authorizeUrl"].startswith(f"https://{NAME}/v1/auth/approve?")
                    form, cookie = await opened(caller)
                    site = "Origin", f"https://{NAME}"
                    assert (await caller.ask("/v1/auth/approve", site, cookie, form=form)).status == 200
        assert await refused_peers(server) == ["127.9.9.1", "127.9.9.2"]
