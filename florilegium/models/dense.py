"""A model that gives each pixel a class: the maps of an image body, joined as in a feature pyramid (arXiv 1612.03144).

Axes: B batch, C classes, D representation width (clients.width), G side of the finest map, S image side.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate

from florilegium.models.bodies import Classifier, ModelError
from florilegium.models.image import ImageBody


class Pyramid(nn.Module):
    """Maps [B, H, h, h] of several sizes, the finest first, joined to one [B, D, G, G] of the finest's size."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(many, width, 1) for many in channels)
        self.smooth = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        own = [lateral(found) for lateral, found in zip(self.laterals, maps, strict=True)]
        joined = own.pop()
        while own:  # from the coarsest to the finest
            finer = own.pop()
            joined = finer + interpolate(joined, size=finer.shape[-2:], mode="nearest")
        return self.smooth(joined)


class Segmenter(Classifier):
    """A body, a pyramid in the place of the projection, and a linear classifier of each place: C classes and ground.

    `encode` gives maps z [B, D, G, G], `head` gives logits [B, C + 1, S, S] of images of `side` S; class 0 is the
    ground. ModelError for a body that has no maps.
    """

    dense = True
    body: ImageBody

    def __init__(self, body: nn.Module, width: int, classes: int, side: int, finish: str = "layer_norm") -> None:
        if not isinstance(body, ImageBody):
            raise ModelError("clients.task: only resnet, vit and beit have the maps that segmentation needs")
        super().__init__(body, width, width, classes + 1, finish=finish)
        self.project = Pyramid(body.channels, width)
        self.side = side

    def encode(self, x: Tensor) -> Tensor:
        """float [B, 3, S, S] -> z [B, D, G, G]; each place is finished as a representation of an image is."""
        with self.body.mixed(x):
            maps = self.body.maps(x)
        return self.finished(self.project([each.float() for each in maps]).movedim(1, -1)).movedim(-1, 1)

    def head(self, z_BDGG: Tensor) -> Tensor:
        """z [B, D, G, G] -> logits [B, C + 1, S, S]."""
        logits = self.classifier(z_BDGG.movedim(1, -1)).movedim(-1, 1)
        return interpolate(logits, size=(self.side, self.side), mode="bilinear", align_corners=False)
