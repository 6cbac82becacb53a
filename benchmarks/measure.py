"""One measurement each: requests a second, latency, bulk speed. All through wrk and curl, as whole processes."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

REQUEST_SECONDS = 3  # one round of wrk; long enough to be past its start, short enough for several rounds
LOAD_TIMEOUT = 120.0  # no single measurement may hang the run


class LoadFailed(Exception):
    """wrk or curl reported errors: the figure would mean nothing."""


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw: requests a second, latency percentiles in milliseconds, requests in all."""

    rate: float
    p50: float
    p99: float
    requests: int


_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60000.0}


def _milliseconds(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    if match is None:
        raise LoadFailed(f"wrk printed a time that cannot be read: {text}")
    return float(match[1]) * _UNITS[match[2]]


def load(
    wrk: str,
    url: str,
    host: str,
    *,
    connections: int,
    headers: tuple[str, ...] = (),
    seconds: int = REQUEST_SECONDS,
    new_connections: bool = False,
    script: str | None = None,
    arguments: tuple[str, ...] = (),
) -> Load:
    """Closed-loop load with one thread of wrk; `script` is a Lua file for it, which gets `arguments`.

    Raises LoadFailed for any answer but 2xx, and for socket errors.
    """
    argv = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "10s", "-H", f"Host: {host}"]
    for header in (*headers, *(("Connection: close",) if new_connections else ())):
        argv += ["-H", header]
    if script is not None:
        argv += ["-s", script]
    argv += [url, "--", *arguments]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=LOAD_TIMEOUT, check=True)
    text = run.stdout
    if "Non-2xx" in text:
        raise LoadFailed(text)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    if errors and not new_connections and any(map(int, errors.groups())):
        raise LoadFailed(text)
    rate, requests = re.search(r"Requests/sec:\s+([\d.]+)", text), re.search(r"(\d+) requests in", text)
    p50, p99 = re.search(r"^ +50% +(\S+)", text, re.M), re.search(r"^ +99% +(\S+)", text, re.M)
    if rate is None or requests is None or p50 is None or p99 is None:
        raise LoadFailed(text)
    return Load(float(rate[1]), _milliseconds(p50[1]), _milliseconds(p99[1]), int(requests[1]))


def bulk(url: str, host: str, *, upload: str | None = None) -> float:
    """MB/s (10^6 bytes) of one download, or of one upload of the file `upload`."""
    argv = ["curl", "-sS", "-o", "/dev/null", "-H", f"Host: {host}", "-H", "Expect:"]
    argv += ["-T", upload, "-w", "%{http_code} %{speed_upload}"] if upload else ["-w", "%{http_code} %{speed_download}"]
    run = subprocess.run([*argv, url], capture_output=True, text=True, timeout=LOAD_TIMEOUT, check=True)
    status, speed = run.stdout.split()
    if status != "200":
        raise LoadFailed(f"{url} answered {status}")
    return float(speed) / 1e6
