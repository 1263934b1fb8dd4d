"""`florilegium methods`: every method there is, as a table."""

from __future__ import annotations

import argparse

from rich.table import Table

from florilegium import catalogue
from florilegium.runs.terminal import console

ERRORS: tuple[type[Exception], ...] = ()


def add_arguments(_: argparse.ArgumentParser) -> None:
    """`florilegium methods` has no options."""


def run(_: argparse.Namespace) -> None:
    """Print the table of methods."""
    table = Table("method", "paper", "exchanges", "clients", box=None, header_style="bold")
    for row in catalogue.methods_table(catalogue.entries()):
        table.add_row(*row)
    console().print(table)
    for line in catalogue.problems().values():
        console().print(line, style="yellow", markup=False, highlight=False)
