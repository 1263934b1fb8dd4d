"""What a built-in strategy of Flower remembers between rounds: moments, momentum, the clipping norm.

Its attributes that are numbers, or arrays by name or in a list. Records of the weights are not kept: the strategy gets
those anew in each round.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def layers(strategy: Any) -> Iterator[tuple[int, Any]]:
    """A wrapper, then what it wraps."""
    depth = 0
    while strategy is not None:
        yield depth, strategy
        strategy, depth = getattr(strategy, "strategy", None), depth + 1


def moments(strategy: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and JSON-able values: numbers, and the form in which arrays were held."""
    tensors: dict[str, Tensor] = {}
    meta: dict[str, Any] = {}
    for depth, layer in layers(strategy):
        for name, value in vars(layer).items():
            place = f"{depth}/{name}"
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                meta[place] = value
            elif type(value) in (dict, list) and value:
                held = dict(enumerate(value)) if isinstance(value, list) else value
                meta[place] = type(value).__name__
                tensors |= {f"{place}/{k}": torch.from_numpy(np.array(v)) for k, v in held.items()}
    return tensors, meta


def put_moments(strategy: Any, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Put back what `moments` took."""
    for depth, layer in layers(strategy):
        for name in list(vars(layer)):
            place = f"{depth}/{name}"
            form = meta.get(place)
            if isinstance(form, (int, float)):
                setattr(layer, name, form)
            elif form is not None:
                held = {k.removeprefix(f"{place}/"): v.numpy() for k, v in tensors.items() if k.startswith(f"{place}/")}
                setattr(layer, name, [held[str(i)] for i in range(len(held))] if form == "list" else held)
