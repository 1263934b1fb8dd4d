"""Views of samples: light augmentation of training batches, and the strong second view of samples.

Axes: B batch, S side. Everything random comes from the generator or seed that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from florilegium import seeds


def shifted(images_B3SS: Tensor, random: torch.Generator, crop: int, flip: bool) -> Tensor:
    """Shift each image by up to `crop` pixels (white comes in) and mirror half of them. float in [-1, 1]."""
    count, _, side, _ = images_B3SS.shape
    if crop:
        wide = pad(images_B3SS, (crop,) * 4, value=1.0)
        offset_2B = torch.randint(2 * crop + 1, (2, count), generator=random)
        ramp = torch.arange(side)
        y, x = offset_2B[0, :, None] + ramp, offset_2B[1, :, None] + ramp
        b = torch.arange(count)[:, None, None, None]
        images_B3SS = wide[b, torch.arange(3)[:, None, None], y[:, None, :, None], x[:, None, None, :]]
    if flip:
        mirrored = torch.rand(count, generator=random) < 0.5
        images_B3SS = torch.where(mirrored[:, None, None, None], images_B3SS.flip(-1), images_B3SS)
    return images_B3SS


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
