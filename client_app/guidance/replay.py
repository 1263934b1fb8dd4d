"""Replay in the head: features of the server's images of all classes keep the head from forgetting absent classes.

Axes: B batch, N images, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Head = Callable[[Tensor], Tensor]  # z [B, D] -> logits [B, C]


class HeadReplay:
    """Draws features of the server's images, whose labels are of all classes, and scores them with the head."""

    def __init__(self, features_ND: Tensor, labels_N: Tensor, weight: float, seed: int) -> None:
        self.features_ND, self.labels_N, self.weight = features_ND.detach(), labels_N, weight
        self.random = torch.Generator().manual_seed(seed)

    def term(self, head: Head, many: int) -> Tensor:
        """weight CE(head(f), y) of `many` images, drawn with replacement. Features move no encoder: only the head
        gets a gradient."""
        chosen_B = torch.randint(len(self.labels_N), (many,), generator=self.random)
        place = self.features_ND.device
        logits_BC = head(self.features_ND[chosen_B.to(place)])
        return self.weight * cross_entropy(logits_BC, self.labels_N[chosen_B].to(place))


def drawn_of_others(labels_B: Tensor, labels_N: Tensor, many: int, random: torch.Generator) -> Tensor:
    """int64 [B, K]: for each sample K = `many` images of other classes, without replacement.

    There are fewer where a class leaves fewer: K is what the poorest sample of the batch has. ValueError for none.
    """
    other_BN = labels_B.cpu()[:, None] != labels_N.cpu()[None]
    there = min(many, int(other_BN.sum(1).min()))
    if there < 1:
        raise ValueError("the server's images show no other class than a sample's own")
    chance_BN = torch.rand(other_BN.shape, generator=random).masked_fill(~other_BN, -1.0)
    return chance_BN.topk(there, dim=1).indices
