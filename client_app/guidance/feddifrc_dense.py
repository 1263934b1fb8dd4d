"""FedDifRC's guide for segmentation (ours: arXiv 2507.06482 names it as open). Its terms on maps instead of vectors.

Axes: B batch, N rows, D width, G side of a map. docs/methods/feddifrc.md, "Segmentation".
"""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from client_app.batches import Batch
from client_app.guidance.feddifrc import FedDifRCGuide
from client_app.guidance.replay import Head
from florilegium.learning.segmentation import dense_ndcr, region_mean


class DenseFedDifRCGuide(FedDifRCGuide):
    """NDCR compares z with H at every place. TDCL compares the mean of z over the object with features of the image,
    because a prompt names the object and not the ground."""

    def terms(self, z_BDGG: Tensor, batch: Batch, head: Head) -> dict[str, Tensor]:
        s, terms = self.settings, {}
        if s.tdcl:
            z_BD = region_mean(z_BDGG, batch.masks > 0)
            terms["tdcl"] = self.contrast(z_BD, self.seen(z_BD, batch), batch)
        if s.ndcr and batch.moves is not None:
            h_BDGG = self.maps_NDGG[self.frozen.at(batch.ids)].float().to(z_BDGG.device)
            given = (z_BDGG, h_BDGG, batch.moves, batch.inputs.shape[-1])
            terms["ndcr"] = s.ndcr * dense_ndcr(*given, s.ndcr_form, s.ndcr_temperature)
        return terms

    @cached_property
    def maps_NDGG(self) -> Tensor:
        """H of the client's rows at every place, read at the first batch."""
        return self.frozen.maps()
