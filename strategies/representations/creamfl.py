"""CreamFL, server side (arXiv 2302.08888, in the form of docs/methods/representations.md).

Client side: client_app/methods/representations/creamfl.py. Down: the server's features of public pairs, images' and
texts'. Up: the client's own features of them. Axes: K clients, N pairs, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from florilegium import seeds
from florilegium.config.fields import section, setting
from florilegium.federation.federation import Client, Federation, means_of
from florilegium.learning.averaging import part
from florilegium.learning.similarity import match_scores, similarity_weights, weighted
from florilegium.protocol.payloads import Features, Nothing, Report
from strategies.blocks.public_set import PublicRound, PublicSet, PublicSetSettings, whole_set
from strategies.blocks.representations import (
    ask_representations,
    formula_bytes,
    handshake,
    joint,
    majority,
    stacked,
    text_groups,
)
from strategies.blocks.retriever import Retriever, RetrieverSettings
from strategies.blocks.rounds import Rounds

OTHER = {"image": "text", "text": "image"}


@section
class CreamFLSettings:
    """Server settings of CreamFL. "Our choice" marks what our notes on the released code do not say."""

    anchors: str = setting(
        "encoder",
        "G, the global features that weights compare with: encoder (trained on the public pairs) | clip (frozen) "
        "| mean (of the clients' features, with public_set=synthetic only; our choice)",
        choices=("encoder", "clip", "mean"),
    )
    aggregation: str = setting(
        "contrastive",
        "contrastive: weights from the global-local contrast | uniform: all clients equal, the control",
        choices=("contrastive", "uniform"),
    )
    score_temperature: float = setting(
        1.0, "temperature of the log-softmax of the contrast; the released code has none", low=1e-4, high=100
    )
    kd_weight: float = setting(0.3, "weight of the distillation into the server's encoders", low=0, high=1e4)
    encoder: RetrieverSettings = setting(help="the server's encoders", factory=RetrieverSettings)
    public: PublicSetSettings = setting(help="the public pairs; the whole set in every round", factory=whole_set)

    def __post_init__(self) -> None:
        if self.anchors == "mean" and self.public.source == "proxy":
            raise ValueError("anchors: mean needs the clients' answers first, which a proxy set gives last (synthetic)")


class CreamFL(Rounds):
    """Clients of different modalities align their features with the server's; the server learns from theirs."""

    Settings = CreamFLSettings

    def __init__(self, settings: CreamFLSettings, resources: Any) -> None:
        super().__init__(settings, resources)
        self.width, self.classes, self.seed = resources.width, len(resources.classes), resources.seed
        self.public = PublicSet(settings.public, resources)
        self.generator = self.public.generator
        self.encoder = Retriever(settings.encoder, resources) if settings.anchors == "encoder" else None

    @property
    def server_model(self) -> Any:
        """What the server's retrieval is judged by."""
        return self.encoder.model if self.encoder is not None else None

    def begin(self, federation: Federation) -> dict[str, float]:
        federation.ask("train", Nothing(), Nothing, Report)
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        proxy = self.public.pairs is not None
        public = self.public.drawn(r)
        asked = handshake(federation, self.public) if proxy else federation.cohort
        losses = self.supervised(public, r)  # the server's own contrastive epoch
        anchors = self.anchors(public)  # G, image and text
        federation.ask("train", Nothing(), Nothing, Report)  # clients: cross-entropy on private data
        if proxy:
            losses |= self.contrast(federation, asked, public, anchors)  # inter- and intra-modal
        replies = ask_representations(federation, self.public, public, self.width, clients=asked)
        by_side = stacked(replies, self.width)
        anchors = anchors or mean_anchors(by_side)
        merged, metrics = self.aggregated(by_side, anchors)  # global-local contrastive aggregation
        if self.encoder is not None:
            losses |= self.encoder.distill(
                public.images, public.texts, merged, self.settings.kd_weight, (r, self.num_rounds)
            )
        label_N, agree = majority(replies, self.classes, public.labels, federation.guard)
        if not proxy:  # fresh samples: known to clients only now
            losses |= self.contrast(federation, [x.client for x in replies], public, anchors)
            losses |= self.public.tune((r, self.num_rounds), public, label_N, joint(merged))  # Table III
            self.votes = self.public.votes(public, label_N)
            agree |= self.public.judged(public, label_N)
        return losses | metrics | agree | formula_bytes(replies, len(public), lambda client: 2 * self.width)

    # -- G: the server's features ------------------------------------------------------------------------------------

    def supervised(self, public: PublicRound, r: int) -> dict[str, float]:
        """The server's retrieval training on the pairs."""
        if self.encoder is None:
            return {}
        groups_N = (
            self.public.pairs.named(public.ids).groups if self.public.pairs is not None else text_groups(public.texts)
        )
        return self.encoder.supervise(public.images, public.texts, groups_N, (r, self.num_rounds))

    def anchors(self, public: PublicRound) -> dict[str, Tensor]:
        """Unit features [N, D] of both sides; nothing yet where they are the clients' own mean."""
        if self.encoder is not None:
            return self.encoder.features(public.images, public.texts)
        if self.settings.anchors == "mean":
            return {}
        clip = self.resources.clip_score()
        seen = {"image": clip.encode_images(public.images), "text": clip.encode_texts(list(public.texts))}
        return {side: carried(features.float().cpu(), self.width, self.seed) for side, features in seen.items()}

    # -- the exchange ------------------------------------------------------------------------------------------------

    def contrast(
        self, federation: Federation, clients: list[Client], public: PublicRound, anchors: dict[str, Tensor]
    ) -> dict[str, float]:
        """Clients pull their representations towards G; the mean of their loss terms."""
        none = torch.zeros(len(public), 0)
        down = Features(public.ids, anchors.get("image", none), anchors.get("text", none))
        return means_of(federation.ask("distill", down, Report, clients=clients))

    def aggregated(
        self, by_side: dict[str, tuple[list[int], Tensor]], anchors: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Of each side sum_k w_k rep_k [N, D]; a client's weight says how well it finds the OTHER side of a pair."""
        merged: dict[str, Tensor] = {}
        metrics: dict[str, float] = {}
        for side, (ids, reps_KND) in by_side.items():
            scores_KN = reps_KND.new_zeros(reps_KND.shape[:2])
            if self.settings.aggregation == "contrastive" and OTHER[side] in anchors:
                scores_KN = torch.stack(
                    [match_scores(rep, anchors[OTHER[side]], self.settings.score_temperature) for rep in reps_KND]
                )
            weights_KN = similarity_weights(scores_KN)
            merged[side] = weighted(reps_KND, weights_KN)
            metrics |= {f"fusion/{side}_weight_{k}": w for k, w in zip(ids, weights_KN.mean(1).tolist(), strict=True)}
        return merged, metrics

    # -- checkpoint --------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, meta = self.public.state()
        own = self.encoder.state() if self.encoder is not None else {}
        return {**tensors, **{f"encoder.{name}": value for name, value in own.items()}}, meta

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.public.restore(tensors, meta)
        if self.encoder is not None:
            self.encoder.restore(part(tensors, "encoder"))


def mean_anchors(by_side: dict[str, tuple[list[int], Tensor]]) -> dict[str, Tensor]:
    """G without a server model: the clients' mean of each side, as unit vectors (ours)."""
    return {side: normalize(reps_KND.mean(0), dim=-1) for side, (_, reps_KND) in by_side.items()}


def carried(features_NW: Tensor, width: int, seed: int) -> Tensor:
    """Unit features of another width in D dimensions: by orthonormal rows, which keep every cosine where W <= D; a
    random projection of unit length otherwise. [N, W] -> [N, D]."""
    unit, wide = normalize(features_NW, dim=-1), features_NW.shape[-1]
    drawn = torch.randn(max(wide, width), min(wide, width), generator=seeds.generator(seed, "carried", wide, width))
    basis = torch.linalg.qr(drawn).Q  # orthonormal columns
    return normalize(unit @ (basis.T if wide <= width else basis), dim=-1)
