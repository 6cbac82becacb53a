"""The compiled hot path: never needed, and never used for other sources than those it was made from."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from rustunnel_py import compiled

ROOT = Path(__file__).parent.parent
ASK = "from rustunnel_py import compiled; print(compiled.USE.name)"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A package with one source, and beside it what was compiled from it: no extension, only its name."""
    package = tmp_path / "rustunnel_py"
    (package / "wire").mkdir(parents=True)
    (package / "__init__.py").write_text("from rustunnel_py import compiled as compiled\n")
    (package / "compiled.py").write_bytes(Path(compiled.__file__).read_bytes())
    (package / "wire" / "body.py").write_bytes((ROOT / "rustunnel_py" / "wire" / "body.py").read_bytes())
    (tmp_path / compiled.FOLDER).mkdir()
    listed = f"hot{EXTENSION_SUFFIXES[0]}\n{compiled.sum_of('wire/body.py')} wire/body.py\n"
    (tmp_path / compiled.FOLDER / compiled.SOURCES).write_text(listed)
    return tmp_path


def ask(folder: Path, wanted: str = "", script: str = ASK) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "RUSTUNNEL_COMPILED": wanted}
    return subprocess.run(
        [sys.executable, "-S", "-c", script], env=environment, capture_output=True, text=True, cwd=folder
    )


def test_it_is_used_if_it_was_made_from_these_sources(copy: Path) -> None:
    assert ask(copy).stdout == "COMPILED\n"
    assert ask(copy, "must").stdout == "COMPILED\n"
    assert ask(copy, "no").stdout == "NONE\n"
    script = "import importlib.util, rustunnel_py; print(importlib.util.find_spec('rustunnel_py.wire.body').origin)"
    assert ask(copy, script=script).stdout == f"{copy / compiled.FOLDER / 'hot'}{EXTENSION_SUFFIXES[0]}\n"
    assert ask(copy, "no", script).stdout == f"{copy / 'rustunnel_py' / 'wire' / 'body.py'}\n"


def test_an_edited_source_is_run_and_not_passed_over(copy: Path) -> None:
    source = copy / "rustunnel_py" / "wire" / "body.py"
    before = source.stat()
    text = source.read_text()
    source.write_text(text.replace("b", "c", 1))
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))  # the times say nothing
    assert ask(copy).stdout == "STALE\n"
    refused = ask(copy, "must")
    assert refused.returncode != 0
    assert refused.stderr.endswith("the hot path is compiled from other sources and not used: make compile\n")
    source.write_text(text)
    assert ask(copy).stdout == "COMPILED\n"
    source.unlink()
    assert ask(copy).stdout == "STALE\n"


@pytest.mark.parametrize("listed", ["", "hot.cpython-27.so\n", "nonsense"])
def test_what_was_made_for_another_python_or_not_completed_is_not_used(copy: Path, listed: str) -> None:
    (copy / compiled.FOLDER / compiled.SOURCES).write_text(listed)
    assert ask(copy).stdout == "STALE\n"
    (copy / compiled.FOLDER / compiled.SOURCES).unlink()
    assert ask(copy).stdout == "STALE\n"


def test_without_it_the_sources_are_run(tmp_path: Path, copy: Path) -> None:
    (copy / compiled.FOLDER).rename(tmp_path / "elsewhere")
    assert ask(copy).stdout == "NONE\n"
    assert "not compiled: make compile" in ask(copy, "must").stderr


def test_the_modules_are_there_and_can_share_a_library() -> None:
    last = [module.rpartition(".")[2] for module in compiled.MODULES]
    assert len(set(last)) == len(last)  # each is initialized by PyInit_LAST
    for module in compiled.MODULES:
        found = importlib.import_module(f"rustunnel_py.{module}")
        suffix = EXTENSION_SUFFIXES[0] if compiled.USE is compiled.Use.COMPILED else ".py"
        assert (found.__file__ or "").endswith(suffix)


def test_a_machine_without_a_compiler_is_told_so_in_one_line(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "CC": "no-such-compiler"}
    command = [sys.executable, str(ROOT / "scripts" / "compile.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("not compiled: there is no C compiler here")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
