"""The log shows what happened and never what is secret."""

from __future__ import annotations

import json
import os
import threading

import pytest
import structlog

from rustunnel_py import logs
from rustunnel_py.config import LoggingConfig
from rustunnel_py.model.access import Secret


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


# P11: the server's log is written by a thread


def reader(descriptor: int) -> bytes:
    """Everything that a pipe holds until its writers are gone."""
    received = b""
    while part := os.read(descriptor, 65536):
        received += part
    return received


def test_P11_what_is_written_arrives_in_order() -> None:
    reading, writing = os.pipe()
    output = logs.BackgroundOutput(writing)
    for number in range(100):
        output.write(f"line {number} \ud800\n")
    output.close()
    os.close(writing)
    lines = reader(reading).decode().splitlines()
    os.close(reading)
    assert lines == [f"line {number} \\ud800" for number in range(100)]
    assert output.dropped == 0


def test_P11_an_output_that_nobody_reads_costs_lines_and_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "QUEUE_MAX", 100_000)
    reading, writing = os.pipe()
    output = logs.BackgroundOutput(writing)
    written = 0
    while not output.dropped:
        output.write(f"{written:08} " + "x" * 990 + "\n")
        written += 1
        assert written < 5000
    assert output.write("one more\n") == 9  # nobody waits
    dropped = output.dropped
    collected: list[bytes] = []
    thread = threading.Thread(target=lambda: collected.append(reader(reading)))
    thread.start()
    output.write("after\n")  # maybe too early, while the pipe is full
    while output._lines:
        pass
    output.write("the last\n")
    output.close()
    os.close(writing)
    thread.join()
    os.close(reading)
    text = collected[0].decode()
    assert f"({dropped} log lines were dropped)" in text or f"({dropped + 1} log lines were dropped)" in text
    assert text.endswith("the last\n")


def test_P11_a_closed_or_full_output_drops_and_counts() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    output = logs.BackgroundOutput(full)
    output.write("lost\n")
    output.close()
    os.close(full)
    assert output.dropped == 1


def test_P11_one_event_has_a_bound() -> None:
    reading, writing = os.pipe()
    output = logs.BackgroundOutput(writing)
    collected: list[bytes] = []
    thread = threading.Thread(target=lambda: collected.append(reader(reading)))
    thread.start()
    output.write("x" * 10_000_000)
    output.close()
    os.close(writing)
    thread.join()
    os.close(reading)
    assert len(collected[0].decode()) == logs.LINE_MAX + 2
