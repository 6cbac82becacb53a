"""The log shows what happened and never what is secret."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import structlog

from rustunnel_py import logs
from rustunnel_py.config import LoggingConfig
from rustunnel_py.model.access import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _default_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_traceback_shows_no_local_variables(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(LoggingConfig(format=form))  # type: ignore[arg-type]
    log = structlog.get_logger()

    def handler() -> None:
        token = "sword" + "fish"
        raise ValueError(len(token))

    try:
        handler()
    except ValueError as error:
        log.error("a handler failed", exc_info=error, token=Secret("swordfish"))
    shown = capfd.readouterr().err
    assert "ValueError" in shown
    assert "swordfish" not in shown


def test_json_is_one_object_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    logs.set_up(LoggingConfig(format="json"))
    structlog.get_logger().info("agent connected", peer="192.0.2.1:5")
    structlog.get_logger().debug("too fine")
    lines = capfd.readouterr().err.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["agent connected"]
    assert json.loads(lines[0])["peer"] == "192.0.2.1:5"
