"""Dual encoders for image-text retrieval: an image and a text body, each projected to unit vectors of one width.

Axes: B batch, N pairs, D width (clients.width), S image side, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from florilegium.config.clients import PairSettings
from florilegium.learning.losses import pair_nce, soft_contrastive
from florilegium.models.tokens import Vocabulary


class Encoder(nn.Module):
    """[B, ...] -> unit vectors [B, D]: a body and a linear projection."""

    def __init__(self, body: nn.Module, hidden: int, width: int) -> None:
        super().__init__()
        self.body, self.project = body, nn.Linear(hidden, width)
        if getattr(body, "pretrained", False) and hidden == width:  # its towers agree already
            nn.init.eye_(self.project.weight)
            nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor) -> Tensor:
        return normalize(self.project(self.body(x)), dim=-1)


class DualEncoder(nn.Module):
    """`image` and `text` are the two encoders (`dual.image.state_dict()` is one of them); `vocabulary` reads texts."""

    def __init__(self, image: Encoder, text: Encoder, vocabulary: Vocabulary, settings: PairSettings) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.vocabulary, self.settings = vocabulary, settings
        if settings.loss == "soft_contrastive":
            self.scale, self.shift = (
                nn.Parameter(torch.tensor(settings.scale)),
                nn.Parameter(torch.tensor(settings.shift)),
            )

    def encode_image(self, x_B3SS: Tensor) -> Tensor:
        """float [B, 3, S, S] in [-1, 1] -> unit [B, D]."""
        return self.image(x_B3SS)

    def encode_text(self, ids_BT: Tensor) -> Tensor:
        """int64 [B, T] -> unit [B, D]."""
        return self.text(ids_BT)

    def forward(self, x_B3SS: Tensor, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode_image(x_B3SS), self.encode_text(ids_BT)

    def loss(self, image_BD: Tensor, text_BD: Tensor, groups_B: Tensor) -> Tensor:
        """The retrieval loss of unit vectors; pairs of one group match."""
        match_BB = groups_B[:, None] == groups_B[None]
        if self.settings.loss == "soft_contrastive":
            return soft_contrastive(image_BD, text_BD, match_BB, self.scale, self.shift)
        return pair_nce(image_BD, text_BD, match_BB, self.settings.temperature)

    @property
    def device(self) -> torch.device:
        return self.image.project.weight.device
