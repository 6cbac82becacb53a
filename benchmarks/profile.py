"""`python -m benchmarks.profile [down|up|keep-alive]`: flame graphs of server and agent under load, by py-spy.

py-spy is in nobody's lock: it is installed into a virtual environment of its own below `benchmarks/results`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from benchmarks.measure import bulk, load
from benchmarks.stage import Stage, stage

RESULTS = Path(__file__).parent / "results"
SECONDS = 10
RATE = 100  # samples a second: with native frames more makes py-spy fall behind


def _py_spy() -> str:
    home = RESULTS / "py-spy"
    program = home / "bin" / "py-spy"
    if not program.exists():
        venv.create(home, with_pip=True)
        subprocess.run([str(home / "bin" / "pip"), "install", "--quiet", "py-spy"], check=True)
    return str(program)


def _work(at: Stage, folder: Path, what: str) -> None:
    url = f"http://127.0.0.1:{at.http}/"
    if what == "down":
        bulk(f"{url}bulk", at.host)
    elif what == "up":
        bulk(url, at.upload_host, upload=str(folder / "bulk"))
    else:
        load(at.tools.wrk, url, at.host, connections=32, seconds=1)


def main() -> int:
    what = sys.argv[1] if len(sys.argv) > 1 else "keep-alive"
    RESULTS.mkdir(exist_ok=True)
    program = _py_spy()
    with tempfile.TemporaryDirectory(prefix="rustunnel-bench-") as name, stage(Path(name)) as at:
        recorders = []
        for who, pid in (("server", at.server), ("agent", at.agent)):
            graph = RESULTS / f"{who}-{what}.svg"
            argv = [program, "record", "--native", "--rate", str(RATE), "--duration", str(SECONDS)]
            recorders.append(subprocess.Popen([*argv, "--output", str(graph), "--pid", str(pid)]))
        while any(recorder.poll() is None for recorder in recorders):
            _work(at, Path(name), what)
    return max(recorder.returncode for recorder in recorders)


if __name__ == "__main__":
    sys.exit(main())
