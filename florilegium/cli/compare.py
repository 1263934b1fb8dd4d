"""`florilegium compare RUN...`: one table over runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from florilegium.cli.console import console
from florilegium.report.comparison import CHOSEN, compare
from florilegium.runs.reader import RunError

ERRORS = (RunError,)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The runs, which of their figures count, and the form of the table."""
    command.add_argument(
        "--at",
        choices=tuple(CHOSEN),
        default="last",
        help="which round's figures, or the mean of the evaluated rounds of the second half",
    )
    command.add_argument("--format", choices=("table", "markdown", "csv"), default="table")
    command.add_argument("--force", action="store_true", help="also runs under different protocols")
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory, or a folder of them")


def run(options: argparse.Namespace) -> None:
    """Print the table. RunError for runs that cannot be read or compared."""
    found = compare(options.runs, at=options.at, force=options.force)
    if options.format == "table":
        console().print(found.table())
    else:
        print(found.markdown() if options.format == "markdown" else found.csv(), end="")
