"""Forty secrets pass through a tunnel; none is found in any answer, export, live view, log, metric or database."""

from __future__ import annotations

import base64
import gzip
import re
from typing import TYPE_CHECKING

import trio

from tests.api.test_captures import path_of
from tests.api.test_rustunnel import call, the_admin, value_of
from tests.support import secrets40
from tests.support.api import ADMIN_TOKEN, ApiBench, api_bench

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from rustunnel_py.hub.registry import Tunnel


def plant(bench: ApiBench, tunnel: Tunnel) -> list[str]:
    """Two exchanges that hold them all; the second is the one with a form."""

    def sent(lines: list[str], content_type: str, body: bytes) -> bytes:
        head = [f"POST {secrets40.target()} HTTP/1.1", "Host: app.t.example.com", *lines]
        head += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
        return "\r\n".join([*head, "", ""]).encode()

    answer = secrets40.response_body()
    reply = ["HTTP/1.1 200 OK", *secrets40.response_headers(), "Content-Type: text/html", "Content-Encoding: gzip"]
    reply += [f"Content-Length: {len(answer)}", "", ""]
    body, form = secrets40.request_body(), secrets40.form()
    head = "\r\n".join(reply).encode()
    return [
        bench.capture(tunnel, sent(secrets40.request_headers(), "application/json", body), head, body, answer),
        bench.capture(tunnel, sent([], "application/x-www-form-urlencoded", form), head, form, answer),
    ]


async def everything_told(bench: ApiBench, tunnel: Tunnel, ids: list[str]) -> dict[str, bytes]:
    first, second = ids
    paths = [
        path_of(tunnel, rest) for rest in ("", "/search", "/search?body=password", "/export", f"/export?ids={first}")
    ]
    paths += [path_of(tunnel, f"/diff?old={first}&new={second}")]
    for one in ids:
        paths += [path_of(tunnel, f"/{one}{rest}") for rest in ("", "/curl", "/request-body", "/response-body")]
    paths += ["/api/audit", "/api/history", "/api/tunnels", "/api/tokens?details=true", "/metrics"]
    told = {path: await (await call(bench, "GET", path)).get_data(as_text=False) for path in paths}
    for one in ids:
        path = f"/api/tunnels/{tunnel.id}/replay/{one}"
        told[path] = await (await call(bench, "POST", path)).get_data(as_text=False)
    har = told[path_of(tunnel, "/export")]
    headers = {"Content-Type": "application/json"}
    made = await value_of(await call(bench, "POST", path_of(tunnel, "/import"), data=har, headers=headers), 201)
    for one in made["ids"]:
        told[f"imported {one}"] = await (await call(bench, "GET", path_of(tunnel, f"/{one}"))).get_data(as_text=False)
    return told


def unpacked(text: bytes) -> bytes:
    """With what is in base64, compressed or not."""
    found = [text]
    for piece in re.findall(rb"[A-Za-z0-9+/]{24,}={0,2}", text):
        try:
            raw = base64.b64decode(piece + b"=" * (-len(piece) % 4))
            found.append(raw)
            found.append(gzip.decompress(raw))
        except (ValueError, OSError, EOFError):
            continue
    if text.startswith(b"\x1f\x8b"):
        found.append(gzip.decompress(text))
    return b"\n".join(found)


async def test_no_planted_secret_is_told_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = secrets40.PLANTED.encode()
    async with api_bench(tmp_path) as bench:
        tunnel = bench.http("app", the_admin(bench))
        headers = {"Host": "localhost", "Authorization": f"Bearer {ADMIN_TOKEN}"}
        client = bench.app.test_client()
        async with client.request(path_of(tunnel, "/live"), method="GET", headers=headers) as live:
            await live.send_complete()
            await live.receive()
            ids = plant(bench, tunnel)
            seen = b""
            with trio.fail_after(20):
                while not all(one.encode() in seen for one in ids):
                    seen += await live.receive()
            for viewer in bench.inspector._rings.viewers:
                viewer.end()
        told = await everything_told(bench, tunnel, ids)  # from memory
        await bench.inspector.write()
        told |= {f"stored {path}": text for path, text in (await everything_told(bench, tunnel, ids)).items()}
        told["live"] = seen
    told["log"] = "".join(capsys.readouterr()).encode()
    told |= {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert [name for name, text in told.items() if marker in unpacked(text)] == []
    assert any(b"[redacted]" in text for text in told.values())
