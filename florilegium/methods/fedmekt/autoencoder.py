"""The server model of FedMEKT: an autoencoder of each modality, whose code is as wide as the clients' representations.

An encoder is a client model without its classifier; a decoder gives back the pixels, or how often each word stood in
the text. Axes: N samples, B batch, D representation width, S image side, T tokens, V vocabulary, L layers' widths.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from florilegium import seeds
from florilegium.learning.losses import normalised
from florilegium.models import bodies, build
from florilegium.models.tokens import Vocabulary

MODALITIES = ("image", "text")


class AutoEncoder(nn.Module):
    """An encoder and a decoder of each modality.

    Inputs: image float [B, 3, S, S] in [-1, 1], text int64 token ids [B, T].
    """

    def __init__(self, clients: Any, architectures: dict[str, str], side: int, vocabulary: Vocabulary, hidden: int):
        super().__init__()
        width, wide = int(clients.width), {"image": 3 * side * side, "text": vocabulary.size}
        self.side, self.words, self.pad = side, vocabulary.size, vocabulary.pad
        self.encoders = nn.ModuleDict()
        for modality in MODALITIES:
            model = build.build(clients, modality, architectures[modality], 1, vocabulary)
            model.classifier = nn.Identity()
            self.encoders[modality] = model
        self.decoders = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, wide[m])) for m in MODALITIES}
        )

    def codes(self, modality: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two layers of an encoder: its code [B, D] and its body's output before that [B, H]."""
        return layers(cast(bodies.Classifier, self.encoders[modality]), x)

    def original(self, modality: str, x: Tensor) -> Tensor:
        """What a decoder should give: pixels [B, 3 S S], or unit-norm word counts [B, V]."""
        if modality == "image":
            return x.flatten(1)
        counts_BV = torch.zeros(len(x), self.words, device=x.device)
        counts_BV.scatter_add_(1, x, (x != self.pad).float())
        return normalize(counts_BV, dim=-1)

    def loss(self, modality: str, code_BD: Tensor, x: Tensor) -> Tensor:
        """Mean squared error of the reconstruction of `x` (of `modality`) from a code. Word counts are a sum over V:
        their mean would vanish in a large vocabulary."""
        found, target = self.decoders[modality](code_BD), self.original(modality, x)
        error = mse_loss(found, target)
        return error if modality == "image" else error * self.words


def layers(model: bodies.Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
    """A model's representation z [B, D], and the output [B, H] of its body, on the same scale."""
    h_BH = model.body(x)
    return normalised(model.project(h_BH)), normalised(h_BH)


def built(
    clients: Any, architectures: dict[str, str], side: int, vocabulary: Vocabulary, hidden: int, seed: int
) -> AutoEncoder:
    """The autoencoder as the seed starts it. ModelError names an architecture that is not there."""
    with seeds.scoped(seed, "model", "autoencoder"):
        return AutoEncoder(clients, architectures, side, vocabulary, hidden)
