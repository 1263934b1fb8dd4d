"""The papers' own figures beside a run's: published.csv, one line for each table, method and metric, with its source.

Values have the units of our metrics: accuracies are shares, bytes are bytes. Tables are named as the experiments.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from florilegium.report.comparison import COLUMNS, Comparison, Line, piped
from florilegium.runs.reader import RunError

FILE = Path(__file__).with_name("published.csv")


class Beside(NamedTuple):
    """A method and a metric: our mean (None where the runs have none), the paper's value, and the paper's words."""

    method: str
    key: str
    ours: float | None
    theirs: float


@cache
def tables() -> dict[str, list[tuple[str, str, float]]]:
    """{table: [(method, metric, value)]}."""
    found: dict[str, list[tuple[str, str, float]]] = {}
    with FILE.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            found.setdefault(row["table"], []).append((row["method"], row["metric"], float(row["value"])))
    return found


@cache
def sources() -> dict[str, str]:
    """{table: the paper it is of}."""
    with FILE.open(encoding="utf-8", newline="") as stream:
        return {row["table"]: row["source"] for row in csv.DictReader(stream)}


def beside(found: Comparison, table: str) -> list[Beside]:
    """The paper's figures in their order, each with ours where an arm has the method's title or name. RunError."""
    if table not in tables():
        raise RunError(f"compare: no published table {table!r}; there are {', '.join(sorted(tables()))}")
    keys = [column.key for column in found.columns]
    lines = {word.casefold(): line for line in reversed(found.lines) for word in (line.name, *line.aliases)}

    def ours(line: Line | None, key: str) -> float | None:
        figure = line.figures[keys.index(key)] if line is not None and key in keys else None
        return figure.mean if figure else None

    return [
        Beside(method, key, ours(lines.get(method.casefold()), key), value) for method, key, value in tables()[table]
    ]


def cells(row: Beside) -> list[str]:
    """Method, metric, ours, theirs, difference."""
    column = next((c for c in COLUMNS if c.key == row.key), None)
    title, scale, digits = (column.title, column.scale, column.digits) if column else (row.key, 1.0, 4)
    mine = "–" if row.ours is None else f"{scale * row.ours:.{digits}f}"
    gap = "" if row.ours is None else f"{scale * (row.ours - row.theirs):+.{digits}f}"
    return [row.method, title, mine, f"{scale * row.theirs:.{digits}f}", gap]


HEAD = ["Method", "Metric", "Ours", "Published", "Difference"]


def title(table: str) -> str:
    """Where the figures are from, and what they cannot say."""
    what = f"{table}: ours beside {sources()[table]}."
    return f"{what} The paper gives no spread; data splits and seeds are not the paper's own."


def drawn(rows: list[Beside], table: str) -> Table:
    """For a terminal."""
    made = Table(title=title(table), title_justify="left", title_style="")
    for n, name in enumerate(HEAD):
        made.add_column(name, justify="left" if n < 2 else "right")
    for row in rows:
        made.add_row(*cells(row), style="" if row.ours is not None else "dim")
    return made


def markdown(rows: list[Beside], table: str) -> str:
    """For a page of docs."""
    return "\n".join([title(table), "", *piped(HEAD, [cells(row) for row in rows], "|---|---|---:|---:|---:|")]) + "\n"
