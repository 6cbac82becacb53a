"""The shell behind the Makefile, on machines that are not like this one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FAILS = "#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n"
WITHOUT_VENV = '#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; *print*) echo 3.12;; esac\n'
GOOD = "#!/bin/sh\nexit 0\n"
UNOPTIMIZED = '#!/bin/sh\ncase "$2" in *CONFIG_ARGS*) exit 1;; esac\n'
OLD = "#!/bin/sh\nexit 1\n"


def find_python(folders: list[Path], *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": ":".join(map(str, folders)), "HOME": "/nowhere"}
    command = [shutil.which("sh") or "/bin/sh", str(ROOT / "scripts" / "find-python.sh"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Two folders of a PATH; the second has what the script itself needs."""
    made = [tmp_path / "shims", tmp_path / "bin"]
    for folder in made:
        folder.mkdir()
    (made[1] / "tr").symlink_to(shutil.which("tr") or "/usr/bin/tr")
    return made


def put(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_shim_that_fails_is_passed_over(folders: list[Path]) -> None:
    put(folders[0], "python3.13", FAILS)
    put(folders[0], "python3.12", FAILS)
    good = put(folders[1], "python3.12", GOOD)
    assert find_python(folders).stdout == f"{good}\n"


def test_one_that_cannot_make_environments_is_passed_over(folders: list[Path]) -> None:
    put(folders[1], "python3.12", WITHOUT_VENV)
    good = put(folders[1], "python3.11", GOOD)
    assert find_python(folders).stdout == f"{good}\n"


def test_an_optimized_build_comes_before_a_newer_one_without(folders: list[Path]) -> None:
    newer = put(folders[0], "python3.13", UNOPTIMIZED)
    put(folders[0], "python3.12", WITHOUT_VENV)
    assert find_python(folders).stdout == f"{newer}\n"
    good = put(folders[1], "python3.11", GOOD)
    assert find_python(folders).stdout == f"{good}\n"
    assert find_python(folders, "3.13").stdout == f"{newer}\n"


def test_without_ensurepip_one_line_names_the_package(folders: list[Path]) -> None:
    put(folders[0], "python3.13", FAILS)
    put(folders[1], "python3.12", WITHOUT_VENV)
    done = find_python(folders)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "install the package python3.12-venv" in done.stderr


def test_too_old_or_none(folders: list[Path]) -> None:
    put(folders[1], "python3", OLD)
    done = find_python(folders)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "Python 3.11 or newer" in done.stderr


def test_a_certain_version(folders: list[Path]) -> None:
    put(folders[1], "python3.12", GOOD)
    assert find_python(folders, "3.13").stderr == "no Python 3.13 here\n"
    assert find_python(folders, "3.12").returncode == 0


@pytest.mark.parametrize("name", ["run", "dev", "build"])
def test_locks_have_hashes_and_no_addresses(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert "://" not in text
    entries = text.replace("\\\n", "").splitlines()
    assert entries
    assert all("==" in entry and "--hash=sha256:" in entry for entry in entries)


def test_locks_agree() -> None:
    def pinned(name: str) -> set[str]:
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        return {line.split(" ")[0] for line in text.splitlines() if "==" in line.split(" ")[0]}

    assert pinned("run") | pinned("build") <= pinned("dev")


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_plain_shell(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", script], check=True)
