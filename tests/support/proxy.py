"""A real nginx or Caddy in front of a server, with the configurations of docs/behind-a-proxy.md."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

PAGE = Path(__file__).parent.parent.parent / "docs" / "behind-a-proxy.md"
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
START_SECONDS = 20.0


def block(kind: str, name: str) -> str:
    """A block of the page, tagged ```kind name."""
    found = re.search(rf"^```{kind} {name}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, (kind, name)
    return found[1]


def nginx_command(folder: Path, *, http: str = "", stream: str = "") -> list[str]:
    """Writes a whole configuration around what belongs into its `http`, or around a `stream` of its own."""
    start = f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log info; events {{}}\n"
    if os.geteuid() == 0:
        start = "user root;\n" + start
    if stream:
        start = f"load_module {STREAM_MODULE};\n" + start + stream
    if http:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = " ".join(f"{kind}_temp_path {folder};" for kind in kinds)
        start += f"http {{ access_log off; server_names_hash_bucket_size 128; {temporary}\n{http}\n}}\n"
    (folder / "nginx.conf").write_text(start)
    return ["nginx", "-e", f"{folder}/error.log", "-c", str(folder / "nginx.conf"), "-p", str(folder)]


def caddy_command(folder: Path, text: str) -> list[str]:
    options = "{\nadmin off\nauto_https disable_redirects\n}\n"
    (folder / "Caddyfile").write_text(options + text)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


@asynccontextmanager
async def running_proxy(command: Sequence[str], folder: Path, port: int) -> AsyncIterator[None]:
    """It listens on this port of loopback; what it keeps and says is in `folder`."""
    home = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    async with trio.open_nursery() as nursery:
        with (folder / "output").open("wb") as output:
            run = functools.partial(
                trio.run_process, command, env=home, stdout=output, stderr=subprocess.STDOUT, check=False
            )
            process: trio.Process = await nursery.start(run)
            try:
                with trio.fail_after(START_SECONDS):
                    while True:
                        assert process.returncode is None, (folder / "output").read_text()
                        try:
                            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
                            break
                        except OSError:
                            await trio.sleep(0.02)
                yield
            finally:
                process.kill()
