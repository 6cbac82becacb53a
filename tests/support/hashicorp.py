"""HashiCorp's yamux as a peer: built once from the pinned module under `peers/`, into the ignored folder `.tools`."""

from __future__ import annotations

import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import pytest

SOURCE = Path(__file__).parent / "peers" / "hashicorp-yamux"
TOOLS = Path(__file__).parents[2] / ".tools" / "hashicorp-yamux"

BUILD_SECONDS = 300
"""A cold build of the standard library on a busy machine takes half a minute."""


def hashicorp_peer() -> Path:
    """The path of the peer's program. Skips the test, loudly, where Go or the module cannot be had; with CI set and
    Go there it fails instead."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if go is None:
        pytest.skip("NO INTEROPERATION TEST: there is no Go to build HashiCorp's yamux with")
    digest = sha256(b"".join(path.read_bytes() for path in sorted(SOURCE.iterdir()))).hexdigest()[:16]
    program = TOOLS / f"peer-{digest}"
    if not program.exists():
        _build(go, program)
    return program


def _build(go: str, program: Path) -> None:
    TOOLS.mkdir(parents=True, exist_ok=True)
    fresh = program.with_suffix(f".{os.getpid()}")
    environment = os.environ | {"GOFLAGS": "-mod=readonly", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    environment.setdefault("GOCACHE", str(TOOLS / "cache"))
    try:
        built = subprocess.run(
            [go, "build", "-o", str(fresh), "."],
            cwd=SOURCE,
            env=environment,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        _cannot(f"no build within {BUILD_SECONDS} s")
    if built.returncode != 0:
        _cannot(built.stderr.strip()[-500:])
    fresh.replace(program)


def _cannot(why: str) -> NoReturn:
    message = f"NO INTEROPERATION TEST: HashiCorp's yamux cannot be built: {why}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
