"""schemathesis over the description of `/v1`: a server whose limits let it through, at any ids and at a real one.

    python scripts/judge_rs_tunnel.py SCHEMATHESIS

Exit code 0: it found nothing.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio

from rustunnel_py import logs
from rustunnel_py.api import rs_tunnel
from rustunnel_py.config import Config, load
from rustunnel_py.hub import leases
from rustunnel_py.server import Ready, serve
from rustunnel_py.store.folder import DataFolder

EXAMPLES = os.environ.get("JUDGE_EXAMPLES", "50")
SEED = os.environ.get("JUDGE_SEED", "1")
TOKEN = "judged-" + "x" * 32
PLENTY = 10**9

# What a schema cannot say: a state, a code or a slug that is well-formed may still be none, and numbers of more than
# twenty digits are refused also in keys that nobody reads.
SETTINGS = """
[[operations]]
include-operation-id = ["login_start", "login_status", "login_exchange", "login_refresh", "log_out", "create"]
checks.positive_data_acceptance.expected-statuses = [200, 400, 401, 403, 404, 409, 429, 503]

[[operations]]
include-operation-id = ["metrics"]  # `from` may be after `to`
checks.positive_data_acceptance.expected-statuses = [200, 400, 401, 403, 404, 429, 503]
"""


def settings() -> Config:
    ports = {f"server.{name}_port": 0 for name in ("http", "https", "control", "dashboard")}
    flags: dict[str, object] = {"server.host": "127.0.0.1", "logging.level": "error", "auth.admin_token": TOKEN}
    return load(None, {}, {**ports, **flags, "limits.max_leases_per_user": 50})


async def judge(program: str, folder: Path) -> int:
    """Serve, and let it look twice."""
    stopping = trio.Event()
    config = settings()
    code = 0
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[Ready]) -> None:
            await serve(config, DataFolder(folder), stopping, task_status=task_status)

        ready = await nursery.start(run)
        code |= await look(program, folder, ready, "any ids", "", [])
        # Made only now: the first look deletes every tunnel that the list shows it.
        tunnel_id = await made_tunnel(ready)
        code |= await look(
            program,
            folder,
            ready,
            "a real id",
            f'[parameters]\n"path.id" = "{tunnel_id}"\n',
            ["--exclude-operation-id", "stop"],
        )
        if '"ok":true' not in await call(ready, "POST", f"/v1/tunnels/{tunnel_id}/heartbeat"):
            print("the real tunnel did not live as long as it was looked at", flush=True)
            code |= 1
        stopping.set()
    return code


async def look(program: str, folder: Path, ready: Ready, name: str, parameters: str, options: list[str]) -> int:
    file = folder / "schemathesis.toml"
    file.write_text(parameters + SETTINGS)
    print(f"schemathesis over /v1 with {name}", flush=True)
    command = [program, "--config-file", str(file), "run", f"{ready.dashboard_url}/v1/openapi.json"]
    command += ["--header", f"Authorization: Bearer {TOKEN}", "--checks", "all", "--seed", SEED]
    command += ["--exclude-checks", "use_after_free"]  # the history of a tunnel outlives it
    command += ["--max-examples", EXAMPLES, "--no-color", "--request-timeout", "20", *options]
    return (await trio.run_process(command, cwd=folder, check=False)).returncode


async def call(ready: Ready, method: str, path: str, *options: str) -> str:
    command = ["curl", "-s", "-X", method, f"{ready.dashboard_url}{path}", "-H", f"Authorization: Bearer {TOKEN}"]
    return (await trio.run_process([*command, *options], capture_stdout=True)).stdout.decode()


async def made_tunnel(ready: Ready) -> str:
    """Its id."""
    made = await call(ready, "POST", "/v1/tunnels", "-d", '{"port": 3000}', "-H", "Content-Type: application/json")
    tunnel_id: str = json.loads(made)["tunnelId"]
    return tunnel_id


def main(program: str) -> int:
    logs.set_up(settings().logging)
    for route in rs_tunnel.LIMITS:
        rs_tunnel.LIMITS[route] = PLENTY
    rs_tunnel.SHARED_LIMIT = PLENTY
    vars(leases)["LEASE_SECONDS"] = 3600  # nobody beats for it while it is looked at
    with tempfile.TemporaryDirectory() as folder:
        return trio.run(partial(judge, program, Path(folder)))


if __name__ == "__main__":
    sys.exit(main(str(Path(sys.argv[1]).absolute())))
