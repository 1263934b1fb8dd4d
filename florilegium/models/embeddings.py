"""What the encoders of a dual encoder see in images, in texts and in public pairs.

Axes: N samples, P pairs, D width, S image side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from florilegium.data.public import PublicPairs
from florilegium.models.pair import DualEncoder
from florilegium.models.tokens import Vocabulary
from florilegium.protocol import pixels
from florilegium.protocol.deltas import version_of

BATCH = 128  # of an evaluation
KEPT = 8  # features a process keeps


@torch.no_grad()
def image_features(encoder: nn.Module, images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """[N, D] of uint8 [N, 3, S, S]: evaluation mode, no augmentation, on the CPU; the encoder's mode is put back."""
    return _seen(encoder, (pixels.scaled(images[n : n + BATCH]) for n in range(0, len(images), BATCH)), device)


@torch.no_grad()
def text_features(
    encoder: nn.Module, texts: Sequence[str], vocabulary: Vocabulary, device: torch.device | str = "cpu"
) -> Tensor:
    """[N, D] of N texts, as `image_features`; a repeated text is encoded once."""
    distinct = list(dict.fromkeys(texts))
    row = {text: n for n, text in enumerate(distinct)}
    parts = (vocabulary(distinct[n : n + BATCH]) for n in range(0, len(distinct), BATCH))
    return _seen(encoder, parts, device)[[row[text] for text in texts]]


def _seen(encoder: nn.Module, parts, device: torch.device | str) -> Tensor:
    training = encoder.training
    encoder.eval()
    try:
        found = [encoder(part.to(device)).float().cpu() for part in parts]
    finally:
        encoder.train(training)
    return torch.cat(found) if found else torch.zeros(0, 0)


_FEATURES: dict[tuple[str, str, str], Tensor] = {}


def public_features(model: DualEncoder, pairs: PublicPairs, side: str) -> Tensor:
    """[P, D] of one `side` (image | text) of public pairs; kept by (encoder hash, data hash)."""
    encoder = getattr(model, side)
    everything = {
        **dict(encoder.named_parameters()),
        **dict(encoder.named_buffers()),
    }  # a frozen part is in no state dict
    key = (side, version_of({name: value.detach() for name, value in everything.items()}), pairs.order)
    if key not in _FEATURES:
        while len(_FEATURES) >= KEPT:
            _FEATURES.pop(next(iter(_FEATURES)))
        _FEATURES[key] = (
            image_features(encoder, pairs.images, model.device)
            if side == "image"
            else text_features(encoder, pairs.texts, model.vocabulary, model.device)
        )
    return _FEATURES[key].clone()
