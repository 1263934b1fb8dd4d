"""The `florilegium` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from florilegium.config.errors import first_line

COMPLETION = ("-sc", "--shell-completion")


@dataclass(frozen=True)
class Command:
    """A sub-command: one line of help, and the module that is loaded when it is called and not before.

    The module has `add_arguments(parser)`, `run(options)`, which returns an exit code or None, and `ERRORS`: the
    exceptions whose message is what the user is told.
    """

    module: str
    help: str


COMMANDS = {
    "methods": Command("florilegium.cli.methods", "list the methods"),
    "settings": Command("florilegium.cli.settings", "what a setting means: florilegium settings [KEY]"),
    "report": Command("florilegium.cli.report", "report.html of a run, or one page over many runs"),
    "compare": Command("florilegium.cli.compare", "one table over runs: mean and spread over seeds"),
    "plan": Command("florilegium.cli.plan", "what a run will need: GPU memory, disk, hours, bytes"),
    "privacy": Command("florilegium.cli.privacy", "list what a method sends: florilegium privacy METHOD [overrides]"),
    "data": Command("florilegium.cli.data_check", "look at a site's own data: florilegium data check PATH"),
    "judge": Command("florilegium.cli.judge", "a classifier that measures generated images: judge train DIR data=..."),
    "convert": Command("florilegium.cli.convert", "published checkpoints as a pipeline: convert glide BASE UP DIR"),
    "deploy": Command("florilegium.cli.deploy", "a federation on real machines; `deploy local` is one on this machine"),
}


def main() -> None:
    """Entry point of the console script: exits with the command's code."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that is not UTF-8 gets a stand-in for what it cannot show
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="replace")
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"] or any(option in arguments for option in COMPLETION):
        sys.exit(run(arguments[1:] if arguments[0] == "run" else arguments))
    if arguments[:2] == ["deploy", "local"]:
        sys.exit(run(local(arguments[2:])))
    options = parse(arguments)
    try:
        if code := options.command(options):
            sys.exit(code)
    except options.errors as error:
        sys.exit(f"florilegium: {first_line(error)}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line, with `command`, the function that does it, and `errors`, what it may raise.

    Only the module of the sub-command that is called is loaded.
    """
    top = argparse.ArgumentParser("florilegium", description="Federated knowledge transfer with text-to-image models.")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands.add_parser("run", help="run a method: florilegium run [-m] [Hydra overrides]; --help shows the settings")
    for name, command in COMMANDS.items():
        added = commands.add_parser(name, help=command.help)
        if name in arguments[:1]:
            module: Any = import_module(command.module)
            added.set_defaults(command=module.run, errors=module.ERRORS)
            module.add_arguments(added)
    options, rest = top.parse_known_args(arguments)
    if rest and hasattr(options, "overrides") and all("=" in text and not text.startswith("-") for text in rest):
        options.overrides, rest = [*options.overrides, *rest], []  # argparse takes none behind an option
    if rest:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def run(arguments: list[str]) -> int:
    """`florilegium run`: everything after it is Hydra's."""
    line = os.environ.get("COMP_LINE", "").split(maxsplit=2)
    if len(line) > 1 and line[1] == "run":  # the shell completes 'florilegium run ...'; Hydra knows one word only
        os.environ["COMP_LINE"] = f"{line[0]} {line[2] if len(line) > 2 else ''}"
    return int(import_module("florilegium.runtime.launch").main(arguments))


def local(arguments: list[str]) -> list[str]:
    """`florilegium deploy local ...` is `florilegium run runtime=local ...`."""
    keep = ["runtime.keep=true"] if "--keep" in arguments else []
    return ["runtime=local", *keep, *(argument for argument in arguments if argument != "--keep")]


if __name__ == "__main__":
    main()
