"""`florilegium judge train DIR`: a classifier of real images, which then judges generated ones."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from pathlib import Path

from rich.table import Table

from florilegium.assets import AssetError
from florilegium.config import composition, overrides
from florilegium.data.datasets import held_out, open_dataset
from florilegium.data.own import preparation
from florilegium.learning.judge_training import JudgeFigures, JudgeTraining, Labelled, train_judge
from florilegium.runs.terminal import console

ERRORS = (AssetError, ValueError, OSError)
START = "google/vit-base-patch16-224-in21k"
CARD = """---
library_name: transformers
pipeline_tag: image-classification
---
# Judge

Tells {classes} classes apart. Fine-tuned from `{start}` by `{command}` on real training images alone; it judges
generated images and has seen none. Validation picked epoch {best} of {epochs}.

| real images | accuracy |
| --- | --- |
| validation (picked the epoch) | {validation:.1%} |
| test (seen once) | {test:.1%} |

Every T2I accuracy that it gives is to be read beside its own {test:.1%}.
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `florilegium judge train`."""
    default = JudgeTraining(START)
    train = command.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "train", help="fine-tune an image classifier on the real training images of a data set"
    )
    train.add_argument("directory", type=Path, metavar="DIR", help="where the judge is written; it should not exist")
    train.add_argument(
        "--start",
        default=START,
        metavar="MODEL",
        help="an image encoder or classifier: hub id, directory, or an embedded one such as backbones/vit "
        "(default: %(default)s)",
    )
    train.add_argument("--epochs", type=int, default=default.epochs, help="passes (default: %(default)s)")
    train.add_argument("--batch", type=int, default=default.batch, help="images in a batch (default: %(default)s)")
    train.add_argument(
        "--learning-rate", type=float, default=default.learning_rate, help="of AdamW (default: %(default)s)"
    )
    train.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    train.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="the data, as of `florilegium run`: data=...")


def run(options: argparse.Namespace) -> None:
    """Train, and say how good the judge is and how it is used. ValueError, in one line, for what cannot be used."""
    if options.directory.exists():
        raise ValueError(f"{options.directory} exists already; choose another directory")
    if options.epochs < 1 or options.batch < 1 or options.learning_rate <= 0:
        raise ValueError("--epochs and --batch must be at least 1, and --learning-rate above 0")
    with tempfile.TemporaryDirectory(prefix="florilegium-judge-data-") as scratch:
        given = [*overrides.readable(options.overrides), f"out={scratch}"]  # own data are prepared there
        conf = composition.complete(composition.compose(given))
        preparation.prepare(conf)
        names = list(open_dataset(conf.data).classes)

        def rows(split: str) -> Labelled:
            found = held_out(conf.data, split, "image")
            if not len(found):
                raise ValueError(f"data={conf.data.name} has no {split} images with a class")
            return Labelled(found.images, found.labels)

        told = JudgeTraining(
            options.start,
            options.epochs,
            options.batch,
            options.learning_rate,
            workers=conf.data.workers,
            half=options.bf16,
            seed=conf.seed,
        )
        figures = train_judge(options.directory, names, rows, told)
    command = shlex.join(["florilegium", "judge", "train", "DIR", *options.overrides])
    card = CARD.format(
        classes=len(names),
        start=Path(options.start).name if Path(options.start).is_absolute() else options.start,
        command=command,
        best=figures.best,
        epochs=len(figures.epochs),
        validation=figures.validation,
        test=figures.test,
    )
    (options.directory / "README.md").write_text(card, encoding="utf-8")
    show(figures, names)
    use = [*options.overrides, f"data.judge={overrides.word(str(options.directory))}"]
    console().print(f"use it: florilegium run {shlex.join(use)}", markup=False, highlight=False, soft_wrap=True)


def show(figures: JudgeFigures, names: list[str], most: int = 20) -> None:
    """The accuracies, and of the classes those that are recognised least."""
    table = Table(show_header=False, box=None)
    table.add_row("validation", f"{figures.validation:.1%}", f"epoch {figures.best} of {len(figures.epochs)}")
    table.add_row("test", f"{figures.test:.1%}", "seen once")
    seen = [(recall, name) for recall, name in zip(figures.recall_C, names, strict=True) if recall == recall]
    for recall, name in sorted(seen)[:most]:
        table.add_row(f"  {name}", f"{recall:.0%}", "of its test images")
    console().print(table)
