"""`florilegium compare RUN...`: tables over runs: means, and differences with their confidence intervals."""

from __future__ import annotations

import argparse
from pathlib import Path

from florilegium.report import published
from florilegium.report.comparison import CHOSEN, compare
from florilegium.report.differences import LEVEL
from florilegium.runs.reader import RunError
from florilegium.runs.terminal import console

ERRORS = (RunError,)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The runs, which of their figures count, what they are compared with, and the form of the tables."""
    command.add_argument(
        "--at",
        choices=tuple(CHOSEN),
        default="last",
        help="which round's figures, or the mean of the evaluated rounds of the second half",
    )
    command.add_argument(
        "--against",
        "--to",
        metavar="ARM",
        help="the arm of the differences, by title, name or method; default: where clients learn alone, or the first",
    )
    command.add_argument("--level", type=float, default=LEVEL, help="of the confidence intervals, default %(default)s")
    command.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="PATTERN",
        help="a metric or a pattern such as 'client/accuracy/*'; may be repeated; default: the headline figures",
    )
    command.add_argument("--format", choices=("table", "markdown", "csv"), default="table")
    command.add_argument(
        "--markdown", action="store_const", const="markdown", dest="format", help="the same as --format markdown"
    )
    command.add_argument("--csv", action="store_const", const="csv", dest="format", help="the same as --format csv")
    command.add_argument(
        "--published",
        metavar="TABLE",
        help="also a paper's figures beside ours; PAPER/TABLE, the name of its experiment",
    )
    command.add_argument("--force", action="store_true", help="also runs under different protocols")
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory, or a folder of them")


def run(options: argparse.Namespace) -> None:
    """Print the tables. RunError for runs that cannot be read or compared."""
    found = compare(
        options.runs,
        at=options.at,
        force=options.force,
        against=options.against,
        level=options.level,
        metrics=options.metric,
    )
    rows = published.beside(found, options.published) if options.published else []
    if options.format == "table":
        for table in [*found.tables(), *([published.drawn(rows, options.published)] if rows else [])]:
            console().print(table)
        return
    print(found.markdown() if options.format == "markdown" else found.csv(), end="")
    if rows and options.format == "markdown":
        print("\n" + published.markdown(rows, options.published), end="")
