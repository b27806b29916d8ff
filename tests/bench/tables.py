"""Tables of the results, for a terminal and in Markdown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench.bars import BARS, Results
from tests.bench.works import Sample, Work

OURS = ("ours", "chain")
CHAINS = ("chain", "chain-copying", "v2ray")
BUSY = 0.9  # of a core: a load process this busy cannot do more
NOTES = {
    "*": "the load generator was the bottleneck: the rate is a lower bound",
    "~": "other programs kept more than a fifth of a core busy: do not trust this line",
}


@dataclass(frozen=True)
class Table:
    """Cells under a heading; the first column is text, the others are numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Lay the table out for a terminal."""
        lines = [list(self.head), *map(list, self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        laid = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, laid[0], "-" * (sum(widths) + 2 * len(widths) - 2), *laid[1:], ""])

    def markdown(self) -> str:
        """Write the table in Markdown."""
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.head, rule, *self.rows)]
        return "\n".join([f"## {self.title}", "", *lines, ""])


def table_of(work: Work, samples: Mapping[str, Sample]) -> Table:
    """Show what each contender did in one work, and how ours compares with it."""
    compared = [column for column in work.columns if column.ratio]
    head = ["", *(column.heading for column in work.columns), *(f"ours: {c.ratio}" for c in compared)]
    rows = []
    for name, sample in samples.items():
        if not sample:
            continue
        mine = samples.get("chain" if name in CHAINS else "ours", {})
        shown = [number(sample.get(c.figure, math.nan) * c.scale) for c in work.columns]
        ratios = [ratio(mine.get(c.figure), sample.get(c.figure)) for c in compared]
        own = name in OURS
        rows.append([name + marks(name, sample), *shown, *([""] * len(ratios) if own else ratios)])
    return Table(work.title, head, rows)


def marks(name: str, sample: Sample) -> str:
    """Mark a line that means less than it says."""
    held_back = sample.get("busiest load", 0) >= BUSY and sample["busiest program"] < BUSY - 0.1
    disturbed = sample.get("others", 0) > 0.2
    return " " * (held_back or disturbed) + "*" * (held_back and name != "none") + "~" * disturbed


def ratio(mine: float | None, other: float | None) -> str:
    """Show how many times the other's a figure of ours is."""
    return f"{number(mine / other)}×" if mine and other else "–"


def number(value: float) -> str:
    """Show three digits that count."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table_of_bars(results: Results) -> Table:
    """Show each bar, what was measured in each work that it is about, and whether it was passed."""
    rows = []
    for bar in BARS:
        values = bar.values(results)
        verdict = "not measured"
        if values:
            verdict = "pass" if all(map(bar.passes, values)) else "FAIL"
        measured = " · ".join(map(number, values)) or "–"
        rows.append([bar.about, bar.contender, bar.wanted, measured, verdict])
    return Table("Bars", ["", "who", "wanted", "measured", ""], rows)
