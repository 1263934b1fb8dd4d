"""Where FedAFD's released code differs from its paper: D1 to D9 of docs/methods/fedafd.md, shared by both halves.

`conf/fidelity/clean.yaml` is the default, `released.yaml` the code's behaviour. D10 (the best round is chosen on
validation) and D11 (one `device` setting) hold for every method here and have no switch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from florilegium.config.bounds import one_of

GENERATOR_LOSSES = ("nonsat", "minimax", "grl")
ERASED, DROPPED = 0.2, 0.1  # the released loader's: share of images with a hole, of words left out


@dataclass
class Divergences:
    """What is done; the comment says what the released code does where the default is another."""

    double_sigmoid: bool = False  # D1: true
    generator_loss: str = "nonsat"  # D2: nonsat, the paper minimax | grl
    schedule: str = "joint"  # D3: alternate; the paper joint
    share_pool_branch: bool = False  # D4: true
    reset_each_round: bool = False  # D5: true; the fusion and its Adam are made anew
    kd: str = "mse"  # D6: mse, the paper l2
    eval_mode: bool = True  # D7: false; features are taken in training mode (of pair clients: in evaluation)
    same_view: bool = True  # D8: false; holes and missing words differ between targets and inputs
    pair_encoder_step: bool = True  # D9: false; alignment does not move the encoders of pair clients

    def __post_init__(self) -> None:
        one_of("generator_loss", self.generator_loss, GENERATOR_LOSSES)
        one_of("schedule", self.schedule, ("alternate", "joint"))
        one_of("kd", self.kd, ("mse", "l2"))


def other_view(images_N3SS: Tensor, texts: tuple[str, ...], random: torch.Generator) -> tuple[Tensor, tuple[str, ...]]:
    """D8: a black hole of half the side in some images, some words missing (at least one stays)."""
    images, side = images_N3SS.clone(), images_N3SS.shape[-1]
    for n in torch.nonzero(torch.rand(len(images), generator=random) < ERASED)[:, 0].tolist():
        y, x = torch.randint(side - side // 2 + 1, (2,), generator=random).tolist()
        images[n, :, y : y + side // 2, x : x + side // 2] = 0
    told = []
    for text in texts:
        words = text.split()
        kept = (torch.rand(len(words), generator=random) >= DROPPED).tolist()
        told.append(" ".join(word for word, keep in zip(words, kept, strict=True) if keep) or text)
    return images, tuple(told)
