"""Views of samples: light augmentation of training batches, and the strong second view of samples.

Axes: B batch, S side. Everything random comes from the generator or seed that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from florilegium import seeds


def text_with_tags(text: str, tags: Sequence[str], random: torch.Generator | None = None) -> str:
    """A text with its tags: "grinning face, cheerful, smile". With `random`: a random part of them, shuffled."""
    if random is None or not tags:
        return ", ".join([text, *tags])
    order = torch.randperm(len(tags), generator=random).tolist()
    some = int(torch.randint(len(tags) + 1, (), generator=random))
    return ", ".join([text, *(tags[i] for i in order[:some])])


@lru_cache(maxsize=4)
def _simclr(side: int) -> Any:
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(side, scale=(0.5, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(3)], p=0.5),
        ]
    )


def second_images(images_N3SS: Tensor, ids: Tensor, seed: int) -> Tensor:
    """SimCLR's augmentation of uint8 images, each seeded by its sample's id; uint8 [N, 3, S, S]."""
    view = _simclr(images_N3SS.shape[-1])
    out = torch.empty_like(images_N3SS)
    for n, i in enumerate(ids.tolist()):
        with seeds.scoped(seed, "view", i):
            out[n] = view(images_N3SS[n])
    return out


def second_texts(texts: Sequence[str], ids: Tensor, seed: int, drop: float = 0.1) -> list[str]:
    """Each word dropped with probability `drop`, seeded by the sample's id; at least one word stays."""
    out = []
    for text, i in zip(texts, ids.tolist(), strict=True):
        words = text.split()
        kept = torch.rand(len(words), generator=seeds.generator(seed, "view", i)) >= drop
        out.append(" ".join(word for word, keep in zip(words, kept.tolist(), strict=True) if keep) or text)
    return out
