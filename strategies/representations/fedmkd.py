"""FedMKD, server side (Li et al., NeurIPS 2024, in the form of docs/methods/representations.md).

Client side: client_app/methods/representations/fedmkd.py. Down: the server's features of public pairs. Up: the client's
own. Axes: K clients that have a side, N pairs, B batch, D width, H width of a key.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from florilegium import seeds
from florilegium.config.fields import section, setting
from florilegium.federation.federation import Client, Federation, means_of
from florilegium.learning.averaging import named, part
from florilegium.learning.losses import info_nce
from florilegium.protocol.payloads import Features, Nothing, Report
from strategies.blocks.public_set import PublicRound, PublicSet, PublicSetSettings, whole_set
from strategies.blocks.representations import (
    SIDES,
    ask_representations,
    formula_bytes,
    joint,
    majority,
    sides_of,
    stacked,
    text_groups,
)
from strategies.blocks.retriever import Retriever, RetrieverSettings
from strategies.blocks.rounds import Rounds

Stacks = dict[str, tuple[list[int], Tensor]]  # side -> (clients, their features [K, N, D])


@section
class FedMKDSettings:
    """Server settings of FedMKD. "Our choice" marks what its public code does not have."""

    integration: str = setting(
        "attention",
        "how teachers are weighed: attention (learned, for each sample) | uniform (all equal, the control)",
        choices=("attention", "uniform"),
    )
    distillation: float = setting(
        0.9, "share of the distillation in the server's loss; the rest is its own task's", low=0, high=1
    )
    temperature: float = setting(0.1, "T: temperature of the contrast with the teachers' mixture", low=1e-3, high=1e3)
    keys: int = setting(10, "H: width of the vectors that attention compares", low=1, high=100_000)
    encoder: RetrieverSettings = setting(help="the server's encoders", factory=RetrieverSettings)
    public: PublicSetSettings = setting(help="the public pairs; the whole set in every round", factory=whole_set)


class Attention(nn.Module):
    """Weights of teachers [K, B]: softmax over k of <Q P(own), K P(teacher_k)> / H, P a two-layer network."""

    def __init__(self, width: int, keys: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, keys))
        self.query, self.key = nn.Linear(keys, keys, bias=False), nn.Linear(keys, keys, bias=False)

    def forward(self, own_BD: Tensor, teachers_KBD: Tensor) -> Tensor:
        query_BH, key_KBH = self.query(self.project(own_BD)), self.key(self.project(teachers_KBD))
        return ((query_BH * key_KBH).sum(-1) / query_BH.shape[-1]).softmax(0)


class FedMKD(Rounds):
    """The server learns from its own mixture of the clients' features; clients align with the server."""

    Settings = FedMKDSettings

    def __init__(self, settings: FedMKDSettings, resources: Any) -> None:
        super().__init__(settings, resources)
        self.width, self.classes = resources.width, len(resources.classes)
        self.public = PublicSet(settings.public, resources)
        self.generator = self.public.generator
        self.encoder = Retriever(settings.encoder, resources)
        with seeds.scoped(resources.seed, "model", "attention"):
            both = {side: Attention(self.width, settings.keys) for side in SIDES}
        self.attention = nn.ModuleDict(both).to(self.encoder.model.device)

    @property
    def server_model(self) -> Any:
        """What the server's retrieval is judged by."""
        return self.encoder.model

    def begin(self, federation: Federation) -> dict[str, float]:
        federation.ask("train", Nothing(), Nothing, Report)
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        public = self.public.drawn(r)
        federation.ask("train", Nothing(), Nothing, Report)  # clients: private epochs
        replies = ask_representations(federation, self.public, public, self.width)
        by_side = stacked(replies, self.width)
        losses = self.distill(public, by_side, r)  # adaptive knowledge integration
        anchors = self.encoder.features(public.images, public.texts)
        aligning = federation.send(  # global knowledge anchored alignment
            "distill",
            lambda client: self.down(public, anchors, client),
            Report,
            clients=[x.client for x in replies],
        )
        label_N, agree = majority(replies, self.classes, public.labels, federation.guard)
        if self.generator is not None:
            mean = {side: reps_KND.mean(0) for side, (_, reps_KND) in by_side.items()}
            losses |= self.public.tune((r, self.num_rounds), public, label_N, joint(mean))  # Table III
            self.votes = self.public.votes(public, label_N)
            agree |= self.public.judged(public, label_N)
        aligned = means_of(federation.collect(aligning))
        return losses | aligned | agree | formula_bytes(replies, len(public), lambda c: self.width * len(sides_of(c)))

    def down(self, public: PublicRound, anchors: dict[str, Tensor], client: Client) -> Features:
        """The server's features of the sides that a client reads."""
        none = torch.zeros(len(public), 0)
        return Features(public.ids, *(anchors[side] if side in sides_of(client) else none for side in SIDES))

    # -- the server's training ---------------------------------------------------------------------------------------

    def distill(self, public: PublicRound, by_side: Stacks, r: int) -> dict[str, float]:
        """Passes over the pairs: (1 - d) the server's retrieval + d the contrast with the teachers' mixture; and the
        mean weight of each teacher."""
        s, weights = self.settings, {f"{side}_{k}": 0.0 for side, (ids, _) in by_side.items() for k in ids}
        groups_N, steps = self.groups(public), 0

        def loss(rows: Tensor) -> dict[str, Tensor]:
            nonlocal steps
            steps += 1
            own = dict(
                zip(SIDES, self.encoder.model(*self.encoder.inputs(public.images, public.texts, rows)), strict=True)
            )
            task = self.encoder.model.loss(own["image"], own["text"], groups_N[rows].to(own["image"].device))
            terms = {"retrieval": (1 - s.distillation) * task}
            for side, (ids, reps_KND) in by_side.items():
                teachers_KBD = reps_KND[:, rows].to(own[side].device)
                weight_KB = self.teacher_weights(side, own[side], teachers_KBD)
                terms[f"distillation_{side}"] = s.distillation * contrast(
                    own[side], (weight_KB[..., None] * teachers_KBD).sum(0), s.temperature
                )
                for k, weight in zip(ids, weight_KB.detach().mean(1).tolist(), strict=True):
                    weights[f"{side}_{k}"] += weight
            return terms

        learnt = self.encoder.passes(
            loss, len(public), s.encoder.kd_epochs, (r, self.num_rounds), "mkd", self.attention.parameters()
        )
        return learnt | {f"fusion/{side_k}_weight": total / max(steps, 1) for side_k, total in weights.items()}

    def teacher_weights(self, side: str, own_BD: Tensor, teachers_KBD: Tensor) -> Tensor:
        """[K, B]: how much each teacher counts for each sample; they sum to one over K."""
        if self.settings.integration == "uniform":
            return teachers_KBD.new_full(teachers_KBD.shape[:2], 1 / len(teachers_KBD))
        return self.attention[side](own_BD, teachers_KBD)

    def groups(self, public: PublicRound) -> Tensor:
        """[N]: which pairs may stand for each other in retrieval."""
        if self.public.pairs is not None:
            return self.public.pairs.named(public.ids).groups
        return text_groups(public.texts)

    # -- checkpoint --------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, meta = self.public.state()
        attention = {name: value.detach().cpu().clone() for name, value in self.attention.state_dict().items()}
        return {**tensors, **named("encoder", self.encoder.state()), **named("attention", attention)}, meta

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.public.restore(tensors, meta)
        self.encoder.restore(part(tensors, "encoder"))
        self.attention.load_state_dict(part(tensors, "attention"))


def contrast(own_BD: Tensor, teacher_BD: Tensor, temperature: float) -> Tensor:
    """-log of the share that a sample's own teacher has of all teachers in the batch, by exp(cosine / T); the mean."""
    return info_nce(own_BD, teacher_BD, torch.arange(len(own_BD), device=own_BD.device), temperature)
