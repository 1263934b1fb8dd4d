"""`florilegium plan OVERRIDE...`: what a run will need, before it starts."""

from __future__ import annotations

import argparse

from rich.table import Table

from florilegium.config import composition, overrides
from florilegium.config.composition import SettingsError
from florilegium.runs.terminal import console
from florilegium.runtime.plan import GIB, plan

ERRORS = (SettingsError, ValueError, OSError)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The overrides of the run, and a card that is not in this machine."""
    command.add_argument("--memory", type=float, metavar="GIB", help="memory of the GPU; default: that of this machine")
    command.add_argument("--tflops", type=float, help="its rate of matrix products; default: measured on this machine")
    command.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as of `florilegium run`")


def run(options: argparse.Namespace) -> int:
    """Print the plan. Exit code 1 where the memory does not suffice."""
    found = plan(
        composition.compose(overrides.readable(options.overrides)),
        None if options.tflops is None else options.tflops * 1e12,
        None if options.memory is None else options.memory * GIB,
    )
    table = Table(show_header=False, box=None)
    for line in found.lines:
        table.add_row(*line)
    console().print(table)
    for advice in found.advice:
        console().print(f"too little GPU memory: {advice}")
    return 1 if found.advice else 0
