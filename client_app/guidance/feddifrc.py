"""FedDifRC's guide (arXiv 2507.06482): terms TDCL and NDCR of features of the client's own images.

Negatives may come from the server's images of other classes instead, and the head may replay these images.
Axes: B batch, N rows, K negatives, Q = 2 + K features of a row, D width, W token width, H images of the server.
Forms, sources and every free choice: docs/methods/feddifrc.md.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client_app.batches import Batch
from client_app.client import Client
from client_app.guidance.frozen_features import orthogonal
from client_app.guidance.replay import Head, HeadReplay, drawn_of_others
from florilegium.learning.losses import ndcr, tdcl
from florilegium.methods.guidance.settings import FedDifRCSettings

CONDITION = "condition"  # the part of the memory that keeps conditioned features


class FedDifRCGuide:
    """Features of the client's own images under the class's prompt, other classes' prompts and none."""

    parameters: dict[str, nn.Parameter] = {}

    def __init__(self, settings: FedDifRCSettings, client: Client, frozen: Any) -> None:
        self.settings, self.client, self.frozen = settings, client, frozen
        self.supervised = settings.supervised

    def terms(self, z_BD: Tensor, batch: Batch, head: Head) -> dict[str, Tensor]:
        s = self.settings
        seen_BQD = self.seen(z_BD, batch)
        terms = {}
        if s.tdcl:
            terms["tdcl"] = self.contrast(z_BD, seen_BQD, batch)
        if s.ndcr:
            terms["ndcr"] = s.ndcr * ndcr(z_BD, seen_BQD[:, 0], s.ndcr_form, s.ndcr_temperature)  # (e)
        if not s.supervised:  # the linear probe: labels train the head, never the encoder
            terms["probe"] = cross_entropy(self.client.classifier.head(z_BD.detach()), batch.labels)  # (g)
        if s.replay:
            terms["replay"] = self.replay.term(head, len(z_BD))
        return terms

    def seen(self, z: Tensor, batch: Batch) -> Tensor:
        """H, F+ and F- of a batch [B, Q, D], where z lies."""
        return self.frozen.standard(self.features_NQD[self.frozen.at(batch.ids)]).to(z.device)

    def contrast(self, z_BD: Tensor, seen_BQD: Tensor, batch: Batch) -> Tensor:
        """The weighted TDCL of z with F+ and F-, or with features of the server's images."""
        s, minus_BKD = self.settings, seen_BQD[:, 2:]
        if s.negatives_from == "images":
            minus_BKD = self.of_other_images(batch.labels).to(z_BD.device)
        return s.tdcl * tdcl(z_BD, seen_BQD[:, 1], minus_BKD, s.temperature, s.tdcl_form, s.u_norm)  # (d)

    def of_other_images(self, labels_B: Tensor) -> Tensor:
        """F-: [B, K, D], for each sample K of the server's images of other classes, each under its own prompt."""
        chosen_BK = drawn_of_others(labels_B, self.frozen.tensors["shown_labels"], self.settings.negatives, self.random)
        return self.frozen.standard(self.frozen.tensors["prompted"][chosen_BK])

    @cached_property
    def random(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.client.seed("FedDifRC's negatives"))

    @cached_property
    def replay(self) -> HeadReplay:
        tensors, client = self.frozen.tensors, self.client
        features_HD = client.classifier.finished(self.frozen.standard(tensors["unprompted"]).to(client.device))
        seed = client.seed("FedDifRC's replay")
        return HeadReplay(features_HD, tensors["shown_labels"], self.settings.replay, seed)

    @cached_property
    def features_NQD(self) -> Tensor:
        """Computed at the first batch, so that the condition comes from the server's weights."""
        return self.frozen.features() if self.settings.condition == "none" else self.conditioned()

    def conditioned(self) -> Tensor:
        """Features under prompts with c_i = h(x_i) of the model at the period's first round."""
        period, memory = self.client.round // self.settings.refresh, self.client.memory
        found = memory.read(CONDITION)
        if found is not None and found[1] == {"period": period, "guide": self.frozen.version}:
            return found[0]["features"]
        features = self.frozen.features(self.condition())
        memory.write(CONDITION, {"features": features}, {"period": period, "guide": self.frozen.version})
        return features

    def condition(self) -> Tensor:
        """A c_i [N, W]: A a fixed random orthogonal map, scaled to a share of the tokens' mean norm."""
        client, extractor = self.client, self.frozen.extractor
        training = client.model.training
        c_ND = client.encoded_rows(client.data.train, self.frozen.order)
        client.model.train(training)
        tokens_UTW = extractor.text(self.frozen.questions.prompts, pooled=False)
        mapped_NW = c_ND @ orthogonal(c_ND.shape[-1], tokens_UTW.shape[-1])
        norm = self.settings.condition_scale * tokens_UTW.norm(dim=-1).mean()
        return mapped_NW * (norm / mapped_NW.norm(dim=-1).mean().clamp_min(1e-9))
