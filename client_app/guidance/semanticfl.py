"""SemanticFL's guide (arXiv 2603.19337): distillation towards visual anchors, contrast with text anchors.

Axes: B batch, C classes, P anchors of a class, D width, W text width.
Forms, sources and every free choice: docs/methods/semanticfl.md.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor, nn

from client_app.batches import Batch, ClientError
from client_app.client import Client
from client_app.guidance.frozen_features import orthogonal
from florilegium.learning.losses import feature_kl, info_nce, nearest, unit_kl
from florilegium.methods.guidance.settings import SemanticFLSettings


class SemanticFLGuide:
    """Class anchors V (or, with private_local, V of the row itself) and the texts' T."""

    supervised = True

    def __init__(self, settings: SemanticFLSettings, client: Client, frozen: Any) -> None:
        self.settings, self.client, self.frozen = settings, client, frozen
        self.visual_CPD = frozen.tensors["visual"].to(client.device)
        self.text_CW = frozen.tensors["text"].to(client.device)
        self.parameters: dict[str, nn.Parameter] = {}
        self.head_DW = self.text_head() if settings.contrast else None

    def terms(self, z_BD: Tensor, batch: Batch) -> dict[str, Tensor]:
        s, terms = self.settings, {}
        if s.consistency:
            v_BD = self.visual(z_BD, batch)
            kl = (
                feature_kl(v_BD, z_BD)
                if s.consistency_form == "literal"
                else unit_kl(v_BD, z_BD, s.consistency_temperature, s.consistency_scaled)
            )
            terms["consistency"] = s.consistency * kl
        if s.contrast:
            z_BW = z_BD if self.head_DW is None else z_BD @ self.head_DW
            terms["text_contrast"] = s.contrast * info_nce(z_BW, self.text_CW, batch.labels, s.temperature)
        return terms

    def visual(self, z_BD: Tensor, batch: Batch) -> Tensor:
        """V of each sample: its own, its class's, or the nearest of its class's."""
        if self.settings.source == "private_local":
            return self.levels_ND[self.frozen.at(batch.ids)].to(z_BD.device)
        return nearest(z_BD, self.visual_CPD[batch.labels])

    @cached_property
    def levels_ND(self) -> Tensor:
        return self.frozen.levels()

    def text_head(self) -> Tensor | nn.Parameter | None:
        """z [D] -> the texts' space [W]: learned, fixed, or none where the widths are equal."""
        wide, kind = self.text_CW.shape[-1], self.settings.text_head
        if kind == "auto":
            kind = "none" if wide == self.client.width else "learned"
        if kind == "none":
            if wide != self.client.width:
                raise ClientError(
                    f"text_head is none, but texts are {wide} wide and representations "
                    f"{self.client.width}: choose auto, learned or fixed"
                )
            return None
        start_DW = orthogonal(self.client.width, wide).to(self.client.device)
        if kind == "fixed":
            return start_DW
        self.parameters["text"] = nn.Parameter(start_DW)
        return self.parameters["text"]
