"""`florilegium report RUN...`: the page of one run, or one page over many runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from florilegium.report import many, page
from florilegium.report.comparison import CHOSEN, found
from florilegium.report.differences import LEVEL
from florilegium.runs.reader import RunError

ERRORS = (RunError,)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The runs, where their page goes, and which of their figures count."""
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory, or a folder of them")
    command.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page over several runs; default: report.html in the folder that holds them",
    )
    command.add_argument("--each", action="store_true", help="write the page of each run instead of one over all")
    command.add_argument("--at", choices=tuple(CHOSEN), default="last", help="which round's figures")
    command.add_argument(
        "--against", "--to", metavar="ARM", help="the arm of the differences, by title, name or method"
    )
    command.add_argument("--level", type=float, default=LEVEL, help="of the confidence intervals, default %(default)s")


def run(options: argparse.Namespace) -> None:
    """Write the page, or the pages, and print the path of each. RunError."""
    if options.each and options.out is not None:
        raise RunError("report: --out names the one page over all runs; --each writes the page of each")
    paths = found(options.runs)
    if options.each or (len(paths) == 1 and options.out is None):
        for directory in paths:
            print(page.write(directory))
        return
    print(many.write(paths, options.out, at=options.at, against=options.against, level=options.level))
