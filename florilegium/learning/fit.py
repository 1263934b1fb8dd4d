"""The local training loop: named loss terms, one optimizer, the gradient share of each term."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from florilegium.config.fields import section, setting

OPTIMIZERS = ("adamw", "sgd")


@section
class LearningRate:
    """Learning rate of the clients of each modality."""

    image: float = setting(1e-3, "learning rate of image clients", low=0, high=10)
    text: float = setting(1e-3, "learning rate of text clients", low=0, high=10)
    pair: float = setting(1e-3, "learning rate of pair clients, which have image-text pairs", low=0, high=10)

    def of(self, modality: str) -> float:
        return getattr(self, modality)


class TrainingError(ValueError):
    """A local training went wrong."""


def fit(  # noqa: PLR0913  (the options of the only loop there is)
    model: nn.Module,
    batches: Callable[[int], Iterable[Any]],
    objective: Callable[[Any], dict[str, Tensor]],
    *,
    lr: float,
    weight_decay: float = 0.0,
    epochs: int = 1,
    clip: float | None = 5.0,
    optimizer: str = "adamw",
    momentum: float = 0.0,
    beside: Iterable[Tensor] = (),
    before_step: Callable[[nn.Module], None] | None = None,
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
        gradients = (
            torch.autograd.grad(term, trained, retain_graph=True, allow_unused=True) if term.requires_grad else ()
        )
        norms[name] = math.hypot(*(g.norm().item() for g in gradients if g is not None))
    total = sum(norms.values())
    return {f"share/{name}": norm / total if total else 0.0 for name, norm in norms.items()}


# -- an optimiser's state, for files that are never pickled ------------------------------------------------------------


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """{"<parameter>.<key>": tensor} of Adam's moments and counters."""
    return {
        f"{n}.{key}": torch.as_tensor(value).detach().cpu()
        for n, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; the learning rate and the like stay the optimiser's own."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        n, key = name.split(".", 1)
        state.setdefault(int(n), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
