"""Tables of the results, for a terminal and in Markdown."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench.bars import BARS, Results
from tests.bench.medians import Rounds, median, ratio
from tests.bench.works import Work

OURS = ("ours", "chain", "chain-tls", "chain-socks")
# Which of ours does what a contender does, where it is not the plain SOCKS5 server.
LIKE = {
    "chain-copying": "chain",
    "v2ray": "chain",
    "v2ray-tls": "chain-tls",
    "openssl": "chain-tls",
    "chain-tls-workers": "chain-tls",
}
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


def table_of(work: Work, measured: Mapping[str, Rounds]) -> Table:
    """Show what each contender did in one work, and how ours compares with it."""
    compared = [column for column in work.columns if column.ratio]
    head = ["", *(column.heading for column in work.columns), *(f"ours: {c.ratio}" for c in compared)]
    rows = []
    for name, rounds in measured.items():
        if not any(rounds):
            continue
        ours = measured.get(counterpart(name, work), [])
        shown = [number(median(rounds, c.figure) * c.scale) for c in work.columns]
        ratios = ["" if name in OURS else times(ratio(ours, rounds, c.figure)) for c in compared]
        rows.append([name + marks(name, rounds), *shown, *ratios])
    return Table(work.title, head, rows)


def counterpart(name: str, work: Work) -> str:
    """Name the one of ours that a contender is compared with."""
    if name.endswith("-before"):
        return name.removesuffix("-before")
    return "chain-tls" if work.law else LIKE.get(name, "ours")


def marks(name: str, rounds: Rounds) -> str:
    """Mark a line that means less than it says."""
    held_back = median(rounds, "busiest load") >= BUSY and median(rounds, "busiest program") < BUSY - 0.1
    disturbed = median(rounds, "others") > 0.2
    return " " * (held_back or disturbed) + "*" * (held_back and name != "none") + "~" * disturbed


def times(value: float) -> str:
    """Show a ratio."""
    return "–" if math.isnan(value) else f"{number(value)}×"


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
