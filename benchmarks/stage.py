"""The stage of a benchmark: a backend, a reference proxy, the project's server and its agent, each a process.

Everything listens on loopback. nginx is the backend and, in a second instance with one worker, the reference: a plain
reverse proxy with kept connections to the backend.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

START_SECONDS = 20.0  # longer than any part needs to answer for the first time
BULK_BYTES = 100 * 1024 * 1024
TICKS = os.sysconf("SC_CLK_TCK")


class MissingTool(Exception):
    """wrk or nginx is not on this machine."""


@dataclass(frozen=True, slots=True)
class Tools:
    wrk: str
    nginx: str


def find_tools() -> Tools:
    """wrk and nginx; installed from Debian where this is root on a Debian machine. Raises MissingTool."""
    search = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    found = {name: shutil.which(name, path=search) for name in ("wrk", "nginx", "curl")}
    missing = [name for name, path in found.items() if path is None]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        packages = ["nginx-light" if name == "nginx" else name for name in missing]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment)
        subprocess.run(["apt-get", "install", "-y", "-qq", *packages], check=True, env=environment)
        found = {name: shutil.which(name, path=search) for name in found}
    if not all(found.values()):
        raise MissingTool(f"install {', '.join(name for name, path in found.items() if path is None)} first")
    return Tools(wrk=str(found["wrk"]), nginx=str(found["nginx"]))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    """Until something accepts there."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path.name} did not appear")
        time.sleep(0.02)


def wait_for_page(port: int, host: str) -> None:
    """Until `host` is served at that edge."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": host})
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(request, timeout=START_SECONDS).close()
            return
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def process(
    *argv: str, environment: dict[str, str] | None = None, stdout: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A child that is ended politely, and then for sure."""
    child = subprocess.Popen(argv, env={**os.environ, **(environment or {})}, stdout=stdout, stderr=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def queue_seconds(pid: int) -> float:
    """How long the process's first thread could have run so far, but waited for a processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def resident_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


_NGINX = """
daemon off;
worker_processes 1;
pid {folder}/{name}.pid;
error_log {folder}/{name}.log crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/{name}-body;
    proxy_temp_path {folder}/{name}-proxy;
    fastcgi_temp_path {folder}/{name}-fastcgi;
    uwsgi_temp_path {folder}/{name}-uwsgi;
    scgi_temp_path {folder}/{name}-scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 300s;
    client_max_body_size 0;
    sendfile on;
    {body}
}}
"""

_BACKEND = """
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = / {{ default_type text/plain; return 200 "hello from behind\\n"; }}
        location / {{ root {folder}; }}
    }}
"""

_REFERENCE = """
    upstream behind {{ server 127.0.0.1:{backend}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /idle {{ return 200 "nobody is behind this\\n"; }}
        location / {{
            proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; proxy_buffering off;
        }}
    }}
"""


_REFERENCE_TLS = """
    server {{
        listen 127.0.0.1:{port} ssl backlog=4096;
        ssl_certificate {folder}/reference.pem; ssl_certificate_key {folder}/reference.pem;
        ssl_protocols TLSv1.2 TLSv1.3;
        location / {{
            proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; proxy_buffering off;
        }}
    }}
"""


def _write_certificate(path: Path) -> None:
    """A certificate of the reference's own, of the kind that the project makes for itself (P-256)."""
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-subj", "/CN=localhost", "-days", "2", "-keyout", str(path), "-out", f"{path}.crt"]
    subprocess.run(argv, check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())


@contextlib.contextmanager
def nginx(tools: Tools, folder: Path, name: str, body: str) -> Iterator[subprocess.Popen[bytes]]:
    configuration = folder / f"{name}.conf"
    configuration.write_text(_NGINX.format(folder=folder, name=name, body=body))
    with process(tools.nginx, "-c", str(configuration), "-p", str(folder)) as child:
        yield child


@contextlib.contextmanager
def backend_only(tools: Tools, folder: Path) -> Iterator[int]:
    """The backend alone; gives its port."""
    folder.chmod(0o755)  # nginx's worker is another user where this is root
    port = free_port()
    with nginx(tools, folder, "backend", _BACKEND.format(port=port, folder=folder)):
        wait_for(port)
        yield port


@dataclass(frozen=True, slots=True)
class Served:
    """A server and an agent of it, both in `environment`. `server` and `agent` are process ids, for CPU and memory."""

    http: int
    https: int
    control: int
    api: str
    server: int
    agent: int
    environment: dict[str, str]


@contextlib.contextmanager
def served(
    folder: Path, tunnels: str, count: int, *, settings: dict[str, str] | None = None, module: str = "rustunnel_py"
) -> Iterator[Served]:
    """From when all `count` tunnels of `tunnels`, the text of an agent.toml, are up.

    Both keep their files in `folder`. `settings` are environment variables for the server; `module` is what is run as
    it. Raises TimeoutError.
    """
    ports = {name: free_port() for name in ("http", "https", "control", "dashboard")}
    environment = {f"RUSTUNNEL_SERVER__{name.upper()}_PORT": str(port) for name, port in ports.items()}
    environment |= {"RUSTUNNEL_LOGGING__LEVEL": "warning", "RUSTUNNEL_DATA": str(folder / "data")}
    environment |= {
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_STATE_HOME": str(folder / "state"),
        "RUSTUNNEL_SERVER": f"localhost:{ports['control']}",
        "RUSTUNNEL_CA": str(folder / "data" / "ca.pem"),
    }
    file = folder / "agent.toml"
    file.write_text(tunnels)
    with contextlib.ExitStack() as stack:
        argv = [sys.executable, "-m", module, "serve"]
        server = stack.enter_context(process(*argv, environment=environment | (settings or {})))
        for port in ports.values():
            wait_for(port)
        wait_for_file(folder / "data" / "address")  # written when the server is ready
        environment["RUSTUNNEL_TOKEN"] = (folder / "data" / "admin-token").read_text().strip()
        argv = [sys.executable, "-m", "rustunnel_py", "start", str(file)]
        agent = stack.enter_context(process(*argv, environment=environment))
        pair = Served(
            http=ports["http"],
            https=ports["https"],
            control=ports["control"],
            api=f"http://127.0.0.1:{ports['dashboard']}",
            server=server.pid,
            agent=agent.pid,
            environment=environment,
        )
        _wait_for_tunnels(pair, count)
        yield pair


def http_tunnel(name: str, label: str, port: int) -> str:
    """A table of an agent.toml."""
    return f'[tunnels.{name}]\nprotocol = "http"\nlocal = "127.0.0.1:{port}"\nsubdomain = "{label}"\n'


@dataclass(frozen=True, slots=True)
class Stage(Served):
    """A server and an agent of it, and where everything else is."""

    tools: Tools
    backend: int
    reference: int
    reference_tls: int
    upload: int
    host: str
    tcp: int
    upload_host: str
    tcp_upload: int
    stock_label: str = ""  # of the stock agent's tunnel


@contextlib.contextmanager
def stage(folder: Path, settings: dict[str, str] | None = None) -> Iterator[Stage]:
    """All processes, ready to be measured. `settings` are environment variables for the server."""
    tools = find_tools()
    folder.chmod(0o755)  # nginx's worker is another user where this is root
    (folder / "bulk").write_bytes(os.urandom(1 << 20) * (BULK_BYTES >> 20))
    backend, reference, reference_tls, upload = (free_port() for _ in range(4))
    _write_certificate(folder / "reference.pem")
    tunnels = http_tunnel("page", "bench", backend) + http_tunnel("upload", "bench-upload", upload)
    for name, port in (("page-tcp", backend), ("upload-tcp", upload)):
        tunnels += f'[tunnels.{name}]\nprotocol = "tcp"\nlocal = "127.0.0.1:{port}"\n'
    with contextlib.ExitStack() as stack:
        stack.enter_context(nginx(tools, folder, "backend", _BACKEND.format(port=backend, folder=folder)))
        references = _REFERENCE.format(port=reference, backend=backend)
        references += _REFERENCE_TLS.format(port=reference_tls, folder=folder)
        stack.enter_context(nginx(tools, folder, "reference", references))
        stack.enter_context(process(sys.executable, str(Path(__file__).with_name("drain.py")), str(upload)))
        for port in (backend, reference, reference_tls, upload):
            wait_for(port)
        pair = stack.enter_context(served(folder, tunnels, 4, settings=settings))
        tcp = [int(tunnel["label"]) for tunnel in _tunnels(pair) if tunnel["protocol"] == "tcp"]
        yield Stage(
            **dataclasses.asdict(pair),
            tools=tools,
            backend=backend,
            reference=reference,
            reference_tls=reference_tls,
            upload=upload,
            host="bench.localhost",
            upload_host="bench-upload.localhost",
            tcp=tcp[0],
            tcp_upload=tcp[1],
        )


def _tunnels(pair: Served) -> list[dict[str, str]]:
    """In order of registration."""
    token = pair.environment["RUSTUNNEL_TOKEN"]
    request = urllib.request.Request(f"{pair.api}/api/tunnels", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
        tunnels: list[dict[str, str]] = json.load(answer)
        return tunnels


def _wait_for_tunnels(pair: Served, count: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while len(_tunnels(pair)) < count:
        if time.monotonic() > deadline:
            raise TimeoutError("the agent's tunnels did not come up")
        time.sleep(0.05)
