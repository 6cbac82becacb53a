"""Agents of our own in one process: `python -m benchmarks.many_agents PORT CA_FILE LOCAL_PORT AGENTS TUNNELS`.

They share a pump: a process each would need more processors than there are. Each agent has `TUNNELS` HTTP tunnels, with
the labels `many-PID-AGENT-TUNNEL`, numbered from 0. Prints one line when all of them serve, and stays until it is
ended; by SIGTERM politely, so that no address is held. The token comes from RUSTUNNEL_TOKEN.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from pathlib import Path

import trio

from rustunnel_py.client.agent import Agent
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
from rustunnel_py.transport.pump import open_pump

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
    stopping = trio.Event()
    dice = secrets.SystemRandom().random
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with open_pump() as pump, trio.open_nursery() as resolving, trio.open_nursery() as nursery:

            async def start(number: int) -> None:
                machine = f"many-{os.getpid()}-{number}"
                names = (HttpTunnel(local, f"{machine}-{tunnel}") for tunnel in range(tunnels))
                config = AgentConfig(login, tuple(names), machine=machine)
                screen = ReadyScreen()
                async with places:
                    nursery.start_soon(Agent(config, screen, pump, resolving, dice).run, stopping)
                    await screen.ready.wait()

            async with trio.open_nursery() as starting:
                for number in range(agents):
                    starting.start_soon(start, number)
            print("ready", flush=True)
            async for _ in signals:
                stopping.set()
                break


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
