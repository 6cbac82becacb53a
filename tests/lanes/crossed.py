"""No crossed answers: a million tagged requests of 64 visitors, while two agents are killed and come back.

    python -m tests.lanes.crossed [REQUESTS]

Every answer and every body says whose it is. Exit code 1 if one was somebody else's, or if one that the agents' deaths
do not explain went wrong.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.lanes.processes import AgentProcess, local_service
from tests.lanes.tagged import Crowd
from tests.support.server_process import server_process

REQUESTS = 1_000_000
VISITORS = 64
FLAP_SECONDS = 7.0  # between two deaths: long enough that most requests are served, short enough for hundreds of them
# What the death of an agent under a request may come to: a 502, a wait that ends in 503, a cut reply, a reset.
EXPLAINED = {"ok", "left", "502", "503", "504", "cut", "ended"}


def main(requests: int) -> int:
    with (
        tempfile.TemporaryDirectory(prefix="crossed-") as folder,
        server_process(Path(folder)) as server,
        local_service("tests.lanes.tagged") as (port, _),
    ):
        agents = [AgentProcess(server, name, port) for name in ("one", "two")]
        try:
            for agent in agents:
                agent.start()
            for agent in agents:
                agent.wait_serving()
            began = time.monotonic()
            crowd = Crowd(server.http_port, ["one.localhost", "two.localhost"], visitors=VISITORS, requests=requests)
            deaths = 0
            shown = began
            while crowd.run(FLAP_SECONDS):
                agent = agents[deaths % len(agents)]
                agent.kill()
                agent.start()
                deaths += 1
                if time.monotonic() - shown > 30:
                    shown = time.monotonic()
                    print(f"{crowd.done} of {requests}, {deaths} deaths, {dict(crowd.outcome.kinds)}", flush=True)
            lasted = time.monotonic() - began
        finally:
            for agent in agents:
                agent.kill()
        cpu = server.cpu_seconds()
    outcome = crowd.outcome
    print(f"{crowd.done} requests in {lasted:.0f} s, {deaths} deaths of agents, server CPU {cpu:.0f} s")
    print(f"by kind: {dict(outcome.kinds)}")
    print(f"crossed: {len(outcome.crossed)}")
    for one in outcome.crossed[:10]:
        print(" ", one)
    unexplained = set(outcome.kinds) - EXPLAINED
    if unexplained:
        print(f"unexplained: {unexplained}")
    return 1 if outcome.crossed or unexplained or crowd.done != requests else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else REQUESTS))
