"""The agent's half runs where Linux's names are missing: macOS, Windows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = r"""
import os, select, signal, socket, sys, types

# The standard library and the third parties have been ported: they keep their names.
import concurrent.futures, ssl, subprocess, tempfile, uuid
import cryptography.x509, h11, msgspec, rich.live, rich.table, tomli, trio, trio.testing, trio_websocket
import websockets.frames, websockets.protocol
from cryptography.hazmat.primitives.asymmetric import ec

LINUX_ONLY = {
    select: [name for name in dir(select) if name.lower().startswith(("epoll", "poll"))],
    socket: [
        "TCP_QUICKACK", "TCP_DEFER_ACCEPT", "TCP_USER_TIMEOUT", "TCP_CORK", "TCP_INFO", "TCP_KEEPIDLE",
        "SO_REUSEPORT", "SO_PEERCRED", "SO_PRIORITY", "SO_BINDTODEVICE", "SO_INCOMING_CPU", "AF_UNIX", "AF_NETLINK",
        "MSG_DONTWAIT", "MSG_NOSIGNAL", "MSG_ZEROCOPY", "SOCK_CLOEXEC", "SOCK_NONBLOCK", "sethostname",
    ],
    signal: ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "pthread_sigmask", "sigwait", "set_wakeup_fd"],
    os: [
        "fork", "forkpty", "getuid", "geteuid", "getgid", "sendfile", "splice", "memfd_create", "eventfd", "pipe2",
        "sched_getaffinity", "posix_fadvise", "O_TMPFILE", "O_CLOEXEC", "fchmod", "getloadavg", "uname",
    ],
}
for module, names in LINUX_ONLY.items():
    poorer = types.ModuleType(module.__name__)
    poorer.__dict__.update({name: value for name, value in vars(module).items() if name not in names})
    sys.modules[module.__name__] = poorer

import rustunnel_py.client.agent
import rustunnel_py.client.demo
import rustunnel_py.client.login
import rustunnel_py.client.screen
import rustunnel_py.client.sources
from rustunnel_py.transport import pump

for floor in ("hub", "store", "edges", "agents", "api", "certs", "server"):
    assert not any(name.startswith("rustunnel_py." + floor) for name in sys.modules), floor


async def main():
    sys.path.insert(0, sys.argv[1])
    from rustunnel_py.client.config import TcpTunnel
    from rustunnel_py.client.news import Ready
    from tests.support.agent_under_test import local_echo, running_agent, up
    from tests.support.played_server import played_server

    async with pump.open_pump() as chosen:
        assert type(chosen).__name__ == "PortablePump", chosen
    with trio.fail_after(20):
        async with (
            local_echo() as echo,
            played_server() as server,
            running_agent(server, TcpTunnel(echo.local)) as agent,
        ):
            control, data = await up(server, "tcp://tunnel.test:20005")
            await control.announce("0a0b0c0d-1111-4222-8333-000000000001", "tcp")
            big = bytes(range(256)) * 2000
            await data.open(1, "0a0b0c0d-1111-4222-8333-000000000001", b"")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(data.write_all, 1, big)
                assert await data.read(1, len(big)) == big
            await agent.screen.until(Ready)


trio.run(main)
print("served")
"""


def test_agent_serves_without_the_names_that_only_linux_has() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(ROOT)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "served\n"
