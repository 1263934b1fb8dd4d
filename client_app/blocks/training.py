"""The only local training loop: a method supplies its objective, everything else is here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from client_app.blocks import first_training
from client_app.privacy.dpsgd import fit_dpsgd
from florilegium.learning.fit import fit, optimizer_of


def fit_private(client: Any, settings: Any, epochs: int, name: str) -> dict[str, float]:
    """The client's own task on its own rows with AdamW (eq 1 of arXiv 2510.12254).

    `settings` has learning_rate, weight_decay and batch; `name` tells this pass's shuffling from another's. With
    `privacy.training` by DP-SGD. A first training that arms have in common is done once (first_training.py).
    """
    if client.protection.settings.training:
        stepper = optimizer_of(
            list(client.model.parameters()),
            "adamw",
            settings.learning_rate.of(client.modality),
            settings.weight_decay,
            0.0,
        )
        return fit_dpsgd(client, stepper, settings.batch, epochs, name)
    how = {
        "lr": settings.learning_rate.of(client.modality),
        "weight_decay": settings.weight_decay,
        "epochs": epochs,
    }

    def train() -> dict[str, float]:
        return fit(
            client.model,
            lambda epoch: client.private_batches(settings.batch, epoch, name),
            lambda batch: task_terms(client, batch),
            **how,
        )

    return first_training.once(client, {"batch": settings.batch, "name": name, **how}, train)


def task_terms(client: Any, batch: Any) -> dict[str, Tensor]:
    """The client's own task on a private batch: cross-entropy of classes (in segmentation of each pixel's), or the
    retrieval loss of pairs."""
    if client.modality == "pair":
        model = client.model
        seen = model.encode_image(batch.images), model.encode_text(batch.texts)
        return {"task": model.loss(*seen, batch.groups)}
    return {"task": cross_entropy(client.model(batch.inputs), batch.targets)}


def private_without_end(client: Any, size: int, epoch: int, mixed: bool = True) -> Iterator[Any]:
    """Private batches beside the batches of a distillation set, pass after pass.

    It yields None each time if `mixed` is off, and under `privacy.training`, where only public samples are distilled.
    """
    for turn in count():
        if not mixed or client.protection.settings.training:
            yield None
        else:
            yield from client.private_batches(size, turn, f"mixed-{epoch}")
