"""FedAFD's two discriminators at a client and the game they play with its encoder (arXiv 2603.04890, section 3).

Both tell the server's features of public pairs from the client's: one compares with the server's features of the same
side, one with those of the other side. Axes: B batch, D width.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from florilegium import seeds
from florilegium.learning.averaging import named, part
from florilegium.learning.fit import optimizer_tensors, restore_optimizer
from florilegium.methods.fedafd.fidelity import Divergences

PART = "adversary"  # of the memory
OTHER = {"image": "text", "text": "image"}
BLIND, WON = 0.01, 0.98  # gaps below and above which a discriminator counts as collapsed


class Adversary:
    """D_in and D_cr, as the client's last training left them."""

    def __init__(self, client: Any, hidden: Sequence[int], slope: float, lr: float, ways: Divergences) -> None:
        self.ways, self.looks = ways, 0
        self.found: dict[str, float] = {}
        with seeds.scoped(client.conf.seed, "model", PART, client.id):
            self.discriminators = {name: Discriminator(client.width, hidden, slope) for name in ("in", "cross")}
        self.nets = nn.ModuleDict(self.discriminators)
        self.adams = {name: torch.optim.Adam(net.parameters(), lr) for name, net in self.nets.items()}
        left = client.memory.read(PART)
        if left is not None:
            self.nets.load_state_dict(part(left[0], "nets"))
            for name, adam in self.adams.items():
                restore_optimizer(adam, part(left[0], f"{name}_adam"))
        self.nets.to(client.device)

    def games(self, real: Mapping[str, Tensor], fake: Mapping[str, Tensor]) -> list[tuple[str, Tensor, Tensor]]:
        """(discriminator, real, fake) of every side the client has; a pair client's sides share both discriminators."""
        return [
            (name, real[against], z)
            for side, z in fake.items()
            for name, against in (("in", side), ("cross", OTHER[side]))
        ]

    def play(self, real: Mapping[str, Tensor], fake: Mapping[str, Tensor], beta: float, look: bool = False) -> Tensor:
        """A step of the discriminators, then what the encoder minimises: beta times the sum over games.

        With `grl` both move by one backward pass of what is returned; then `after_backward` steps.
        """
        games, double = self.games(real, fake), self.ways.double_sigmoid
        for adam in self.adams.values():
            adam.zero_grad(set_to_none=True)
        if self.ways.generator_loss != "grl":
            losses = [told_apart(self.discriminators[name], r, f, double) for name, r, f in games]
            (beta * total(losses)).backward()
            for adam in self.adams.values():
                adam.step()
        if look:
            self.look(games)
        loss = total([fooled(self.discriminators[name], f, self.ways.generator_loss, double) for name, _, f in games])
        if self.ways.generator_loss == "grl":
            loss = loss + total([judged(self.discriminators[name](r), True, double) for name, r, _ in games])
        return beta * loss

    def after_backward(self) -> None:
        """With `grl`, the discriminators' own step."""
        if self.ways.generator_loss == "grl":
            for adam in self.adams.values():
                adam.step()
                adam.zero_grad(set_to_none=True)

    def look(self, games: Sequence[tuple[str, Tensor, Tensor]]) -> None:
        """Remember how sure each is, for the records."""
        self.looks += 1
        for name, real, fake in games:
            for what, value in verdict(self.discriminators[name], real, fake).items():
                key = f"baa/{what}_{name}"
                self.found[key] = self.found.get(key, 0.0) + value / (len(games) // 2)

    def figures(self) -> dict[str, float]:
        """Means of accuracy and gap; `baa/collapsed` counts those that see no difference, or see nothing else."""
        means = {key: value / max(self.looks, 1) for key, value in self.found.items()}
        gaps = [abs(value) for key, value in means.items() if key.startswith("baa/gap")]
        return means | ({"baa/collapsed": float(sum(g < BLIND or g > WON for g in gaps))} if gaps else {})

    def keep(self, client: Any) -> None:
        tensors = named("nets", self.nets.state_dict())
        for name, adam in self.adams.items():
            tensors |= named(f"{name}_adam", optimizer_tensors(adam))
        client.memory.write(PART, tensors)


def total(losses: Sequence[Tensor]) -> Tensor:
    """The sum of scalars, in their order."""
    return reduce(operator.add, losses)


# -- a discriminator, and what both sides of the game minimise ---------------------------------------------------------


class Discriminator(nn.Module):
    """An MLP, [B, D] -> logits [B]: positive for the server's features (real), negative for a client's (fake).

    LeakyReLU between linear layers.
    """

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
