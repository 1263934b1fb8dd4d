"""`florilegium settings [KEY]`: what a key means, its default and range, and which files of conf/ set it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from rich.markup import escape
from rich.table import Table

from florilegium.config.errors import SettingsError
from florilegium.config.reference import Described, chosen, conf_folder, described, look_up, set_in
from florilegium.config.settings import Settings
from florilegium.runs.terminal import console

ERRORS: tuple[type[Exception], ...] = (SettingsError,)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `florilegium settings`."""
    command.add_argument("key", nargs="?", metavar="KEY", help="a section or a setting, e.g. clients or clients.width")
    command.add_argument("--method", help="the method whose settings lie under `method` (default: that of a plain run)")


def run(options: argparse.Namespace) -> None:
    """Print the sections, the settings of one section, or everything about one setting. SettingsError."""
    if options.key is None:
        console().print(overview())
        console().print("\nflorilegium settings KEY describes a section or a setting; with --method NAME a method's.")
        return
    method = options.method or chosen(conf_folder() / "config.yaml")
    found, below = look_up(options.key, method)
    if below:
        console().print(f"[bold]{found.key}[/bold]: {escape(found.help)}\n")
        console().print(table(below))
    else:
        console().print(details(found, method))


def overview() -> Table:
    """The sections at the top, and the settings that belong to none."""
    top = [each for each in described(Settings) if "." not in each.key and "[" not in each.key]
    return table(top)


def table(those: Iterable[Described]) -> Table:
    """One line for each key."""
    made = Table("setting", "type", "default", "allowed", "what it is", box=None, header_style="bold")
    for each in those:
        default = "" if each.section else shown(each.default)
        kind = "section" if each.section else each.type
        made.add_row(*map(escape, (each.key, kind, default, each.range, each.help)))
    return made


def details(found: Described, method: str) -> Table:
    """Everything about one key."""
    made = Table(box=None, show_header=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    lines = [("setting", found.key), ("what it is", found.help), ("type", found.type)]
    lines += [("default", shown(found.default))] + ([("allowed", found.range)] if found.range else [])
    lines += [("set in", f"{file}: {shown(value)}") for file, value in set_in(found.key, method)]
    for name, value in lines:
        made.add_row(name, escape(value))
    return made


def shown(value: Any) -> str:
    """A value as YAML would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return '""' if value == "" else str(value)
