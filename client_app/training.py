"""The only local training loop: a method supplies its objective, everything else is here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client_app import pairs
from client_app.private_training import fit_dpsgd
from florilegium.checks import between

OPTIMIZERS = ("adamw", "sgd")


@dataclass
class LearningRate:
    """Learning rate of each modality's clients."""

    image: float = 1e-3
    text: float = 1e-3
    pair: float = 1e-3

    def __post_init__(self) -> None:
        between("learning_rate.image", self.image, 0, 10)
        between("learning_rate.text", self.text, 0, 10)
        between("learning_rate.pair", self.pair, 0, 10)

    def of(self, modality: str) -> float:
        return getattr(self, modality)


class TrainingError(ValueError):
    """A local training went wrong."""


def fit(  # noqa: PLR0913  (the options of the only loop there is)
    model: nn.Module, batches: Callable[[int], Iterable[Any]], objective: Callable[[Any], dict[str, Tensor]], *,
    lr: float, weight_decay: float = 0.0, epochs: int = 1, clip: float | None = 5.0, optimizer: str = "adamw",
    momentum: float = 0.0, beside: Iterable[Tensor] = (), before_step: Callable[[nn.Module], None] | None = None,
) -> dict[str, float]:
    """Minimise the sum of the named scalar terms that `objective(batch)` returns.

    `batches(epoch)` gives an epoch's batches; `beside` are parameters trained beside the model's; `before_step` may
    change the gradients before they are clipped to the norm `clip` (None: not at all). Returns the mean of each term
    over all steps, the mean norm of the gradient (before it is clipped) as "gradient", "steps", and with more than one
    term each one's share of the gradient as "share/<term>", measured once, at the last epoch's first step (a proximal
    term has none before the weights moved). TrainingError when a loss is not finite.
    """
    model.train()
    trained = [p for p in (*model.parameters(), *beside) if p.requires_grad]
    stepper = optimizer_of(trained, optimizer, lr, weight_decay, momentum)
    totals: dict[str, float] = {}
    shares: dict[str, float] = {}
    steps = 0
    for epoch in range(epochs):
        for batch in batches(epoch):
            terms = objective(batch)
            loss = torch.stack(list(terms.values())).sum()
            if not math.isfinite(loss.item()):
                raise TrainingError(f"the loss is {loss.item()} at step {steps + 1}: is learning_rate {lr} too high?")
            if not shares and epoch == epochs - 1 and len(terms) > 1:
                shares = gradient_shares(terms, trained)
            stepper.zero_grad(set_to_none=True)
            loss.backward()
            if before_step is not None:
                before_step(model)
            norm = nn.utils.clip_grad_norm_(trained, math.inf if clip is None else clip)
            stepper.step()
            steps += 1
            for name, value in {**terms, "gradient": norm}.items():
                totals[name] = totals.get(name, 0.0) + value.item()
    return {name: value / max(steps, 1) for name, value in totals.items()} | shares | {"steps": float(steps)}


def optimizer_of(
    trained: list[Tensor], name: str, lr: float, weight_decay: float, momentum: float
) -> torch.optim.Optimizer:
    """SGD or AdamW, by name."""
    if name == "sgd":
        return torch.optim.SGD(trained, lr=lr, weight_decay=weight_decay, momentum=momentum)
    return torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay)


def gradient_shares(terms: dict[str, Tensor], trained: list[Tensor]) -> dict[str, float]:
    """share/<term> = norm of its gradient / sum of the terms' norms: a term that does nothing is seen. Graphs stay."""
    norms = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True) \
            if term.requires_grad else ()
        norms[name] = math.hypot(*(g.norm().item() for g in gradients if g is not None))
    total = sum(norms.values())
    return {f"share/{name}": norm / total if total else 0.0 for name, norm in norms.items()}


def fit_private(client: Any, settings: Any, epochs: int, name: str) -> dict[str, float]:
    """The client's own task on its own rows with AdamW (eq 1 of FedMMKT).

    `settings` has learning_rate, weight_decay and batch; `name` tells this pass's shuffling from another's. With
    `privacy.training` by DP-SGD.
    """
    if client.protection.settings.training:
        stepper = optimizer_of(list(client.model.parameters()), "adamw", settings.learning_rate.of(client.modality),
                             settings.weight_decay, 0.0)
        return fit_dpsgd(client, stepper, settings.batch, epochs, name)
    return fit(client.model, lambda epoch: client.private_batches(settings.batch, epoch, name),
               lambda batch: task_terms(client, batch),
               lr=settings.learning_rate.of(client.modality), weight_decay=settings.weight_decay, epochs=epochs)


def task_terms(client: Any, batch: Any) -> dict[str, Tensor]:
    """The client's own task on a private batch: cross-entropy of classes, or the retrieval loss of pairs."""
    if client.modality == "pair":
        return {"task": pairs.task_loss(client, batch)}
    return {"task": cross_entropy(client.model(batch.inputs), batch.labels)}


def private_without_end(client: Any, size: int, epoch: int, mixed: bool = True) -> Iterator[Any]:
    """Private batches beside the batches of a lesson, pass after pass; or None after None when none is `mixed` in,
    and with `privacy.training`, under which a lesson is learnt from public samples alone."""
    for turn in count():
        if not mixed or client.protection.settings.training:
            yield None
        else:
            yield from client.private_batches(size, turn, f"mixed-{epoch}")
