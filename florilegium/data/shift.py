"""Domain shift made by hand: the same pictures turned, or of less contrast, by an amount of the client's own.

Axes: N images, S side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

GREY = 127.5


def amount(kind: str, client: int, rotation: float, contrast: float) -> float:
    """Client k's own shift: k * `rotation` degrees, or a contrast of `contrast` to the power of k."""
    return {"none": 0.0, "rotation": client * rotation, "contrast": contrast**client}[kind]


def shifted(images_N3SS: Tensor, kind: str, by: float) -> Tensor:
    """uint8 [N, 3, S, S] -> the same, turned or flattened."""
    if kind == "rotation":
        return rotated(images_N3SS, by)
    return flattened(images_N3SS, by) if kind == "contrast" else images_N3SS


def rotated(images_N3SS: Tensor, degrees: float) -> Tensor:
    """Turned about the centre, anti-clockwise; what comes in continues the picture's edge."""
    if not degrees % 360 or not len(images_N3SS):
        return images_N3SS
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(())
    turn = torch.stack([torch.stack([cos, -sin, zero]), torch.stack([sin, cos, zero])])
    grid = affine_grid(turn.expand(len(images_N3SS), 2, 3), list(images_N3SS.shape), align_corners=False)
    turned = grid_sample(images_N3SS.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return turned.round().clamp(0, 255).to(torch.uint8)


def flattened(images_N3SS: Tensor, contrast: float) -> Tensor:
    """Every value drawn towards mid-grey: 127.5 + contrast * (x - 127.5)."""
    if contrast == 1:
        return images_N3SS
    return (GREY + contrast * (images_N3SS.float() - GREY)).round().to(torch.uint8)
