"""The wheel, installed into an empty environment and started from another folder, as the image does it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD = "import sys; from flit_core.buildapi import build_wheel; print(build_wheel(sys.argv[1]))"
START_SECONDS = 60


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RUSTUNNEL_"))}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return folder / run(sys.executable, "-c", BUILD, folder).splitlines()[-1]


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; what it depends on is borrowed from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A folder named in a .pth file is searched last, and its own .pth files (this checkout) are not read.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_everything_that_is_needed_is_inside(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "rustunnel_py").rglob("*") if path.is_file()}
    wanted = {path for path in wanted if "__pycache__" not in path}
    assert wanted <= inside
    assert any(path.endswith(".sql") for path in inside)
    others = {path.partition("/")[0] for path in inside - wanted}
    assert all(folder.endswith(".dist-info") for folder in others)
    assert any(path.endswith("LICENSE") for path in inside)


def test_it_is_the_wheel_that_runs(environment: Path, tmp_path: Path) -> None:
    where = run(environment / "bin" / "python", "-c", "import rustunnel_py; print(rustunnel_py.__file__)", cwd=tmp_path)
    assert Path(where).is_relative_to(environment)


def test_commands_start_from_another_folder(environment: Path, tmp_path: Path) -> None:
    program = environment / "bin" / "rustunnel-py"
    assert run(program, "--version", cwd=tmp_path).startswith("rustunnel-py, version ")
    assert run(program, "serve", "--check", cwd=tmp_path) == "the settings can be used\n"
    assert list(tmp_path.iterdir()) == []


def test_server_starts_from_another_folder_and_stops(environment: Path, tmp_path: Path) -> None:
    ports = [f"--{name}-port=0" for name in ("http", "https", "control", "dashboard")]
    program = environment / "bin" / "rustunnel-py"
    command: list[str | Path] = [program, "serve", "--data", tmp_path / "data", "--host=127.0.0.1", *ports]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RUSTUNNEL_"))}
    with subprocess.Popen(
        command, cwd=tmp_path, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            printed = ""
            while "login" not in printed:
                line = server.stdout.readline()
                assert line, printed
                printed += line
            assert str(program) in printed
            server.send_signal(signal.SIGTERM)
            _, errors = server.communicate(timeout=START_SECONDS)
            assert server.returncode == 0, errors
        finally:
            server.kill()
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
