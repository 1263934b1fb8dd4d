"""Write the tables of README.md, docs/results.md and docs/wire.md again, from the records in docs/records.

    python tools/result_tables.py            # write
    python tools/result_tables.py --check    # exit code 1 when a table is not what its records give

Two kinds of tables stand between a comment that says what they show and `<!-- end -->`. Only the table itself is
written by this tool, the text around it is not.

    <!-- compare ARGUMENTS -->    the tables of `florilegium compare ARGUMENTS`; runs are named from docs/
    <!-- aims NAME... -->         claims of docs/records/aims.yaml: what was asked, what was measured, and the verdict
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from florilegium.cli import compare as command
from florilegium.report.comparison import compare
from florilegium.report.differences import Difference

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = (DOCS / "results.md", DOCS / "wire.md", DOCS.parent / "README.md")
BLOCK = re.compile(r"(<!-- (?P<kind>compare|aims) (?P<arguments>[^\n]*) -->\n)(?P<table>.*?)(<!-- end -->)", re.DOTALL)
PER_CENT = 100  # the scale of a column that is a share
AIMS = ("figure", "arm", "compared with", "difference", "aim", "seeds", "result")  # its columns


def table(arguments: str, docs: Path = DOCS) -> str:
    """The Markdown that `florilegium compare ARGUMENTS` prints; with one seed, without differences."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    command.add_arguments(parser)
    options = parser.parse_args(shlex.split(arguments))
    with contextlib.chdir(docs):  # so that warnings name the runs from there
        found = compare(
            options.runs,
            at=options.at,
            force=options.force,
            against=options.against,
            level=options.level,
            metrics=options.metric,
        )
    several = any(row.difference and row.difference.interval for row in found.compared())
    return (found if several else dataclasses.replace(found, against=None)).markdown()


def aims(names: str, docs: Path = DOCS) -> str:
    """One line for each named claim of aims.yaml and each arm that it is compared with. KeyError: no such claim."""
    known = yaml.safe_load((docs / "records" / "aims.yaml").read_text(encoding="utf-8"))
    rows = [row for name in names.split() for row in measured(known[name], docs)]
    head = f"| {' | '.join(AIMS)} |\n|---|---|---|---:|---:|---:|---|"
    return "\n".join([head, *(f"| {' | '.join(row)} |" for row in rows)])


def measured(aim: dict[str, Any], docs: Path) -> Iterator[list[str]]:
    """The cells of a claim's lines. ValueError where its runs do not have the arms."""
    with contextlib.chdir(docs):
        opened = compare(aim["runs"], at=aim.get("at", "last"), force=True, metrics=[aim["metric"]])
    for against in aim["against"]:
        found = opened.to(against)
        rows = [row for row in found.compared() if row.line.name == aim["arm"] and row.difference]
        if len(rows) != 1 or found.against is None:
            raise ValueError(f"aims.yaml: the runs of {aim['claim']!r} have no pair of {aim['arm']!r} and {against!r}")
        row, unit, digits = rows[0], rows[0].column.scale, rows[0].column.digits
        other = found.against.figures[found.columns.index(row.column)]
        low, high = (f"{unit * end:+.{digits}f}" for end in row.difference.interval or (math.nan, math.nan))
        shown = [f"{unit * mean:.{digits}f}" for mean in (row.figure.mean, other.mean if other else math.nan)]
        between = f" [{low}, {high}]" if row.difference.interval else ""
        yield [
            f"{aim['claim']}, %" if unit == PER_CENT else aim["claim"],
            f"{aim['arm']} {shown[0]}",
            f"{against} {shown[1]}",
            f"{unit * row.difference.mean:+.{digits}f}{between}",
            f"≥ {aim['asked']:g}" if aim["asked"] else "> 0",
            str(len(row.difference.seeds)),
            verdict(row.difference, aim["asked"] / unit),
        ]


def verdict(found: Difference, asked: float) -> str:
    """What a difference says of what was asked. It is decided where its interval excludes zero."""
    if not found.decided:
        return found.verdict  # `not decided`, or `one seed`
    if found.mean < 0:
        return "**lower**"
    return "**reached**" if found.mean >= asked else "**higher**, but less than the aim"


def written(text: str, docs: Path = DOCS) -> str:
    """A page with each of its tables made again."""
    kinds = {"compare": table, "aims": aims}
    return BLOCK.sub(
        lambda block: f"{block[1]}\n{kinds[block['kind']](block['arguments'], docs).strip()}\n\n{block[5]}", text
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        made = written(text)
        if args.check and made != text:
            sys.exit(f"{page.name}: a table is not what its records give; run python tools/result_tables.py")
        if made != text:
            page.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
