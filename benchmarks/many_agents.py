"""Idle agents of our own in one process: `python -m benchmarks.many_agents PORT CA_FILE LOCAL_PORT AGENTS TUNNELS`.

Each agent has `TUNNELS` HTTP tunnels. Prints one line when all of them serve, and stays until it is ended. The token
comes from RUSTUNNEL_TOKEN.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import trio

from rustunnel_py.client.agent import run_agent
from rustunnel_py.client.config import (
    AgentConfig,
    CaFile,
    HttpTunnel,
    LocalAddress,
    Login,
    ServerAddress,
)
from rustunnel_py.client.news import News, Ready
from rustunnel_py.model.access import Secret

AT_ONCE = 16  # agents that connect at the same time


class ReadyScreen:
    """Only hears that the tunnels serve."""

    def __init__(self) -> None:
        self.ready = trio.Event()

    def show(self, news: News) -> None:
        if isinstance(news, Ready):
            self.ready.set()

    def close(self) -> None: ...


async def main(port: int, ca_file: str, local_port: int, agents: int, tunnels: int) -> None:
    login = Login(ServerAddress("localhost", port), Secret(os.environ["RUSTUNNEL_TOKEN"]), CaFile(Path(ca_file)))
    local = LocalAddress("127.0.0.1", local_port)
    places = trio.CapacityLimiter(AT_ONCE)
    async with trio.open_nursery() as nursery:

        async def start(number: int) -> None:
            machine = f"many-{os.getpid()}-{number}"
            names = (HttpTunnel(local, f"{machine}-{tunnel}") for tunnel in range(tunnels))
            screen = ReadyScreen()
            async with places:
                nursery.start_soon(run_agent, AgentConfig(login, tuple(names), machine=machine), screen)
                await screen.ready.wait()

        async with trio.open_nursery() as starting:
            for number in range(agents):
                starting.start_soon(start, number)
        print("ready", flush=True)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
