"""The only local training loop: a method supplies its objective, everything else is here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from florilegium.checks import between


@dataclass
class LearningRate:
    """Learning rate of each modality's clients."""

    image: float = 1e-3
    text: float = 1e-3

    def __post_init__(self) -> None:
        between("learning_rate.image", self.image, 0, 10)
        between("learning_rate.text", self.text, 0, 10)

    def of(self, modality: str) -> float:
        return getattr(self, modality)


class TrainingError(ValueError):
    """A local training went wrong."""


def fit(
    model: nn.Module, batches: Callable[[int], Iterable[Any]], objective: Callable[[Any], dict[str, Tensor]], *,
    lr: float, weight_decay: float = 0.0, epochs: int = 1, clip: float = 5.0,
    before_step: Callable[[nn.Module], None] | None = None,
) -> dict[str, float]:
    """Minimise, with AdamW, the sum of the named scalar terms that `objective(batch)` returns.

    `batches(epoch)` gives an epoch's batches. Returns the mean of each term over all steps, the mean norm of the
    gradient (before it is clipped) as "gradient", and "steps". TrainingError when a loss is not finite.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    totals: dict[str, float] = {}
    steps = 0
    for epoch in range(epochs):
        for batch in batches(epoch):
            terms = objective(batch)
            loss = torch.stack(list(terms.values())).sum()
            if not math.isfinite(loss.item()):
                raise TrainingError(f"the loss is {loss.item()} at step {steps + 1}: is learning_rate {lr} too high?")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if before_step is not None:
                before_step(model)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            steps += 1
            for name, value in {**terms, "gradient": norm}.items():
                totals[name] = totals.get(name, 0.0) + value.item()
    return {name: value / max(steps, 1) for name, value in totals.items()} | {"steps": float(steps)}


def fit_private(client: Any, settings: Any, epochs: int, name: str) -> dict[str, float]:
    """Cross-entropy on the client's own rows (eq 1 of FedMMKT; the local objective of FedAvg).

    `settings` has learning_rate, weight_decay and batch; `name` tells this pass's shuffling from another's.
    """
    model = client.model
    return fit(model, lambda epoch: client.private_batches(settings.batch, epoch, name),
               lambda batch: {"task": cross_entropy(model(batch.inputs), batch.labels)},
               lr=settings.learning_rate.of(client.modality), weight_decay=settings.weight_decay, epochs=epochs)
