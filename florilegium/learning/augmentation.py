"""Light augmentation of training images, the same for clients and for what the server trains for them.

Axes: B batch, S side. Everything random comes from the generator that is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Moves:
    """How each image of a batch was moved: shifted by `offset_2B` - `crop` pixels (down, right), then mirrored."""

    crop: int
    offset_2B: Tensor
    mirrored_B: Tensor

    def places(self, cells: int, side: int) -> Tensor:
        """float [B, G, G, 2]: where in the image before it was moved the centre of each cell of a moved one lies.

        Cells are G x G on an image of `side` pixels; places are (x, y) as `grid_sample` takes them, from -1 to 1
        between the edges. Beyond them the place was not in the image.
        """
        centre_G = (torch.arange(cells) + 0.5) * 2 / cells - 1
        y_BG, x_BG = ((centre_G + 2 * (offset[:, None] - self.crop) / side) for offset in self.offset_2B)
        mirrored = -centre_G + 2 * (self.offset_2B[1][:, None] - self.crop) / side
        x_BG = torch.where(self.mirrored_B[:, None], mirrored, x_BG)
        count = len(self.mirrored_B)
        x, y = x_BG[:, None, :].expand(count, cells, cells), y_BG[:, :, None].expand(count, cells, cells)
        return torch.stack([x, y], -1)


def drawn(count: int, random: torch.Generator, crop: int, flip: bool) -> Moves:
    """A shift of up to `crop` pixels for each of `count` images, and a mirror for half of them where `flip` is on."""
    offset_2B = torch.full((2, count), crop)
    if crop:
        offset_2B = torch.randint(2 * crop + 1, (2, count), generator=random)
    mirrored_B = torch.zeros(count, dtype=torch.bool)
    if flip:
        mirrored_B = torch.rand(count, generator=random) < 0.5
    return Moves(crop, offset_2B, mirrored_B)


def moved(images_BCSS: Tensor, moves: Moves, comes_in: float = 1.0) -> Tensor:
    """The images, moved; `comes_in` is the value of what was outside."""
    _, channels, side, _ = images_BCSS.shape
    if crop := moves.crop:
        wide = pad(images_BCSS, (crop,) * 4, value=comes_in)
        ramp = torch.arange(side)
        y, x = moves.offset_2B[0, :, None] + ramp, moves.offset_2B[1, :, None] + ramp
        b = torch.arange(len(wide))[:, None, None, None]
        images_BCSS = wide[b, torch.arange(channels)[:, None, None], y[:, None, :, None], x[:, None, None, :]]
    return torch.where(moves.mirrored_B[:, None, None, None], images_BCSS.flip(-1), images_BCSS)


def shifted(images_B3SS: Tensor, random: torch.Generator, crop: int, flip: bool) -> Tensor:
    """Shift each image by up to `crop` pixels (white comes in) and mirror half of them. float in [-1, 1]."""
    moves = drawn(len(images_B3SS), random, crop, flip)
    return moved(images_B3SS, moves)
