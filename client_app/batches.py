"""Batches of rows, and the error that a client raises when it cannot do what the server asks.

Axes: N samples, B batch, D representation width, S image side, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from florilegium.learning.augmentation import Moves

EVALUATION_BATCH = 128


class ClientError(ValueError):
    """The client cannot do what the server asks. The message is one line."""


@dataclass(frozen=True)
class Batch:
    """Model inputs, labels [B] and ids [B]; `fused` [B, D] of a distillation set, else [0, 0].

    In segmentation also `masks` [B, S, S], the class of each pixel, and how the images were moved.
    """

    inputs: Tensor
    labels: Tensor
    ids: Tensor
    fused: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    masks: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0, dtype=torch.int64))
    moves: Moves | None = None

    @property
    def targets(self) -> Tensor:
        """What the task asks for: the labels [B], or the class of each pixel [B, S, S]."""
        return self.masks if len(self.masks) else self.labels


@dataclass(frozen=True)
class PairBatch:
    """images float [B, 3, S, S], texts int64 [B, T], labels, ids and groups [B]; pairs of one group match."""

    images: Tensor
    texts: Tensor
    labels: Tensor
    ids: Tensor
    groups: Tensor


def shuffled(count: int, size: int, random: torch.Generator) -> Iterator[Tensor]:
    """Pieces of `size` rows of a random order of `count` rows.

    Batch norm cannot train on one row. So a last piece of one row is dropped, and one row alone comes twice.
    """
    order = torch.randperm(count, generator=random)
    if count == 1:
        yield order.repeat(2)
        return
    for piece in order.split(size):
        if len(piece) > 1:
            yield piece
