"""The `florilegium` command."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

COMPLETION = ("-sc", "--shell-completion")


def main() -> None:
    """Entry point of the console script: exits with the command's code."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"] or any(option in arguments for option in COMPLETION):
        sys.exit(run(arguments[1:] if arguments[0] == "run" else arguments))
    options = parser().parse_args(arguments)
    sys.exit(options.command(options))


def run(arguments: list[str]) -> int:
    """`florilegium run`: everything after it is Hydra's."""
    line = os.environ.get("COMP_LINE", "").split(maxsplit=2)
    if len(line) > 1 and line[1] == "run":  # the shell completes 'florilegium run ...'; Hydra knows one word only
        os.environ["COMP_LINE"] = f"{line[0]} {line[2] if len(line) > 2 else ''}"
    from florilegium import launch

    return launch.main(arguments)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("florilegium", description="Federated knowledge transfer with text-to-image models.")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands.add_parser("run", help="run a method: florilegium run [-m] [Hydra overrides]; --help shows the settings")
    methods = commands.add_parser("methods", help="list the methods")
    methods.set_defaults(command=show_methods)
    for name, command, text in (("report", write_reports, "write report.html of each run"),
                                ("compare", compare_runs, "one table over runs: mean and spread over seeds")):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory")
        sub.set_defaults(command=command)
    return top


def show_methods(_: argparse.Namespace) -> int:
    from florilegium import report

    print(report.methods_table())
    return 0


def write_reports(options: argparse.Namespace) -> int:
    from florilegium import report

    if bad := not_runs(options.runs):
        return bad
    for run_directory in options.runs:
        print(report.write_report(run_directory))
    return 0


def compare_runs(options: argparse.Namespace) -> int:
    from florilegium import report

    if bad := not_runs(options.runs):
        return bad
    print(report.compare(options.runs))
    return 0


def not_runs(directories: list[Path]) -> int:
    """0 when each directory holds a run; else says in one line which does not, and returns 2."""
    for directory in directories:
        if not (directory / "rounds.jsonl").is_file():
            print(f"florilegium: {directory} is no run directory: it has no rounds.jsonl", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    main()
