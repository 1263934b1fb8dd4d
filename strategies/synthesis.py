"""Which classes a round synthesizes (eq 2 of FedMMKT; shared by its reference rows)."""

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
