"""`florilegium data check PATH`: what a site's own data hold, and what is wrong with them, before any run is joined.

It looks as a client does when it opens its data (examined.py). Exit code 1 when a client would refuse them.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from florilegium.assets import AssetError
from florilegium.cli.console import console
from florilegium.config import composition
from florilegium.config.data import MODALITIES
from florilegium.data.datasets import Classes, open_dataset
from florilegium.data.own.examination import Examined, examine
from florilegium.data.own.findings import Finding, Unread
from florilegium.data.own.sources import OwnSettings, open_table

ERRORS = (AssetError, ValueError)  # settings, data of the federation, or options that cannot be used
BAR = 30  # characters of the longest bar


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `florilegium data check`."""
    check = command.add_subparsers(required=True, metavar="COMMAND").add_parser(
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


def run(options: argparse.Namespace) -> int:
    """Look, print, and return the exit code."""
    keys = ("text_column", "label_column", "image_column", "max_pixels")
    given = {key: value for key in keys if (value := getattr(options, key)) is not None}
    conf = composition.compose([f"data={options.data}", *options.overrides])
    own = OwnSettings(str(Path(options.path).expanduser()), **given)
    classes = open_dataset(conf.data).classes
    modality = options.modality or modality_of(own)
    found = examine(own, tuple(classes), modality, int(conf.data.image_size))
    show(found, classes, modality, console(), options.lines)
    return 1 if found.refused else 0


def modality_of(own: OwnSettings) -> str:
    """What the data have: images and texts, images or texts."""
    for modality in ("pair", "image"):
        try:
            open_table(own, modality)
            return modality
        except Unread:
            continue
    return "text"


def show(found: Examined, classes: Classes, modality: str, screen: Console, lines: int = 10) -> None:
    """Findings by kind, what is refused first; then rows, classes and sizes."""
    by_kind: dict[tuple[bool, str], list[Finding]] = {}
    for finding in found.findings:
        by_kind.setdefault((not finding.refused, finding.kind), []).append(finding)
    for (warned, kind), those in sorted(by_kind.items()):
        screen.print(
            f"{'warning' if warned else 'refused'}: {kind} ({len(those)})",
            style="yellow" if warned else "bold red",
            highlight=False,
        )
        for finding in those[: lines or None]:
            screen.print(f"  {finding}", markup=False, highlight=False, soft_wrap=True)
        if lines and len(those) > lines:
            screen.print(f"  ... and {len(those) - lines} more (--lines 0 shows all)", highlight=False)
    if found.findings:
        screen.print()
    screen.print(
        f"{found.layout}, read as {modality}: {found.found} rows, {len(found.rows)} of them usable; "
        f"{len(found.refused)} reasons to refuse, {len(found.findings) - len(found.refused)} warnings",
        markup=False,
        highlight=False,
    )
    for line in sizes(found):
        screen.print(line, highlight=False)
    if len(found.rows):
        bars(found, classes, screen)


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


def bars(found: Examined, classes: Classes, screen: Console) -> None:
    """Rows of each class that has any."""
    counts = Counter(found.rows.labels.tolist())
    most = max(counts.values())
    table = Table("class", "rows", "", box=None, header_style="bold")
    for label, count in sorted(counts.items()):
        table.add_row(classes[label], str(count), "█" * -(-BAR * count // most))
    screen.print(table)
