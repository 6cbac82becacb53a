"""The process: signals, descriptors, outputs, a blocked loop (rows P01, P04, P06, P07, P09-P11, P13, F14, T14)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.server_process import ANSWER_SECONDS, ROOT, read_to_end, server_process, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc")]

IDLE_STOP_SECONDS = 1.0
NO_TUNNEL = b"GET / HTTP/1.1\r\nHost: nobody.localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_P01_an_idle_server_ends_at_once_with_code_0(tmp_path: Path, number: int) -> None:
    with server_process(tmp_path) as server:
        with server.connect(), server.connect(server.https_port), server.connect(server.control_port):
            assert server.is_alive()
            start = time.monotonic()
            server.signal(number)
            assert server.wait() == 0
            took = time.monotonic() - start
        assert took < IDLE_STOP_SECONDS, took


def test_P04_the_second_signal_ends_at_once(tmp_path: Path) -> None:
    with server_process(tmp_path, "--drain-seconds", "600") as server, server.connect() as begun:
        begun.sendall(b"POST / HTTP/1.1\r\nHost: nobody.loc")  # a head under way holds the drain
        assert server.is_alive()
        server.signal(signal.SIGTERM)
        server.wait_logged("stopping")
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(0.5)
        server.signal(signal.SIGINT)
        assert server.process.wait(IDLE_STOP_SECONDS * 3) == 1
        server.wait_logged("ending at once")


def test_P06_hangup_usr1_pipe_and_a_stopped_process_are_survived(tmp_path: Path) -> None:
    with server_process(tmp_path) as server, server.connect() as kept:
        for number in (signal.SIGUSR1, signal.SIGPIPE, signal.SIGHUP, signal.SIGHUP):
            server.signal(number)
            assert server.is_alive()
        server.wait_logged("certificates loaded")
        server.signal(signal.SIGSTOP)
        time.sleep(3)  # longer than the watchdog's bound: a stopped process is no blocked loop
        server.signal(signal.SIGCONT)
        assert server.is_alive()
        kept.sendall(NO_TUNNEL)
        assert read_to_end(kept).startswith(b"HTTP/1.1 404 ")
        time.sleep(1)
        assert [line for line in server.log if "event loop" in line["event"]] == []
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_F03_reloads_under_load_lose_no_connection(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        begun = served = 0
        over = threading.Event()

        def visit() -> None:
            nonlocal begun, served
            while not over.is_set():
                begun += 1
                assert server.shown_certificate("app.localhost")
                assert server.ask(NO_TUNNEL).startswith(b"HTTP/1.1 404 ")
                served += 1

        visitor = threading.Thread(target=visit)
        visitor.start()
        for number in range(1, 11):
            server.signal(signal.SIGHUP)
            server.wait_logged("certificates loaded", number)
        until(lambda: served >= 50)
        over.set()
        visitor.join()
        assert begun == served


def test_P07_F14_T14_visitors_that_take_all_descriptors_leave_the_admin_his(tmp_path: Path) -> None:
    with (
        server_process(tmp_path, wrap=("prlimit", "--nofile=64:64")) as server,
        ExitStack() as stack,
    ):
        early = stack.enter_context(server.connect())
        idle = [stack.enter_context(server.connect()) for _ in range(100)]
        until(lambda: server.descriptors() >= 47)
        assert server.is_alive()
        early.sendall(NO_TUNNEL)  # who was there is served on
        assert read_to_end(early).startswith(b"HTTP/1.1 404 ")
        before = server.cpu_seconds()
        time.sleep(2)
        assert server.cpu_seconds() - before < 1.0  # no spin
        assert server.descriptors() <= 60
        for sock in idle:
            sock.close()
        # Those in the backlog have left again, too: it takes up where it was.
        until(lambda: server.ask(NO_TUNNEL).startswith(b"HTTP/1.1 404 "))
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


BLOCKING = """
import sys, time
from rustunnel_py.edges import visitor
kept = visitor.front_page
def a_bad_handler(accept, **more):
    time.sleep(2.0)
    return kept(accept, **more)
visitor.front_page = a_bad_handler
from rustunnel_py.cli import main
main()
"""


def test_P10_a_handler_that_blocks_the_loop_is_named_in_the_log(tmp_path: Path) -> None:
    with server_process(tmp_path, python=("-c", BLOCKING)) as server:
        answer = server.ask(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert "a_bad_handler" in server.wait_logged("the event loop is blocked")["where"]
        assert server.wait_logged("the event loop was blocked")["seconds"] > 1.0


RAISING = """
from rustunnel_py.edges import visitor
def for_ever():
    for_ever()  # without arguments: 3.13.0 counts no recursion of functions that take keywords
def a_bad_handler(accept, **more):
    kind = accept.decode()
    if kind == "RecursionError":
        for_ever()
    if kind == "ExceptionGroup":
        raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])
    raise {"MemoryError": MemoryError, "ValueError": ValueError}[kind]("oops")
visitor.front_page = a_bad_handler
from rustunnel_py.cli import main
main()
"""


def test_P09_whatever_a_handler_raises_ends_its_connection_only(tmp_path: Path) -> None:
    with server_process(tmp_path, python=("-c", RAISING)) as server, server.connect() as bystander:
        kinds = ["ValueError", "ExceptionGroup", "RecursionError", "MemoryError"]
        for kind in kinds:
            answer = server.ask(f"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: {kind}\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 500 "), answer
        for number, kind in enumerate(kinds, 1):
            line = server.wait_logged("a callback raised; its connection was ended", number)
            assert kind in line["exception"]
        bystander.sendall(NO_TUNNEL)
        assert read_to_end(bystander).startswith(b"HTTP/1.1 404 ")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_P11_a_log_that_nobody_reads_holds_nothing_up(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as unread, os.fdopen(writing, "wb") as pipe:
        with server_process(tmp_path, python=("-c", RAISING), stderr=pipe) as server:
            pipe.close()
            # Fill the pipe: each SIGHUP is a line, each crash a traceback.
            request = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: RecursionError\r\n\r\n"
            for _ in range(300):
                assert server.ask(request).startswith(b"HTTP/1.1 500 ")
                server.signal(signal.SIGHUP)
            assert server.is_alive()
            start = time.monotonic()
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
            assert time.monotonic() - start < IDLE_STOP_SECONDS + 2
        unread.read(1)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "2>&- <&-", ">/dev/full", "2>/dev/full"])
def test_P11_outputs_that_are_closed_or_full_cost_lines_only(tmp_path: Path, closed: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = f"exec {sys.executable} -m rustunnel_py serve --data {tmp_path} --host 127.0.0.1 "
    command += f"--http-port {port} --https-port 0 --control-port 0 --dashboard-port 0 --tcp-ports 0-0 {closed}"
    process = subprocess.Popen(
        ["sh", "-c", command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:

        def answers() -> bool:
            try:
                with socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS) as sock:
                    sock.sendall(NO_TUNNEL)
                    return read_to_end(sock).startswith(b"HTTP/1.1 404 ")
            except ConnectionRefusedError:
                return False

        until(answers)
        if "&-" in closed:  # nothing that is written to may have got that number
            for number in {"<": [0], ">": [1], "2": [2]}[closed[0]]:
                assert os.readlink(f"/proc/{process.pid}/fd/{number}") == "/dev/null"
        process.send_signal(signal.SIGHUP)
        assert answers()
        process.send_signal(signal.SIGTERM)
        assert process.wait(ANSWER_SECONDS) == 0
        assert (tmp_path / "main.db").read_bytes().startswith(b"SQLite format 3")  # no log in there
    finally:
        process.kill()
        process.wait()


def test_P13_a_taken_port_is_one_line_and_code_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "rustunnel_py", "serve", "--data", str(tmp_path), "--host", "127.0.0.1"]
        command += ["--http-port", str(port), "--https-port", "0", "--control-port", "0", "--dashboard-port", "0"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "server.http_port" in done.stderr
