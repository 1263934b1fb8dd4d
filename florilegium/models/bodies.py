"""A classifier around any body, and the error of a model that cannot be built.

Axes: B batch, C classes, D representation width (clients.width), H width of a body, S image side, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from florilegium.learning.losses import normalised
from florilegium.models.frozen import stand_still

#: how a classifier finishes its representations (clients.representation)
FINISHES: dict[str, Callable[[Tensor], Tensor]] = {"layer_norm": normalised, "none": lambda z: z, "relu": relu}


class ModelError(ValueError):
    """A model cannot be built; the one-line message names the setting."""


class Body(nn.Module):
    """[B, ...] -> float32 [B, H]. With `mixed_precision` it computes in bfloat16, by autocast, on float32 weights."""

    mixed_precision = False  # clients.precision

    def train(self, mode: bool = True) -> Body:
        super().train(mode)
        for net in self.children():
            stand_still(net)
        return self

    def mixed(self, x: Tensor) -> Any:
        """The context that a forward pass of these inputs runs in."""
        return torch.autocast(x.device.type, torch.bfloat16) if self.mixed_precision else nullcontext()

    def __call__(self, x: Tensor) -> Tensor:
        with self.mixed(x):
            seen = super().__call__(x)
        return seen.float() if self.mixed_precision else seen


class Classifier(nn.Module):
    """A body [B, ...] -> [B, H], its projection to the common width D, and a linear classifier.

    Inputs: image float [B, 3, S, S] in [-1, 1], or text int64 token ids [B, T]. `finish` names one of FINISHES.
    """

    dense = False  # whether representations are maps, with a class for each pixel (dense.py)

    def __init__(  # noqa: PLR0913  (the parts of a model)
        self,
        body: nn.Module,
        hidden: int,
        width: int,
        classes: int,
        project: bool = False,
        finish: str = "layer_norm",
    ) -> None:
        super().__init__()
        self.body, self.finish = body, finish
        self.project: nn.Module = nn.Linear(hidden, width) if project or hidden != width else nn.Identity()
        self.classifier = nn.Linear(width, classes)

    def encode(self, x: Tensor) -> Tensor:
        """[B, ...] -> z [B, D]."""
        return self.finished(self.project(self.body(x)))

    def finished(self, z_BD: Tensor) -> Tensor:
        """Vectors [B, D] on the scale of this model's representations."""
        return FINISHES[self.finish](z_BD)

    def head(self, z_BD: Tensor) -> Tensor:
        """z [B, D] -> logits [B, C]."""
        return self.classifier(z_BD)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encode(x))
