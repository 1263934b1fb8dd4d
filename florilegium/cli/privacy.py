"""`florilegium privacy METHOD`: print what crosses the wire between a site and the server, field by field."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.markup import escape
from rich.table import Table

from florilegium.assets import AssetError
from florilegium.config import composition, overrides
from florilegium.data.own import preparation
from florilegium.privacy.listing import AT_MOST, Field, Listing, listing
from florilegium.runs.terminal import console

FORMATS = ("table", "markdown", "json")
ERRORS = (ValueError, AssetError)  # settings that the method refuses, data or models that are not there


# -- printing ----------------------------------------------------------------------------------------------------------


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `florilegium privacy`."""
    command.add_argument("method", metavar="METHOD")
    command.add_argument("overrides", nargs="*", help="Hydra overrides, as of `florilegium run`")
    command.add_argument("--format", choices=FORMATS, default="table")


def run(options: argparse.Namespace) -> None:
    """Print the listing of a method under the settings."""
    conf = composition.compose([f"method={options.method}", *overrides.readable(options.overrides)])
    if conf.data.own:
        conf.data.classes = preparation.class_names(conf)  # sizes depend on how many there are
    found = listing(conf)
    if options.format == "json":
        print(json.dumps(asdict(found), indent=1))
    elif options.format == "markdown":
        print(markdown(found))
    else:
        _print(found)


def shown(found: Listing) -> Iterator[tuple[str, ...]]:
    """The cells of each field; what all fields of a payload share stands beside the first."""
    before: tuple[str, ...] = ()
    for f in found.fields:
        shared = (f.phase, f.way, f.payload)
        sees, carries = ("", "") if shared == before else (f.sees, f.carries)
        yield (*shared, f.name, f.kind, f.holds, f.axes, _size(f), sees, carries)
        before = shared


def _size(f: Field) -> str:
    if f.size is None:
        return ""
    most = "at most " if f.kind != "state dict" and AT_MOST & set(f.axes.split(" x ")) else ""
    return f"{most}{f.size:,} B"


COLUMNS = ("phase", "way", "payload", "field", "type", "holds", "axes", "size", "seen by", "carries")


def markdown(found: Listing) -> str:
    """The listing as a Markdown table and its notes as a list."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *shown(found)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n\n" if found.fields else ""
    return f"{table}{chr(10).join(f'- {note}' for note in found.notes)}"


def _print(found: Listing) -> None:
    table = Table(*COLUMNS, box=None, header_style="bold", title=f"{found.method}: {found.exchanges}")
    for row in shown(found):
        table.add_row(*map(escape, row))
    if found.fields:
        console().print(table, highlight=False)
    for note in found.notes:
        console().print(f"- {note}", markup=False, highlight=False)
