"""What segmentation adds: its figures, and losses of maps.

Axes: B batch, N images, C classes with the ground, D width, G side of a map, S image side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, grid_sample, interpolate

from florilegium.learning.augmentation import Moves
from florilegium.learning.losses import ndcr


def figures(predicted_NSS: Tensor, masks_NSS: Tensor, classes: int) -> dict[str, float]:
    """`miou`, the mean over classes of intersection / union, and `pixel_accuracy`, over all pixels of all images.

    A class that neither is there nor is predicted does not count. `classes` includes the ground.
    """
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

    return {
        "miou": multiclass_jaccard_index(predicted_NSS, masks_NSS, num_classes=classes, average="macro").item(),
        "pixel_accuracy": multiclass_accuracy(predicted_NSS, masks_NSS, num_classes=classes, average="micro").item(),
    }


def region_mean(z_BDGG: Tensor, inside_BSS: Tensor) -> Tensor:
    """[B, D]: the mean of a map over the cells of an object, each weighted by its part of the object's pixels.

    Where there is no object, the mean over all cells.
    """
    weight = adaptive_avg_pool2d(inside_BSS.float()[:, None], z_BDGG.shape[-1]).flatten(1)
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, 1.0)
    return torch.einsum("bdp,bp->bd", z_BDGG.flatten(2), weight / weight.sum(1, keepdim=True))


def resized(z_BDGG: Tensor, cells: int) -> Tensor:
    """A map on cells x cells places: means of finer cells, or values between coarser ones."""
    if z_BDGG.shape[-1] >= cells:
        return adaptive_avg_pool2d(z_BDGG, cells)
    return interpolate(z_BDGG, size=(cells, cells), mode="bilinear", align_corners=False)


def dense_ndcr(
    z_BDGG: Tensor, teacher_BDGG: Tensor, moves: Moves, side: int, form: str = "l2_unit", temperature: float = 0.05
) -> Tensor:
    """The noise-driven consistency (arXiv 2507.06482) at each place of the teacher's map, mean of all.

    The teacher saw the images of `side` pixels as they are stored, and z saw them moved. So a place is compared with
    where it was before, and one that was outside counts nothing. No gradient reaches the teacher.
    """
    cells = teacher_BDGG.shape[-1]
    at_BGG2 = moves.places(cells, side).to(teacher_BDGG)
    there = grid_sample(teacher_BDGG.detach(), at_BGG2, padding_mode="border", align_corners=False)
    inside_R = (at_BGG2.abs() < 1).all(-1).flatten()
    z_RD, h_RD = (x.permute(0, 2, 3, 1).flatten(0, 2)[inside_R] for x in (resized(z_BDGG, cells), there))
    return ndcr(z_RD, h_RD, form, temperature)
