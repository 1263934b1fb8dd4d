"""Which pixels of a picture on a plain ground show its object. Axes: N images, S side.

Data sets here have no masks: their pictures are drawn on white (or black), and the transparency of their sources is
lost. What has the colour of the ground and hangs together with the edge is the ground; the rest is the object.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from florilegium.data.datasets import Rows

BACKGROUND = 0  # label of the ground in a mask; class c is c + 1
TOLERANCE = 28  # of 255: a pixel is of the ground's colour if no channel differs by more


def foreground(images_N3SS: Tensor, tolerance: int = TOLERANCE) -> Tensor:
    """bool [N, S, S]: true where uint8 images [N, 3, S, S] show an object.

    The ground's colour is the median of the picture's edge. A part of the object that has this colour and touches the
    ground is lost; one that is enclosed is kept.
    """
    from scipy.ndimage import label

    x = images_N3SS
    edge = torch.cat([x[:, :, 0], x[:, :, -1], x[..., 0], x[..., -1]], -1)
    ground_N3 = edge.float().median(-1).values
    alike = ((x.float() - ground_N3[:, :, None, None]).abs().amax(1) <= tolerance).numpy()
    found = np.ones(alike.shape, bool)
    for n, plain in enumerate(alike):
        parts, _ = label(plain)
        outer = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
        found[n] = ~(plain & np.isin(parts, outer[outer > 0]))
    return torch.from_numpy(found)


def masks(rows: Rows, chosen: Tensor | None = None) -> Tensor:
    """int64 [N, S, S]: 0 for the ground and 1 + label for the object, of all rows or of those chosen."""
    images, labels = (rows.images[:], rows.labels) if chosen is None else (rows.images[chosen], rows.labels[chosen])
    return torch.where(foreground(images), 1 + labels[:, None, None], BACKGROUND)
