"""The `florilegium` command."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from florilegium.cli.console import console

COMPLETION = ("-sc", "--shell-completion")


def main() -> None:
    """Entry point of the console script: exits with the command's code."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"] or any(option in arguments for option in COMPLETION):
        sys.exit(run(arguments[1:] if arguments[0] == "run" else arguments))
    if arguments[:2] == ["deploy", "local"]:
        sys.exit(run(local(arguments[2:])))
    options = parser().parse_args(arguments)
    from florilegium.runs.reader import RunError
    from florilegium.runtime.keys import KeyFileError
    from florilegium.runtime.superlink import LaunchError

    try:
        if code := options.command(options):
            sys.exit(code)
    except (RunError, KeyFileError, LaunchError) as error:
        sys.exit(f"florilegium: {error}")


def run(arguments: list[str]) -> int:
    """`florilegium run`: everything after it is Hydra's."""
    line = os.environ.get("COMP_LINE", "").split(maxsplit=2)
    if len(line) > 1 and line[1] == "run":  # the shell completes 'florilegium run ...'; Hydra knows one word only
        os.environ["COMP_LINE"] = f"{line[0]} {line[2] if len(line) > 2 else ''}"
    from florilegium.runtime import launch

    return launch.main(arguments)


def local(arguments: list[str]) -> list[str]:
    """`florilegium deploy local ...` is `florilegium run runtime=local ...`."""
    keep = ["runtime.keep=true"] if "--keep" in arguments else []
    return ["runtime=local", *keep, *(argument for argument in arguments if argument != "--keep")]


def parser() -> argparse.ArgumentParser:
    from florilegium.cli import data_check, privacy

    top = argparse.ArgumentParser("florilegium", description="Federated knowledge transfer with text-to-image models.")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands.add_parser("run", help="run a method: florilegium run [-m] [Hydra overrides]; --help shows the settings")
    methods = commands.add_parser("methods", help="list the methods")
    methods.set_defaults(command=show_methods)
    reports = commands.add_parser("report", help="write report.html of each run")
    reports.set_defaults(command=write_reports)
    table = commands.add_parser("compare", help="one table over runs: mean and spread over seeds")
    table.add_argument(
        "--at",
        choices=("last", "best_on_validation", "second_half"),
        default="last",
        help="which round's figures, or the mean of the evaluated rounds of the second half",
    )
    table.add_argument("--format", choices=("table", "markdown", "csv"), default="table")
    table.add_argument("--force", action="store_true", help="also runs under different protocols")
    table.set_defaults(command=compare_runs)
    data_check.add_command(commands)
    privacy.add_command(commands)
    from florilegium.cli.deploy import add_commands

    add_commands(commands.add_parser("deploy", help="a federation on real machines; `deploy local` is one on this"))
    for command in (reports, table):
        command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory, or a folder of them")
    return top


def show_methods(_: argparse.Namespace) -> None:
    from rich.table import Table

    from florilegium.report.page import methods_table

    table = Table("method", "paper", "exchanges", "clients", box=None, header_style="bold")
    for row in methods_table():
        table.add_row(*row)
    console().print(table)


def write_reports(options: argparse.Namespace) -> None:
    from florilegium.report import page

    for directory in options.runs:
        print(page.write(directory))


def compare_runs(options: argparse.Namespace) -> None:
    from florilegium.report.page import compare

    found = compare(options.runs, at=options.at, force=options.force)
    if options.format == "table":
        console().print(found.table())
    else:
        print(found.markdown() if options.format == "markdown" else found.csv(), end="")


if __name__ == "__main__":
    main()
