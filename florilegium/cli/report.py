"""`florilegium report RUN...`: write the page of each run."""

from __future__ import annotations

import argparse
from pathlib import Path

from florilegium.report import page
from florilegium.runs.reader import RunError

ERRORS = (RunError,)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The runs whose pages are written."""
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory, or a folder of them")


def run(options: argparse.Namespace) -> None:
    """Write each page and print its path. RunError."""
    for directory in options.runs:
        print(page.write(directory))
