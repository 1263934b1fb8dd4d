"""`florilegium data check PATH`: what own data hold, and what is wrong with them, before any run.

It looks at every split, as a client does when it opens its data (data/own/examination.py). Exit code 1 when a client
would refuse them.
"""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from florilegium import catalogue
from florilegium.assets import AssetError
from florilegium.config import composition, overrides
from florilegium.config.data import MODALITIES, SplitSettings
from florilegium.config.settings import Settings
from florilegium.data.datasets import Classes, class_list, classes_of
from florilegium.data.own.examination import Examined, examine_splits
from florilegium.data.own.findings import Finding
from florilegium.data.own.preparation import derived_classes, in_order
from florilegium.data.own.sources import OwnSettings, modality_of
from florilegium.models.tokens import open_vocabulary
from florilegium.runs.terminal import console

ERRORS = (AssetError, ValueError)  # settings, data of the federation, or options that cannot be used
BAR = 30  # characters of the longest bar
DATA = {"image": "folder", "text": "table", "pair": "pairs"}  # conf/data
CLIENTS = 4  # of conf/clients/image.yaml and pair.yaml; text.yaml has three
FEW = 10 * CLIENTS  # rows; with fewer, a split by classes may leave a client less than it needs
PUBLIC_SHARE = 0.2  # data.public.share of conf/data/folder.yaml


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `florilegium data check`."""
    check = command.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "check", help="say what is wrong with data, naming file and row; exit code 1 when a client would refuse them"
    )
    check.add_argument("path", metavar="PATH", help="an image folder, a table, or a saved data set (docs/own-data.md)")
    check.add_argument("--data", help="the federation's data, whose classes count (conf/data); default: the data's own")
    check.add_argument("--classes", metavar="A,B,...", help="the federation's classes, by their names")
    check.add_argument("--all-classes", action="store_true", help="list all classes, also those without a row")
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
    conf = composition.compose([f"data={options.data or 'emoji'}", *overrides.readable(options.overrides)])
    own = OwnSettings(str(Path(options.path).expanduser()), **given)
    classes, derived = classes_for(options, conf, own)
    modality = options.modality or modality_of(own, () if derived else tuple(classes))
    parts = list(examine_splits(own, tuple(classes), modality, int(conf.data.image_size), derived=derived))
    screen = console()
    for part in parts:
        if len(parts) > 1:
            screen.print(f"split {part.split}:", style="bold", highlight=False)
            part.findings = [each for each in part.findings if each.refused or each.kind != "split"]  # none is left out
        show(part, classes, modality, screen, options.lines, options.all_classes)
        for line in too_long(part, conf):
            screen.print(line, markup=False, highlight=False, soft_wrap=True)
    refused = any(part.refused for part in parts)
    for line in () if refused else what_next(parts[0], modality, options, None if derived else tuple(classes)):
        screen.print(line, markup=False, highlight=False, soft_wrap=True)
    return 1 if refused else 0


def classes_for(options: argparse.Namespace, conf: Settings, own: OwnSettings) -> tuple[Classes, bool]:
    """The classes that count, and whether the data themselves say which there are."""
    if options.classes:
        return class_list([name.strip() for name in options.classes.split(",") if name.strip()]), False
    if options.data:
        return classes_of(conf.data), False
    try:
        return class_list(sorted(derived_classes([own]), key=in_order) or ["(no class)"]), True
    except ValueError:  # the examination says what is wrong
        return class_list(["(no class)"]), True


def too_long(found: Examined, conf: Settings) -> Iterable[str]:
    """How many texts are longer than a client reads."""
    if not found.rows.texts:
        return
    most = conf.clients.tokens
    split = open_vocabulary(conf.clients.tokenizer, most).split
    long = sum(len(split(text)) > most for text in found.rows.texts)
    if long:
        yield f"{long} of {len(found.rows)} texts are longer than {most} tokens and are cut (clients.tokens)"


def what_next(
    found: Examined, modality: str, options: argparse.Namespace, classes: tuple[str, ...] | None
) -> Iterable[str]:
    """The line that runs these data; `found` are their training rows. `classes` are those that were asked for; None:
    those of the data."""
    if classes is None and len(set(found.rows.labels.tolist())) < 2:
        yield "to run them: a run needs two or more classes, and these data have one"
        return
    if (rows := rows_of_training(found, modality)) < 2 * CLIENTS:
        yield f"to run them: these rows leave {rows} for the training of {CLIENTS} clients, who need two each"
        return
    parts = [f"data={DATA[modality]}", f"data.path={overrides.word(str(Path(options.path)))}"]
    for key in ("text_column", "label_column", "image_column", "max_pixels"):
        if (value := getattr(options, key)) is not None:
            parts.append(f"data.{key}={overrides.word(str(value))}")
    if classes is not None:
        parts.append(f"data.classes=[{','.join(map(overrides.word, classes))}]")
    parts += [f"method={method_for(modality)}", f"clients={modality}", "references=none"]
    if rows < FEW:  # a skewed deal would leave a client without rows
        parts.append("clients.partition.name=iid")
    yield "run them: florilegium run " + shlex.join([*parts, *options.overrides])


def rows_of_training(found: Examined, modality: str) -> int:
    """About how many rows the clients get: a run takes some of each class for tests and for its public part."""
    split = SplitSettings()
    shares = [split.validation] if found.split else [split.validation, split.test]  # given splits are kept
    left = 0
    for count in Counter(found.rows.labels.tolist()).values():
        for share in shares if modality == "text" else [*shares, PUBLIC_SHARE]:
            count -= min(max(round(share * count), 1), count - 1)
        left += count
    return left


def method_for(modality: str) -> str:
    """The first method of the catalogue for these data: one that averages weights for images, which one architecture
    reads; for texts and pairs one in which every client learns alone."""
    if modality == "image":
        return next(name for name, entry in catalogue.entries().items() if entry.one_architecture)
    return next(name for name, entry in catalogue.entries().items() if entry.role is catalogue.Role.ALONE)


def show(
    found: Examined, classes: Classes, modality: str, screen: Console, lines: int = 10, every: bool = False
) -> None:
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
    if every:
        screen.print(f"classes ({len(classes)}): {', '.join(map(str, classes))}", markup=False, soft_wrap=True)


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
