"""Arithmetic on state dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound=Tensor)

#: First names of the tensors of our models (florilegium/models: a classifier, a dual encoder). What a method sends
#: beside a model, under any other first name (a control variate, a head, prototypes), is not the model's.
MODEL = ("body", "project", "classifier", "image", "text", "scale", "shift")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # what batch norm counts instead of learning


def weighted_mean(states: Sequence[Mapping[str, Tensor]], examples: Sequence[float]) -> dict[str, Tensor]:
    """Mean of state dicts, weighted by `examples` (arXiv 1602.05629, Algorithm 1).

    Integer buffers (BatchNorm's counters) are averaged and rounded. Raises ValueError naming the first tensor in which
    two states differ, or when the weights do not have a positive sum.
    """
    total = float(sum(examples))
    if not states or total <= 0:
        raise ValueError(f"nothing to average: {len(states)} states with {total} examples")
    for k, state in enumerate(states[1:], 1):
        for name in states[0].keys() | state.keys():
            shapes = [tuple(s[name].shape) if name in s else None for s in (states[0], state)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"state {k} differs in {name}: {shapes[1]} instead of {shapes[0]}")
    mean = {}
    for name, first in states[0].items():
        value = torch.stack([s[name].double() * (n / total) for s, n in zip(states, examples, strict=True)]).sum(0)
        mean[name] = (value if first.is_floating_point() else value.round()).to(first.dtype)
    return mean


def named(first: str, tensors: Mapping[str, T]) -> dict[str, T]:
    """Tensors under a first name: {"w": ...} -> {"control.w": ...}."""
    return {f"{first}.{name}": value for name, value in tensors.items()}


def part(state: Mapping[str, Tensor], first: str) -> dict[str, Tensor]:
    """The tensors of a first name, without it: the inverse of `named`."""
    return {name.removeprefix(f"{first}."): value for name, value in state.items() if name.startswith(f"{first}.")}


def without(state: Mapping[str, Tensor], *firsts: str) -> dict[str, Tensor]:
    """The tensors that have none of these first names."""
    return {name: value for name, value in state.items() if name.split(".")[0] not in firsts}


def model_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own tensors, without what travels beside them."""
    return {name: value for name, value in state.items() if name.split(".")[0] in MODEL}


def learned(name: str, value: Tensor) -> bool:
    """Whether a tensor of a state dict is learnt by gradients: no statistic of batch norm, no counter."""
    return value.is_floating_point() and name.split(".")[-1] not in STATISTICS


def effective_steps(steps: float, momentum: float = 0.0) -> float:
    """a = |sum of the weights that gradients have in the update of `steps` SGD steps| (arXiv 2007.07481).

    `steps` without momentum; with momentum rho: [S - rho (1 - rho^S) / (1 - rho)] / (1 - rho).
    """
    if not momentum:
        return float(steps)
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


def prototype_head(prototypes_CD: Tensor, scale: Tensor | float) -> dict[str, Tensor]:
    """The linear classifier that scores z [D] by scale * cos(z, prototype), for z of norm sqrt(D) (arXiv 2212.02758).

    A model's representations have that norm by their LayerNorm (florilegium/models), so the ordinary head evaluates it.
    """
    width = prototypes_CD.shape[-1]
    return {
        "classifier.weight": prototypes_CD * scale / width**0.5,
        "classifier.bias": prototypes_CD.new_zeros(len(prototypes_CD)),
    }
