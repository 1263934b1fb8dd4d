"""`florilegium methods`: every method there is, as a table."""

from __future__ import annotations

import argparse

from rich.table import Table

from florilegium.catalogue import methods_table
from florilegium.cli.console import console

ERRORS: tuple[type[Exception], ...] = ()


def add_arguments(_: argparse.ArgumentParser) -> None:
    """`florilegium methods` has no options."""


def run(_: argparse.Namespace) -> None:
    """Print the table of methods."""
    table = Table("method", "paper", "exchanges", "clients", box=None, header_style="bold")
    for row in methods_table():
        table.add_row(*row)
    console().print(table)
