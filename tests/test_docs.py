"""What the documentation shows is run, and what it lists is what there is.

A block tagged `console` in README.md or docs/*.md is run in an empty folder with an empty home. A line that
starts with `$ ` is a command (continued by a final backslash); the lines after it are what it prints, where a
line `...` stands for any lines, and `[exit code 2]` is how it ends. Without such lines it only has to succeed.
A block tagged `console needs=docker` is not run: every option and variable in it must exist.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest

from rustunnel_py import cli
from rustunnel_py.config import keys, load
from scripts import configuration_keys

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND_SECONDS = 60

# Of `docker build` and `docker run`, what the pages may use.
DOCKER_OPTIONS = {
    "build": {"-t", "--tag", "-f", "--file", "--pull"},
    "run": {
        "-d",
        "--rm",
        "-it",
        "--init",
        "--name",
        "-p",
        "-v",
        "-e",
        "--env-file",
        "--restart",
        "--read-only",
        "--user",
    },
    "exec": {"-it"},
    "logs": {"-f"},
    "stop": {"-t"},
}
DOCKER_FLAGS = {"-d", "--rm", "-it", "--init", "--read-only", "--pull", "-f"}  # those without a value
OTHER_VARIABLES = {"RUSTUNNEL_DATA", "RUSTUNNEL_CONFIG", "RUSTUNNEL_SERVER", "RUSTUNNEL_TOKEN", "RUSTUNNEL_CA"}


@dataclass
class Step:
    command: str
    output: list[str] = field(default_factory=list)
    code: int = 0


@dataclass
class Block:
    where: str
    tags: list[str]
    lines: list[str]

    def steps(self) -> list[Step]:
        steps: list[Step] = []
        going_on = False
        for line in self.lines:
            if going_on:
                steps[-1].command += "\n" + line
            elif line.startswith("$ "):
                steps.append(Step(line[2:]))
            elif ended := re.fullmatch(r"\[exit code (\d+)\]", line):
                steps[-1].code = int(ended[1])
            else:
                steps[-1].output.append(line)
            going_on = steps[-1].command.endswith("\\") and not steps[-1].output
        return steps


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    inside = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
            if inside:
                found.append(Block(f"{page.name}:{number}", line[3:].split(), []))
        elif inside:
            found[-1].lines.append(line)
    return [block for block in found if block.tags[:1] == ["console"]]


BLOCKS = [block for page in PAGES if page.exists() for block in blocks(page)]


def with_tags(*tags: str) -> list[Block]:
    return [block for block in BLOCKS if block.tags == list(tags)]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An empty home, and `rustunnel-py` of this checkout on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "rustunnel-py"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m rustunnel_py "$@"\n')
    program.chmod(0o755)
    (tmp_path / "home").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RUSTUNNEL_", "XDG_"))}
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), kept.get("PATH", "")])
    return {**kept, "PATH": path, "HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


def matches(wanted: list[str], got: list[str]) -> bool:
    pattern = "".join("(?:.*\n)*" if line.strip() == "..." else re.escape(line) + "\n" for line in wanted)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in got)) is not None


@pytest.mark.parametrize("block", with_tags("console"), ids=lambda block: block.where)
def test_console_block_runs(block: Block, environment: dict[str, str], tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    assert block.steps()
    for step in block.steps():
        done = subprocess.run(
            ["sh", "-c", step.command],
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == step.code, f"{step.command}\n{done.stdout}"
        if step.output:
            assert matches(step.output, done.stdout.splitlines()), f"{step.command}\n{done.stdout}"


@pytest.mark.parametrize("block", with_tags("console", "needs=docker"), ids=lambda block: block.where)
def test_docker_block_uses_what_exists(block: Block) -> None:
    for step in block.steps():
        words = shlex.split(step.command.replace("\\\n", " "))
        if "docker" in words:
            check_docker(words[words.index("docker") + 1 :])
        for variable in re.findall(r"\bRUSTUNNEL_\w+", step.command):
            assert variable in OTHER_VARIABLES | {key.variable for key in keys()}, variable


def check_docker(words: list[str]) -> None:
    known = DOCKER_OPTIONS[words[0]]
    rest = iter(words[1:])
    for word in rest:
        if not word.startswith("-"):
            break  # the image, or the folder to build
        assert word.partition("=")[0] in known, word
        if word not in DOCKER_FLAGS and "=" not in word:
            next(rest)
    check_options([word for word in rest if word not in ("sh", "-c")])


def check_options(words: list[str]) -> None:
    """Words after `rustunnel-py`: a command and options of it."""
    words = [word for word in words if word != "rustunnel-py"]
    command: click.Command = cli.commands
    for word in words:
        if isinstance(command, click.Group) and word in command.commands:
            command = command.commands[word]
        elif word.startswith("--"):
            options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            assert word.partition("=")[0] in options, word


def test_every_command_line_in_the_pages_has_options_that_exist() -> None:
    for page in PAGES:
        if page.exists():
            for line in re.findall(
                r"^(?:\$ )?rustunnel-py [^|<>&#\n]*", page.read_text(encoding="utf-8"), re.MULTILINE
            ):
                check_options(shlex.split(line.removeprefix("$ ")))


def test_tags_are_known() -> None:
    for block in BLOCKS:
        assert block.tags in (["console"], ["console", "needs=docker"]), block.where


def test_configuration_page_lists_the_keys_as_they_are() -> None:
    page = ROOT / "docs" / "configuration.md"
    text = page.read_text(encoding="utf-8")
    assert configuration_keys.rewritten(text) == text, "run: make docs"


def test_example_file_names_every_key_with_its_default() -> None:
    text = (ROOT / "server.toml.example").read_text(encoding="utf-8")
    default = load(None, {}, {})
    everything = re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)
    for shown in (text, everything):
        assert repr(load(shown, {}, {})) == repr(default)
    for key in keys():
        table = everything.partition(f"[{key.table}]\n")[2].partition("\n[")[0]
        assert re.search(rf"^{key.name} = ", table, re.MULTILINE), key.dotted


def test_settings_and_commands_of_the_image_exist() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    settings = dict(re.findall(r"(RUSTUNNEL_\w+)=(\S+)", text))
    loaded = load(None, settings, {})
    assert (loaded.server.dashboard_host, loaded.server.dashboard_port, loaded.server.dashboard_tls) == (
        "::",
        8443,
        True,
    )
    assert (loaded.server.http_port, loaded.server.https_port, loaded.server.control_port) == (80, 443, 4040)
    exposed = set(re.findall(r"\d+", re.findall(r"^EXPOSE (.*)$", text, re.MULTILINE)[0]))
    assert exposed == {"80", "443", "4040", "8443", *map(str, loaded.limits.tcp_port_range)}
    for command in ("serve", "health"):
        assert f'"{command}"]' in text
        assert command in cli.commands.commands


@pytest.mark.parametrize(
    ("wanted", "got", "fits"),
    [
        (["a", "..."], ["a", "b", "c"], True),
        (["a", "..."], ["a"], True),
        (["..."], [], True),
        (["a"], ["a", "b"], False),
        (["a.c"], ["abc"], False),
    ],
)
def test_the_comparison_itself(wanted: list[str], got: list[str], fits: bool) -> None:
    assert matches(wanted, got) is fits
