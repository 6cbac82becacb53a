"""The judges' lane: a server with a tunnel that something passed through, and programs of others that look at it.

    python scripts/judges.py FOLDER

FOLDER has the judges, as scripts/judges.sh puts them there. Exit code 0: none of them found anything.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = os.environ.get("JUDGE_EXAMPLES", "50")
SEED = os.environ.get("JUDGE_SEED", "1")
WAIT_SECONDS = 30.0
PROGRAM = [sys.executable, "-m", "rustunnel_py"]
CAPTURES = 5

VALIDATE = """
const har = require('har-validator');
const data = JSON.parse(require('fs').readFileSync(0));
har.har(data).then(() => console.log(`har-validator: ${data.log.entries.length} entries, all valid`),
  error => { console.error(JSON.stringify(error.errors, null, 1)); process.exit(1); });
"""


class LocalService(BaseHTTPRequestHandler):
    """Answers everything."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"hello"
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Set-Cookie", "session=hush")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = answer

    def log_message(self, format: str, *args: object) -> None: ...


@contextlib.contextmanager
def local_service() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), LocalService)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


@contextlib.contextmanager
def process(*words: str, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen([*PROGRAM, *words], env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE)
    try:
        yield started
    finally:
        started.terminate()
        started.wait(WAIT_SECONDS)


def control_port(server: subprocess.Popen[bytes]) -> str:
    """From the greeting, which is complete when the server serves."""
    assert server.stdout is not None
    port = ""
    for line in server.stdout:
        if line.startswith(b"agents "):
            port = line.decode().rpartition(":")[2].strip()
        if line.startswith(b"In another shell"):
            return port
    sys.exit("the server does not start")


class Api:
    """The server's API, with the admin token."""

    def __init__(self, data: Path) -> None:
        self.url: str = json.loads((data / "address").read_text())["url"]
        self.token = (data / "admin-token").read_text().strip()

    def ask(self, path: str, method: str = "GET") -> bytes:
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=WAIT_SECONDS)
        try:
            connection.request(method, path, headers={"Authorization": f"Bearer {self.token}"})
            return connection.getresponse().read()
        finally:
            connection.close()

    def tunnel(self) -> dict[str, Any]:
        until = time.monotonic() + WAIT_SECONDS
        while not (tunnels := json.loads(self.ask("/api/tunnels"))):
            if time.monotonic() > until:
                sys.exit("the agent does not come")
            time.sleep(0.1)
        found: dict[str, Any] = tunnels[0]
        return found


def visit(tunnel: dict[str, Any]) -> None:
    port = int(tunnel["public_url"].rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_SECONDS)
    for number in range(CAPTURES):
        headers = {"Host": tunnel["label"], "Cookie": "a=b", "Content-Type": "application/json"}
        connection.request("POST", f"/page/{number}?q=%20x&q=y", b'{"password": "hush"}', headers)
        connection.getresponse().read()
    connection.close()


def schemathesis(judges: Path, api: Api, tunnel_id: str, request_id: str) -> int:
    """Everything that its checks know, at random ids first, then at those of a tunnel that is there."""
    with tempfile.TemporaryDirectory() as folder:
        code = 0
        for name, parameters in (("any ids", {}), ("real ids", {"tunnel_id": tunnel_id, "request_id": request_id})):
            settings = Path(folder) / "schemathesis.toml"
            lines = [f'"path.{key}" = "{value}"' for key, value in parameters.items()]
            settings.write_text("\n".join(["[parameters]", *lines]) + "\n")
            print(f"schemathesis with {name}", flush=True)
            command = [str(judges.absolute() / "venv" / "bin" / "schemathesis"), "--config-file", str(settings), "run"]
            command += [f"{api.url}/api/openapi.json", "--header", f"Authorization: Bearer {api.token}"]
            command += ["--checks", "all", "--seed", SEED, "--max-examples", EXAMPLES, "--no-color"]
            # The live view is a stream without an end; tests/api/test_captures.py looks at it.
            command += ["--exclude-operation-id", "live_requests", "--request-timeout", "20"]
            if parameters:
                # These would take away what the others look at.
                for gone in ("delete_request", "close_tunnel"):
                    command += ["--exclude-operation-id", gone]
            code |= subprocess.run(command, cwd=folder, check=False).returncode
    return code


def har_validator(judges: Path, api: Api, tunnel_id: str) -> int:
    if not (judges / "node_modules" / "har-validator").is_dir():
        print("har-validator is not there (no npm); the export was not judged", file=sys.stderr)
        return 1
    export = api.ask(f"/api/tunnels/{tunnel_id}/requests/export")
    return subprocess.run(["node", "-e", VALIDATE], input=export, cwd=judges, check=False).returncode


def main(judges: Path) -> int:
    ports = [word for name in ("http", "https", "control", "dashboard") for word in (f"--{name}-port", "0")]
    with tempfile.TemporaryDirectory() as folder, local_service() as service:
        data = Path(folder) / "data"
        with process("serve", "--data", str(data), "--host", "127.0.0.1", "--log-level", "error", *ports) as server:
            port = control_port(server)
            api = Api(data)
            login = {"SERVER": f"localhost:{port}", "TOKEN": api.token, "CA": str(data / "ca.pem")}
            environment = {f"RUSTUNNEL_{name}": value for name, value in login.items()}
            with process("http", str(service), "--subdomain", "app", "--json", environment=environment):
                tunnel = api.tunnel()
                visit(tunnel)
                (newest, *_) = json.loads(api.ask(f"/api/tunnels/{tunnel['tunnel_id']}/requests"))
                code = har_validator(judges, api, tunnel["tunnel_id"])
                return code | schemathesis(judges, api, tunnel["tunnel_id"], newest["id"])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
