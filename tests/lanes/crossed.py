"""No crossed answers: a million tagged requests of 64 visitors, while two agents are killed and come back.

    python -m tests.lanes.crossed [REQUESTS] [PUMP …]

Once for each pump: by default on the instrument pump and on the plain epoll pump, server and agents both. Every answer
and every body says whose it is. Exit code 1 if one was somebody else's, if one never came, if one that the agents'
deaths do not explain went wrong, or if no agent died.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.lanes.counted import VARIABLE, counts_of
from tests.lanes.processes import AgentProcess, local_service
from tests.lanes.tagged import Crowd
from tests.support.server_process import server_process

REQUESTS = 1_000_000
VISITORS = 64
PUMPS = {"instrument": "InstrumentPump", "epoll": "EpollPump"}
# From the return of one agent to the death of the other: most requests are served, and a million see many deaths.
FLAP_SECONDS = 0.5
SHOWN_SECONDS = 30.0
# What the death of an agent under a request may come to: a 502, a wait that ends in 503, a cut reply, a reset.
EXPLAINED = {"ok", "left", "502", "503", "504", "cut", "ended"}


def main(requests: int, pump: str) -> bool:
    """Whether all went well."""
    with tempfile.TemporaryDirectory(prefix="crossed-") as folder:
        file = Path(folder) / "counts"
        variables = {"RUSTUNNEL_PUMP": pump}
        with (
            server_process(
                Path(folder) / "data",
                environment={**variables, VARIABLE: str(file)},
                python=("-m", "tests.lanes.counted"),
            ) as server,
            local_service("tests.lanes.tagged") as (port, _),
        ):
            agents = [AgentProcess(server, name, port, variables=variables) for name in ("one", "two")]
            try:
                for agent in agents:
                    agent.start()
                for agent in agents:
                    agent.wait_serving()
                began = shown = time.monotonic()
                hosts = ["one.localhost", "two.localhost"]
                crowd = Crowd(server.http_port, hosts, visitors=VISITORS, requests=requests)
                deaths = returns = 0
                while crowd.run(FLAP_SECONDS):
                    if agents[deaths % 2].public_url and agents[(deaths + 1) % 2].public_url:  # both are back
                        agents[deaths % 2].kill()
                        agents[deaths % 2].start()
                        deaths += 1
                        returns = deaths - 1
                    if time.monotonic() - shown > SHOWN_SECONDS:
                        shown = time.monotonic()
                        print(f"{crowd.done} of {requests}, {deaths} deaths, {dict(crowd.outcome.kinds)}", flush=True)
                lasted = time.monotonic() - began
                ran_on = counts_of(server, file).pump
            finally:
                for agent in agents:
                    agent.kill()
            cpu = server.cpu_seconds()
    outcome = crowd.outcome
    print(f"{pump}: {crowd.done} requests in {lasted:.0f} s, server CPU {cpu:.0f} s, at the end on {ran_on}")
    print(f"  agents: {deaths} deaths, {returns} or more returns")
    print(f"  by kind: {dict(outcome.kinds)}")
    print(f"  crossed: {len(outcome.crossed)}, hangs: {outcome.kinds['hang']}")
    for one in outcome.crossed[:10]:
        print("   ", one)
    unexplained = {kind for kind, count in outcome.kinds.items() if count} - EXPLAINED
    if unexplained:
        print(f"  unexplained: {unexplained}")
    wrong = outcome.crossed or unexplained or crowd.done != requests or deaths < 2 or ran_on != PUMPS[pump]
    print(f"  {'FAIL' if wrong else 'pass'}", flush=True)
    return not wrong


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdecimal()]
    pumps = [word for word in sys.argv[1:] if word in PUMPS] or list(PUMPS)
    outcomes = [main(numbers[0] if numbers else REQUESTS, pump) for pump in pumps]
    sys.exit(0 if all(outcomes) else 1)
