"""The played stock agent as a process: `python -m benchmarks.stock_agent CONTROL_PORT CA_FILE LOCAL_PORT LABEL`.

It takes its token from RUSTUNNEL_TOKEN and serves one HTTP tunnel until it is ended. As the real one it leaves Nagle's
algorithm on and writes each yamux frame in two pieces.
"""

from __future__ import annotations

import os
import ssl
import sys

import trio

from tests.support.stock_agent import stock_agent


async def run(control_port: int, ca_file: str, local_port: int, label: str) -> None:
    context = ssl.create_default_context(cafile=ca_file)
    async with stock_agent(control_port, os.environ["RUSTUNNEL_TOKEN"], tls=context) as agent:
        await agent.register("http", local_port, subdomain=label)
        await agent.serve()
        await agent.ended.wait()


if __name__ == "__main__":
    trio.run(run, int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])
