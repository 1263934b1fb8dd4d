"""`florilegium data check PATH`: what a site's own data hold, and what is wrong with them, before any run is joined.

It looks as a client does when it opens its data (examined.py). Exit code 1 when a client would refuse them.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florilegium.config.sections import MODALITIES

if TYPE_CHECKING:  # the other commands start without torch
    from rich.console import Console

    from florilegium.data.datasets import Classes
    from florilegium.data.own.examination import Examined
    from florilegium.data.own.sources import OwnSettings
    from florilegium.data.own.tables import Finding

BAR = 30  # characters of the longest bar


def add_command(commands: Any) -> None:
    """Add `data check` to the command line's sub-commands."""
    data = commands.add_parser("data", help="look at a site's own data: florilegium data check PATH")
    check = data.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "check", help="say what is wrong with data, naming file and row; exit code 1 when a client would refuse them"
    )
    check.add_argument("path", metavar="PATH", help="an image folder, a table, or a saved data set (docs/data.md)")
    check.add_argument("--data", default="emoji", help="the federation's data, whose classes count (conf/data)")
    check.add_argument("--modality", choices=MODALITIES, help="what the client reads; default: what the data have")
    for column in ("text", "label", "image"):
        check.add_argument(f"--{column}-column", metavar="NAME", help=f"as {column}-column of the node configuration")
    check.add_argument("--max-pixels", type=int, metavar="N", help="as max-pixels of the node configuration")
    check.add_argument("--lines", type=int, default=10, help="findings shown of each kind; 0: all")
    check.add_argument("overrides", nargs="*", help="Hydra overrides of the federation's settings: data.image_size=64")
    check.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Look, print, and return the exit code."""
    from florilegium.assets import AssetError
    from florilegium.cli.console import console
    from florilegium.config import composition
    from florilegium.data.datasets import open_dataset
    from florilegium.data.own.examination import examine
    from florilegium.data.own.sources import OwnSettings

    keys = ("text_column", "label_column", "image_column", "max_pixels")
    given = {key: value for key in keys if (value := getattr(options, key)) is not None}
    try:
        conf = composition.compose([f"data={options.data}", *options.overrides])
        own = OwnSettings(str(Path(options.path).expanduser()), **given)
        classes = open_dataset(conf.data).classes
    except (AssetError, ValueError) as error:
        raise SystemExit(f"florilegium: {composition.first_line(error)}") from error
    modality = options.modality or modality_of(own)
    found = examine(own, tuple(classes), modality, int(conf.data.image_size))
    show(found, classes, modality, console(), options.lines)
    return 1 if found.refused else 0


def modality_of(own: OwnSettings) -> str:
    """What the data have: images and texts, images or texts."""
    from florilegium.data.own.sources import open_table
    from florilegium.data.own.tables import Unread

    for modality in ("pair", "image"):
        try:
            open_table(own, modality)
            return modality
        except Unread:
            continue
    return "text"


def show(found: Examined, classes: Classes, modality: str, console: Console, lines: int = 10) -> None:
    """Findings by kind, what is refused first; then rows, classes and sizes."""
    by_kind: dict[tuple[bool, str], list[Finding]] = {}
    for finding in found.findings:
        by_kind.setdefault((not finding.refused, finding.kind), []).append(finding)
    for (warned, kind), those in sorted(by_kind.items()):
        console.print(
            f"{'warning' if warned else 'refused'}: {kind} ({len(those)})",
            style="yellow" if warned else "bold red",
            highlight=False,
        )
        for finding in those[: lines or None]:
            console.print(f"  {finding}", markup=False, highlight=False, soft_wrap=True)
        if lines and len(those) > lines:
            console.print(f"  ... and {len(those) - lines} more (--lines 0 shows all)", highlight=False)
    if found.findings:
        console.print()
    console.print(
        f"{found.layout}, read as {modality}: {found.found} rows, {len(found.rows)} of them usable; "
        f"{len(found.refused)} reasons to refuse, {len(found.findings) - len(found.refused)} warnings",
        markup=False,
        highlight=False,
    )
    for line in sizes(found):
        console.print(line, highlight=False)
    if len(found.rows):
        bars(found, classes, console)


def sizes(found: Examined) -> Iterable[str]:
    """Sizes of images and lengths of texts as they were found."""
    if found.sizes:
        (low, high), count = (min(found.sizes, key=_area), max(found.sizes, key=_area)), len(set(found.sizes))
        yield f"images: {low[0]}x{low[1]} to {high[0]}x{high[1]} pixels, {count} different"
    if found.rows.texts:
        lengths = sorted(len(text.split()) for text in found.rows.texts)
        yield f"texts: {lengths[0]} to {lengths[-1]} words, median {lengths[len(lengths) // 2]}"


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def bars(found: Examined, classes: Classes, console: Console) -> None:
    """Rows of each class that has any."""
    from rich.table import Table

    counts = Counter(found.rows.labels.tolist())
    most = max(counts.values())
    table = Table("class", "rows", "", box=None, header_style="bold")
    for label, count in sorted(counts.items()):
        table.add_row(classes[label], str(count), "█" * -(-BAR * count // most))
    console.print(table)
