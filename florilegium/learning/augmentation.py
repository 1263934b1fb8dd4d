"""Light augmentation of training images, the same for clients and for what the server trains for them.

Axes: B batch, S side. Everything random comes from the generator that is passed in.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


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
