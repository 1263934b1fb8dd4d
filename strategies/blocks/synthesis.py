"""Which classes a round synthesizes (eq 2 of FedMMKT; shared by its reference rows), which samples tune the model."""

from __future__ import annotations

import torch
from torch import Tensor

from florilegium import seeds


def draw_classes(classes: int, samples: int, sampling: str, seed: int, r: int) -> Tensor:
    """[N] class ids for round `r`: `uniform` independent draws, or `stratified` (each class floor or ceil of N / C)."""
    random = seeds.generator(seed, "classes", r)
    if sampling == "uniform":
        return torch.randint(classes, (samples,), generator=random)
    whole = torch.arange(classes).repeat(samples // classes)
    rest = torch.randperm(classes, generator=random)[: samples % classes]
    drawn = torch.cat([whole, rest])
    return drawn[torch.randperm(samples, generator=random)]


def filled(drawn_N: Tensor, label_N: Tensor, keep_N: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(labels [N], used [N]): the kept samples and, where a class has fewer than `share` of its drawn ones, others.

    A class that no client votes for would be forgotten by the T2I model. What fills it has its drawn class as label
    and no representation; the first in order are taken.
    """
    labels_N, used_N = torch.where(keep_N, label_N, drawn_N), keep_N.clone()
    for c in drawn_N.unique():
        lacking = int(share * (drawn_N == c).sum()) - int((labels_N[used_N] == c).sum())
        spare = ((drawn_N == c) & ~used_N).nonzero().flatten()
        used_N[spare[: max(lacking, 0)]] = True
    return labels_N, used_N
