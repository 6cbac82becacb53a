"""Rows of the result: figures round by round, the bounds they shall reach, text, JSON and a plot."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 47
CHANGED = 0.15  # a smaller difference from the last run is this machine's noise


@dataclass(slots=True)
class Row:
    """One line of the table. `at_latest` bounds the ratio where there is a reference, else the median; None: none.

    `less_is_better` says on which side of the bound is good.
    """

    name: str
    unit: str
    at_latest: float | None = None
    less_is_better: bool = False
    ours: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.ours)

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios."""
        if not self.reference:
            return None
        return statistics.median(o / r for o, r in zip(self.ours, self.reference, strict=True))

    @property
    def verdict(self) -> str:
        if self.at_latest is None or not self.ours:
            return ""
        figure = self.median if self.ratio is None else self.ratio
        good = figure <= self.at_latest if self.less_is_better else figure >= self.at_latest
        return f"{'≤' if self.less_is_better else '≥'} {self.at_latest:g} {'yes' if good else 'NO'}"

    def show(self, before: Row | None = None) -> str:
        if not self.ours:
            return f"{self.name:{WIDTH}} could not be measured"
        text = f"{self.name:{WIDTH}} {self.median:9.2f} {min(self.ours):9.2f} {max(self.ours):9.2f} {self.unit:8}"
        reference = f"{statistics.median(self.reference):9.2f} {self.ratio:7.2f}" if self.reference else " " * 17
        return f"{text} {reference} {self.verdict:12} {self._change(before)}".rstrip()

    def _change(self, before: Row | None) -> str:
        """How it differs from the last run: by the ratios where there are any, since machines are noisy."""
        if before is None or not before.ours:
            return ""
        now, then = (self.ratio, before.ratio) if self.ratio and before.ratio else (self.median, before.median)
        if not then or abs(now / then - 1) < CHANGED:
            return ""
        return f"{(now / then - 1) * 100:+.0f} % since the last run"


def header() -> str:
    return f"{'':{WIDTH}} {'median':>9} {'min':>9} {'max':>9} {'':8} {'reference':>9} {'ratio':>7} at the latest"


def save(rows: list[Row], build: str, path: Path) -> None:
    result = {
        "python": build,
        "rows": [{"name": r.name, "unit": r.unit, "ours": r.ours, "reference": r.reference} for r in rows],
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


def last_result(folder: Path) -> dict[str, Row]:
    """The rows of the newest result by name; none where there is no result."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        return {}
    rows = json.loads(paths[-1].read_text())["rows"]
    return {r["name"]: Row(r["name"], r["unit"], ours=r["ours"], reference=r["reference"]) for r in rows}


def plot(rows: list[Row], title: str) -> str:
    """Ratios as bars with the spread of the rounds, as SVG."""
    shown = [row for row in rows if row.ours and row.reference]
    longest = max((o / r for row in shown for o, r in zip(row.ours, row.reference, strict=True)), default=1.0)
    scale = 400 / max(longest, 1.0)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="860" height="{50 + 24 * len(shown)}" '
        'font-family="sans-serif" font-size="12">',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
    ]
    for index, row in enumerate(shown):
        y = 36 + 24 * index
        ratios = [o / r for o, r in zip(row.ours, row.reference, strict=True)]
        middle = statistics.median(ratios)
        lines += [
            f'<text x="330" y="{y + 13}" text-anchor="end">{escape(row.name)}</text>',
            f'<rect x="340" y="{y}" width="{middle * scale:.1f}" height="16" fill="#4a7db5"/>',
            f'<line x1="{340 + min(ratios) * scale:.1f}" x2="{340 + max(ratios) * scale:.1f}" y1="{y + 8}" '
            f'y2="{y + 8}" stroke="black"/>',
            f'<text x="{348 + max(ratios) * scale:.1f}" y="{y + 13}">{middle:.2f}</text>',
        ]
        if row.at_latest is not None:
            x = 340 + row.at_latest * scale
            lines.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 2}" y2="{y + 18}" stroke="#c33"/>')
    return "\n".join([*lines, "</svg>", ""])
