"""F20: the wall clock jumps by a day, forth and back: no session ends, nobody is locked out, no limit runs wild.

The server runs as a process of its own under Debian's libfaketime, which shows it whatever time a file says. Monotonic
time is left alone, as a real jump leaves it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lanes.processes import AgentProcess, local_service
from tests.support.server_process import ServerProcess, server_process

pytestmark = [pytest.mark.peer, pytest.mark.slow]

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
TAG = "0123456789abcdef"


def ask(server: ServerProcess) -> bytes:
    raw = f"GET /1/{TAG} HTTP/1.1\r\nHost: clock.localhost\r\nConnection: close\r\n\r\n"
    return server.ask(raw.encode())


def api(server: ServerProcess) -> bytes:
    head = "GET /api/tunnels HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    return server.ask(f"{head}Authorization: Bearer {server.admin_token}\r\n\r\n".encode(), server.dashboard_port)


def test_F20_jumps_of_a_day_disconnect_nobody_and_lock_nobody_out(tmp_path: Path) -> None:
    if not LIBRARIES:
        pytest.skip("NO CLOCK TEST: there is no libfaketime (Debian: apt-get install faketime)")
    clock = tmp_path / "clock"
    clock.write_text("+0d\n")
    environment = {
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "RUSTUNNEL_LIMITS__RATE_LIMIT_RPS": "50",
        "RUSTUNNEL_LIMITS__IP_RATE_LIMIT_RPS": "50",
    }
    with (
        server_process(tmp_path / "data", environment=environment) as server,
        local_service("tests.lanes.tagged") as (port, _),
    ):
        agent = AgentProcess(server, "clock", port)
        agent.start()
        try:
            agent.wait_serving()
            with server.connect() as kept:
                days = set()
                for jump in ("+0d", "+1d", "-1d", "+3650d", "+0d"):
                    clock.write_text(f"{jump}\n")
                    os.sync()
                    kept.sendall(f"GET /1/{TAG} HTTP/1.1\r\nHost: clock.localhost\r\n\r\n".encode())
                    answer = b""
                    while not answer.endswith(TAG.encode() + b"\n"):
                        part = kept.recv(65536)
                        assert part, (jump, answer)
                        answer += part
                    assert answer.startswith(b"HTTP/1.1 200 "), jump
                    assert ask(server).startswith(b"HTTP/1.1 200 "), jump
                    listed = api(server)
                    assert listed.startswith(b"HTTP/1.1 200 "), jump
                    days.add(_date(listed))
            assert len(days) == 4  # the clock did jump
            assert [line for line in server.log if line["event"] in ("agent left", "tunnel ended")] == []
            assert len([line for line in server.log if line["event"] == "agent connected"]) == 1
        finally:
            agent.kill()


def _date(answer: bytes) -> bytes:
    return next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"date:"))[:22]
