"""Every row of the table of hostile and edge inputs has a test named after it, or a line that says why not.

A row is covered by a test function whose name holds its id (`test_H45_...`), or by cases of the corpus.
`docs/out-of-scope.md` begins a line with `| H99 |` for a row that has none.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.hostile.corpus import CASES, REPLY_CASES

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"(?<![A-Za-z0-9])([A-Z][0-9]{2})(?![0-9])")


def rows(letter: str, first: int, last: int) -> list[str]:
    return [f"{letter}{number:02d}" for number in range(first, last + 1)]


ROWS = [*rows("H", 1, 67), *rows("W", 20, 22), *rows("T", 1, 16), *rows("A", 1, 28), *rows("D", 1, 14)]


def in_names() -> set[str]:
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found.update(ROW.findall(node.name.replace("_", " ")))
    return found


def in_corpus() -> set[str]:
    return {case.row for case in CASES} | {case.row for case in REPLY_CASES}


def out_of_scope() -> set[str]:
    path = ROOT / "docs" / "out-of-scope.md"
    return {
        row for line in path.read_text("utf-8").splitlines() if line.startswith("| ") for row in ROW.findall(line[:12])
    }


def test_every_row_has_a_test_or_a_reason() -> None:
    covered = in_names() | in_corpus()
    excused = out_of_scope()
    assert [row for row in ROWS if row not in covered and row not in excused] == []


def test_no_row_of_these_has_both() -> None:
    assert sorted((in_names() | in_corpus()) & out_of_scope() & set(ROWS)) == []
