"""Discriminators of FedAFD's bi-level alignment, and what both sides of the game minimise (arXiv 2603.04890).

An MLP tells the server's features (real) from a client's (fake). Axes: B batch, D representation width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

GENERATOR_LOSSES = ("nonsat", "minimax", "grl")


class Discriminator(nn.Module):
    """[B, D] -> logits [B]: positive for the server's features. LeakyReLU between linear layers."""

    def __init__(self, width: int, hidden: Sequence[int] = (128, 64), slope: float = 0.2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for wide in hidden:
            layers += [nn.Linear(width, wide), nn.LeakyReLU(slope)]
            width = wide
        self.net = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, z_BD: Tensor) -> Tensor:
        return self.net(z_BD).squeeze(-1)


class Reversed(torch.autograd.Function):
    """The identity, whose gradient is turned round (arXiv 1409.7495)."""

    @staticmethod
    def forward(ctx: object, z: Tensor) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return -gradient


def judged(logits_B: Tensor, real: bool, double_sigmoid: bool = False) -> Tensor:
    """Batch mean of -log D (real) or -log(1 - D) (fake); `double_sigmoid` is the released code's sigmoid before it."""
    scores = logits_B.sigmoid() if double_sigmoid else logits_B
    target = torch.ones_like(scores) if real else torch.zeros_like(scores)
    return binary_cross_entropy_with_logits(scores, target)


def told_apart(D: Discriminator, real_BD: Tensor, fake_BD: Tensor, double_sigmoid: bool = False) -> Tensor:
    """What a discriminator minimises: -log D(real) - log(1 - D(fake)); no gradient reaches the features."""
    return judged(D(real_BD.detach()), True, double_sigmoid) + judged(D(fake_BD.detach()), False, double_sigmoid)


def fooled(D: Discriminator, fake_BD: Tensor, form: str = "nonsat", double_sigmoid: bool = False) -> Tensor:
    """What the encoder minimises: nonsat -log D(fake), the released code's; minimax log(1 - D(fake)), the paper's.

    grl is -log(1 - D(fake)) through a reversed gradient: the encoder moves as with minimax, while the discriminator's
    gradient of the same number goes its own way (one backward pass for both).
    """
    if form == "nonsat":
        return judged(D(fake_BD), True, double_sigmoid)
    if form == "minimax":
        return -judged(D(fake_BD), False, double_sigmoid)
    return judged(D(Reversed.apply(fake_BD)), False, double_sigmoid)


@torch.no_grad()
def verdict(D: Discriminator, real_BD: Tensor, fake_BD: Tensor) -> dict[str, float]:
    """How sure it is: the share it tells right, and the gap between its mean probabilities of real and of fake."""
    real, fake = D(real_BD).sigmoid(), D(fake_BD).sigmoid()
    right = (real > 0.5).float().mean() + (fake < 0.5).float().mean()
    return {"accuracy": right.item() / 2, "gap": (real.mean() - fake.mean()).item()}
