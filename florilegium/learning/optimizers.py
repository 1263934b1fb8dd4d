"""An optimiser's state as named tensors, for files that are never pickled."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def to_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """{"<parameter>.<key>": tensor} of Adam's moments and counters."""
    return {
        f"{n}.{key}": torch.as_tensor(value).detach().cpu()
        for n, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def from_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `to_tensors` gave; the learning rate and the like stay the optimiser's own."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        n, key = name.split(".", 1)
        state.setdefault(int(n), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
