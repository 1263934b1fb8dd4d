"""GLIDE's text encoder: padding vectors, two-way attention, exact GELU, every position seen by the U-Net.

No stock class has these: CLIP's encoder is causal, and a mask over the padding would give other states.
Axes: B texts, T positions, W width.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

STANDARD_DEVIATION = 0.02  # of fresh embeddings, as GPT-2 starts


class GlideTextEncoder(ModelMixin, ConfigMixin):
    """Token ids and a mask -> states of all positions. Defaults are those of the published models."""

    @register_to_config
    def __init__(
        self, vocabulary: int = 50257, positions: int = 128, width: int = 512, layers: int = 16, heads: int = 8
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(positions, width).normal_(std=STANDARD_DEVIATION))
        self.padding_embedding = nn.Parameter(torch.empty(positions, width).normal_(std=STANDARD_DEVIATION))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        nn.init.normal_(self.token_embedding.weight, std=STANDARD_DEVIATION)
        for block in self.encoder.layers:  # TransformerEncoder copies one layer's start into all of them
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()
                elif isinstance(module, nn.MultiheadAttention):
                    module._reset_parameters()

    def forward(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """int64 ids and bool mask (False: padding), both [B, T] -> states [B, T, W].

        A padded position has its padding vector in the place of token and position; it is attended to like any other.
        """
        x_BTW = self.token_embedding(tokens_BT) + self.positional_embedding
        return self.encoder(torch.where(mask_BT[..., None], x_BTW, self.padding_embedding))
