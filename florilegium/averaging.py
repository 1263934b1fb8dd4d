"""Arithmetic on state dicts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def weighted_mean(states: Sequence[dict[str, Tensor]], examples: Sequence[float]) -> dict[str, Tensor]:
    """Mean of state dicts, weighted by `examples` (FedAvg, arXiv 1602.05629, Algorithm 1).

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
