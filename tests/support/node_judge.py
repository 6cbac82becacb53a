"""Node's HTTP parser (llhttp) as a second judge of what is forwarded."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

SCRIPT = Path(__file__).parent / "peers" / "node" / "judge.js"
JUDGE_SECONDS = 120


@dataclass(slots=True)
class Judged:
    """One request as Node read it."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    trailers: list[tuple[bytes, bytes]]
    body: bytes
    upgrade: bool


@dataclass(slots=True)
class Judgement:
    """All that Node read on one connection; `error` is its code of what it could not read."""

    requests: list[Judged]
    error: str | None


def judge(conversations: dict[str, bytes]) -> tuple[dict[str, Judgement], frozenset[bytes]]:
    """What Node makes of each connection's bytes, and the methods that it knows.

    Skips the test, loudly, where there is no Node; where CI is set and Node fails, the test fails.
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("NO SECOND JUDGE: there is no Node on this machine")
    lines = [json.dumps({"id": key, "bytes": base64.b64encode(raw).decode()}) for key, raw in conversations.items()]
    try:
        ran = subprocess.run(
            [node, str(SCRIPT)],
            input="\n".join(lines),
            capture_output=True,
            text=True,
            timeout=JUDGE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        _cannot(f"no verdict within {JUDGE_SECONDS} s")
    if ran.returncode != 0:
        _cannot(ran.stderr[-500:])
    *results, last = [json.loads(line) for line in ran.stdout.splitlines()]
    judgements = {
        result["id"]: Judgement([_judged(one) for one in result["requests"]], result["error"]) for result in results
    }
    return judgements, frozenset(method.encode() for method in last["methods"])


def _judged(one: dict[str, Any]) -> Judged:
    return Judged(
        one["method"].encode("latin-1"),
        one["target"].encode("latin-1"),
        _pairs(one["headers"]),
        _pairs(one["trailers"]),
        base64.b64decode(one["body"]),
        one["upgrade"],
    )


def _pairs(flat: list[str]) -> list[tuple[bytes, bytes]]:
    texts = [text.encode("latin-1") for text in flat]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _cannot(why: str) -> NoReturn:
    message = f"NO SECOND JUDGE: Node does not judge: {why}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
