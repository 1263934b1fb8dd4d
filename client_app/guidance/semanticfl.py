"""SemanticFL's guide (arXiv 2603.19337): consistency with what the diffusion model sees, contrast with the classes'
texts, and replay of the server's images in the head.

Axes: B batch, C classes, P anchors of a class, D width, W text width.
Forms, sources and every free choice: docs/methods/semanticfl.md.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from client_app.batches import Batch, ClientError
from client_app.client import Client
from client_app.guidance.frozen_features import orthogonal, under
from client_app.guidance.replay import Head, HeadReplay
from florilegium.learning.losses import cosine_distance, feature_kl, info_nce, nearest, unit_kl
from florilegium.methods.guidance.settings import SemanticFLSettings
from florilegium.methods.guidance.student import STUDENT


class SemanticFLGuide:
    """V of each image (the student's answer, its class's anchor or, with private_local, its own) and the texts' T."""

    supervised = True

    def __init__(self, settings: SemanticFLSettings, client: Client, frozen: Any) -> None:
        self.settings, self.client, self.frozen = settings, client, frozen
        self.visual_CPD = frozen.tensors["visual"].to(client.device)
        self.text_CW = frozen.tensors["text"].to(client.device)
        self.parameters: dict[str, nn.Parameter] = {}
        self.head_DW = self.text_head() if settings.contrast else None

    def terms(self, z_BD: Tensor, batch: Batch, head: Head) -> dict[str, Tensor]:
        s, terms = self.settings, {}
        if s.consistency:
            terms["consistency"] = s.consistency * self.distance(self.visual(z_BD, batch), z_BD)
        if s.contrast:
            z_BW = z_BD if self.head_DW is None else z_BD @ self.head_DW
            terms["text_contrast"] = s.contrast * info_nce(z_BW, self.text_CW, batch.labels, s.temperature)
        if s.replay:
            terms["replay"] = self.replay.term(head, len(z_BD))
        return terms

    def distance(self, v_BD: Tensor, z_BD: Tensor) -> Tensor:
        """How far z is from its targets, in the form of the settings."""
        s = self.settings
        if s.consistency_form == "cosine":
            return cosine_distance(v_BD, z_BD)
        if s.consistency_form == "literal":
            return feature_kl(v_BD, z_BD)
        return unit_kl(v_BD, z_BD, s.consistency_temperature, s.consistency_scaled)

    @torch.no_grad()
    def visual(self, z_BD: Tensor, batch: Batch) -> Tensor:
        """V of each sample: the student's of the same view, its own, its class's, or the nearest of its class's."""
        if self.settings.form == "student":
            return self.student.encode(batch.inputs)
        if self.settings.source == "private_local":
            return self.levels_ND[self.frozen.at(batch.ids)].to(z_BD.device)
        return nearest(z_BD, self.visual_CPD[batch.labels])

    @cached_property
    def levels_ND(self) -> Tensor:
        return self.frozen.levels()

    @cached_property
    def student(self) -> Any:
        """The server's student, frozen; built like this client's model."""
        student = deepcopy(self.client.classifier).requires_grad_(False)
        student.load_state_dict(under(STUDENT, self.frozen.tensors))
        return student.eval()

    @cached_property
    def replay(self) -> HeadReplay:
        tensors, classifier = self.frozen.tensors, self.client.classifier
        features_JD = classifier.finished(tensors["replay"].float().to(self.client.device))
        seed = self.client.seed("SemanticFL's replay")
        return HeadReplay(features_JD, tensors["replay_labels"], self.settings.replay, seed)

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
