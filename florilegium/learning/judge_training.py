"""The judge of generated images (the GAN-test): an image classifier, fine-tuned on real training images.

Validation rows pick the epoch, test rows are seen once, at the end. The loop is transformers' Trainer.
Axes: B batch, C classes, N images, S image side.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn.functional import cross_entropy

from florilegium import hub
from florilegium.assets import located
from florilegium.config.errors import first_line
from florilegium.learning.metrics import Judge, Preprocessing, accuracy, confusion, preprocessing
from florilegium.runs.terminal import console

SMOOTHING = 0.05  # of the labels
LEAST = 0.5  # share of an image's area that a training crop shows at least


@dataclass(frozen=True)
class JudgeTraining:
    """How a judge is trained; `start` is a classifier or encoder: an asset, a directory or a hub id."""

    start: str
    epochs: int = 10
    batch: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    workers: int = 0
    half: bool = False  # bfloat16
    seed: int = 0


@dataclass(frozen=True)
class JudgeFigures:
    """Accuracies on real images: each epoch's on validation (the mean over classes), and the best epoch's."""

    epochs: tuple[float, ...]
    validation: float
    test: float
    recall_C: tuple[float, ...]  # of the test rows of each class; nan for a class without any

    @property
    def best(self) -> int:
        """The number of the epoch whose weights were kept, from 1."""
        return int(np.argmax(self.epochs)) + 1


@dataclass(frozen=True)
class Labelled:
    """Real images uint8 [N, 3, S, S], in memory or in a file (`StoredImages`), and their classes [N]."""

    images: Any
    labels: Tensor


class Pictures(torch.utils.data.Dataset):
    """Rows as the model wants them: cropped and mirrored at random for training, whole for the others."""

    def __init__(self, rows: Labelled, wanted: Preprocessing, vary: bool) -> None:
        from torchvision.transforms import v2

        self.rows, self.wanted = rows, wanted
        size = wanted.size or tuple(rows.images.shape[-2:])
        kinds = [v2.RandomResizedCrop(size, scale=(LEAST, 1.0), antialias=True), v2.RandomHorizontalFlip()]
        self.vary = v2.Compose(kinds) if vary else None

    def __len__(self) -> int:
        return len(self.rows.labels)

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        image = self.rows.images[n : n + 1]
        if self.vary is not None:
            image = self.vary(image)
        return {"pixel_values": self.wanted(image)[0], "labels": self.rows.labels[n]}


def train_judge(out: Path, names: list[str], rows: Callable[[str], Labelled], told: JudgeTraining) -> JudgeFigures:
    """Train, write the best epoch to the directory `out` as transformers keeps models, and measure it.

    `rows(split)` gives the labelled images of train, validation and test. ValueError where a class has no training
    image, or where `start` cannot be read.
    """
    learnt, held = rows("train"), rows("validation")
    counts_C = learnt.labels.bincount(minlength=len(names)).float()
    if missing := [name for name, count in zip(names, counts_C.tolist(), strict=True) if not count]:
        raise ValueError(f"no training image of {missing[0]!r}: a judge must have seen every class")
    found, processor = opened(told.start, names, int(learnt.images.shape[-1]))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        place = Path(scratch, "judge")
        processor.save_pretrained(place)
        wanted = preprocessing(str(place))
        epochs = fitted(found, Pictures(learnt, wanted, True), Pictures(held, wanted, False), counts_C, told, place)
        os.replace(place, out)  # whole or not at all
    judge = Judge(str(out), device="cuda" if torch.cuda.is_available() else "cpu")
    test = rows("test")
    said_N = judge.predict(test.images)
    return JudgeFigures(
        tuple(epochs),
        judge.accuracy(held.images, held.labels),
        accuracy(said_N, test.labels, len(names)),
        tuple(recalls(said_N, test.labels, len(names)).tolist()),
    )


def opened(start: str, names: list[str], side: int) -> tuple[Any, Any]:
    """(classifier of these classes that begins with the weights of `start`, its image processor)."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # a new head is what is wanted
    place = located(start, bare=True)
    hub.open_or_offline(place)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
    try:
        made = AutoModelForImageClassification.from_pretrained(
            place, num_labels=len(names), ignore_mismatched_sizes=True, dtype=torch.float32, **labels
        )
        if Path(place).is_dir() and not Path(place, "preprocessor_config.json").is_file():
            size = {"height": side, "width": side}
            return made, ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        return made, AutoImageProcessor.from_pretrained(place)
    except (OSError, ValueError) as error:
        if hub.is_id(place) and hub.is_about_fetching(error):
            raise ValueError(hub.cannot("--start", place, error)) from error
        line = first_line(error)
        raise ValueError(
            f"{start} cannot be read as an image classifier ({line}); a directory, or an embedded encoder such as "
            "backbones/vit, needs no hub"
        ) from error


def fitted(
    model: Any, learnt: Pictures, held: Pictures, counts_C: Tensor, told: JudgeTraining, place: Path
) -> list[float]:
    """Train; the weights of the best epoch lie in `place`. The mean over classes of each epoch's recall."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    # the square root between natural and equal class frequencies: small classes count enough
    weight_C = (counts_C.mean() / counts_C).sqrt()

    def loss(outputs: Any, labels_B: Tensor, num_items_in_batch: Any = None) -> Tensor:
        weights = weight_C.to(labels_B.device)
        return cross_entropy(outputs.logits.float(), labels_B, weight=weights, label_smoothing=SMOOTHING)

    def measured(said: Any) -> dict[str, float]:
        return {"accuracy": mean_recall(said.predictions, said.label_ids, len(counts_C))}

    arguments = TrainingArguments(
        output_dir=str(place.parent / "training"),
        num_train_epochs=told.epochs,
        per_device_train_batch_size=told.batch,
        per_device_eval_batch_size=told.batch,
        learning_rate=told.learning_rate,
        weight_decay=told.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, told.epochs * len(learnt) // told.batch // 10),
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        bf16=told.half,
        seed=told.seed,
        dataloader_num_workers=told.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    with Progress(console=console()) as shown:
        keeper, found = keeping_the_best(model, place, shown, told.epochs)
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=learnt,
            eval_dataset=held,
            compute_loss_func=loss,
            compute_metrics=measured,
            callbacks=[keeper],
        )
        trainer.remove_callback(PrinterCallback)  # it prints dictionaries
        trainer.train()
    return found


def keeping_the_best(model: Any, place: Path, shown: Progress, epochs: int) -> tuple[Any, list[float]]:
    """(what the Trainer calls, each epoch's accuracy so far). It writes the model to `place` after an epoch that is
    better than all before, and shows how far the training is."""
    from transformers import TrainerCallback

    found: list[float] = []
    task = shown.add_task("training")

    class Keeper(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            shown.update(task, completed=state.global_step, total=state.max_steps)

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            reached = float(metrics["eval_accuracy"])
            if not found or reached > max(found):
                model.save_pretrained(place)
            found.append(reached)
            shown.console.print(f"epoch {len(found)} of {epochs}: {reached:.1%} on validation, the mean over classes")

    return Keeper(), found


def recalls(predicted_N: Tensor, labels_N: Tensor, classes: int) -> Tensor:
    """[C] the share of each class's images that is recognised; nan for a class without any."""
    table_CC = confusion(predicted_N, labels_N, classes).float()
    return table_CC.diagonal() / table_CC.sum(1)


def mean_recall(scores_NC: np.ndarray, labels_N: np.ndarray, classes: int) -> float:
    """The mean of `recalls` over the classes that there are."""
    predicted_N = torch.from_numpy(scores_NC).argmax(1)
    return recalls(predicted_N, torch.from_numpy(labels_N), classes).nanmean().item()
