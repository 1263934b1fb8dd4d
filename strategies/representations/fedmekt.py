"""FedMEKT, server side (arXiv 2307.13214, in the form of docs/methods/representations.md).

Client side: client_app/methods/representations/fedmekt.py. Down: the server's embeddings of public samples, of the
client's own modality. Up: the client's own. Axes: K clients, N samples, B batch, D width, H width of a body.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize
from torch.nn.utils import clip_grad_norm_

from florilegium import seeds
from florilegium.config.fields import section, setting
from florilegium.data.stored_images import changed
from florilegium.federation.federation import Client, Federation, means_of
from florilegium.learning.averaging import part
from florilegium.learning.losses import feature_kl, normalised, pair_nce
from florilegium.models import build
from florilegium.models.pair import Encoder
from florilegium.models.tokens import Vocabulary
from florilegium.protocol import pixels
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
)
from strategies.blocks.rounds import Rounds

LOG = logging.getLogger("flwr")
Embeddings = dict[str, list[Tensor]]  # side -> its layers' unit embeddings: [N, D], and [N, D] of the body where sent


@section
class FedMEKTSettings:
    """Server settings of FedMEKT, as in its released code; "our choice" marks what our notes on it do not say."""

    architecture: str = setting(
        "clip+clip",
        "image+text, the bodies of the server's encoders: towers of a CLIP (clip+clip), or others of "
        "clients.architectures, such as resnet+bert (our choice)",
    )
    keep_pretrained: bool = setting(
        True, "bodies that were trained before stay as they are, and only their projections learn (our choice)"
    )
    target: str = setting(
        "reconstruct",
        "what the encoders learn beside the transfer: reconstruct (pixels and word counts) | contrast (the two sides "
        "of a pair find each other; our choice)",
        choices=("reconstruct", "contrast"),
    )
    contrast_temperature: float = setting(0.1, "temperature of target=contrast (our choice)", low=1e-3, high=100)
    centre: bool = setting(
        True, "send embeddings minus their mean over the public samples, which says nothing about a sample (our choice)"
    )
    collapse: float = setting(
        0.95,
        "a side whose embeddings have a larger mean pairwise cosine is left out of the transfer: they are nearly one "
        "point, and clients would learn a constant; 1: never (our choice)",
        low=0,
        high=1,
    )
    hidden: int = setting(256, "width of the hidden layer of the decoders (our choice)", low=1, high=1_000_000)
    reconstruct: str = setting(
        "own",
        "what a code is decoded to: own (its modality's features) | both (the other modality's of the pair as well)",
        choices=("own", "both"),
    )
    transfer: float = setting(0.1, "eta: weight of KL_T with the clients' mean embeddings", low=0, high=1e4)
    second_layer: float = setting(
        0.04,
        "gamma: weight of KL_T with the mean of what the clients' bodies give; 0: clients send one layer only, as in "
        "FedMMKT's byte counts",
        low=0,
        high=1e4,
    )
    temperature: float = setting(3.0, "T: temperature of KL_T", low=1e-3, high=1e3)
    epochs: int = setting(2, "passes of the autoencoder over the public samples in a round", low=0, high=100_000)
    learning_rate: float = setting(2.0e-3, "learning rate of Adam", low=0, high=10)
    batch: int = setting(64, "public samples in a batch (our choice)", low=2, high=100_000)
    clip: float = setting(5.0, "norm that gradients are clipped to (our choice)", low=1e-6, high=1e6)
    public: PublicSetSettings = setting(help="the public pairs; the whole set in every round", factory=whole_set)


class FedMEKT(Rounds):
    """Clients and a server autoencoder teach each other by embeddings of public samples."""

    Settings = FedMEKTSettings

    def __init__(self, settings: FedMEKTSettings, resources: Any) -> None:
        super().__init__(settings, resources)
        clients, self.width, self.seed = resources.conf.clients, resources.width, resources.seed
        self.classes = len(resources.classes)
        self.public = PublicSet(settings.public, resources)
        self.generator = self.public.generator
        build.check_architecture("pair", settings.architecture, "architecture", clients.architectures)
        self.vocabulary = build.vocabulary(clients, settings.architecture.split("+")[1])
        side = int(resources.conf.data.image_size)
        self.server = built(clients, settings, side, self.vocabulary, resources.seed)

    def begin(self, federation: Federation) -> dict[str, float]:
        federation.ask("train", Nothing(), Nothing, Report)
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        second = self.settings.second_layer > 0
        public = self.public.drawn(r)
        federation.ask("train", Nothing(), Nothing, Report)  # private epochs
        replies = ask_representations(federation, self.public, public, self.width, second)
        merged = {side: reps_KND.mean(0) for side, (_, reps_KND) in stacked(replies, self.width).items()}  # e_m
        bodies = {side: reps_KND.mean(0) for side, (_, reps_KND) in stacked(replies, self.width, 1).items()}
        inputs = self.inputs(public)
        teachers, bodies, spread = self.spread_out(merged, bodies)
        losses = spread | self.learn(inputs, teachers, bodies, r)  # reconstruction and transfer
        own, spread = self.told(self.embedded(inputs, second))
        losses |= spread

        teaching = federation.send(
            "distill", lambda client: self.down(public, own, client), Report, clients=[x.client for x in replies]
        )  # clients: task and transfer
        label_N, agree = majority(replies, self.classes, public.labels, federation.guard)
        if self.generator is not None:
            losses |= self.public.tune((r, self.num_rounds), public, label_N, joint(merged))  # Table III
            self.votes = self.public.votes(public, label_N)
            agree |= self.public.judged(public, label_N)
        taught = federation.collect(teaching)
        return (
            losses
            | means_of(taught)
            | agree
            | formula_bytes(
                replies, len(public), lambda client: self.width * sum(len(own[side]) for side in sides_of(client))
            )
        )

    # -- the server's autoencoder ------------------------------------------------------------------------------------

    def inputs(self, public: PublicRound) -> dict[str, Tensor]:
        """Both sides as the encoders take them."""
        return {"image": changed(public.images, pixels.scaled), "text": self.vocabulary(public.texts)}

    def learn(
        self, inputs: dict[str, Tensor], merged: dict[str, Tensor], bodies: dict[str, Tensor], r: int
    ) -> dict[str, float]:
        """MSE reconstruction + eta KL_T(e_m, own code) + gamma KL_T of the second layer, by Adam."""
        s, steps = self.settings, 0
        totals: dict[str, float] = {}
        stepper = torch.optim.Adam(self.server.parameters(), lr=s.learning_rate)
        self.server.train()
        with seeds.scoped(self.seed, "server", "autoencoder", r):
            for rows in self.rows(len(inputs["image"])):
                terms: dict[str, Tensor] = {}
                x = {side: inputs[side][rows] for side in SIDES}
                codes = {side: self.server.codes(side, x[side]) for side in SIDES}
                if s.target == "contrast":
                    terms["contrast"] = self.contrast(codes, x["text"])
                for side, (code_BD, body_BH) in codes.items():
                    shown_sides = SIDES if s.reconstruct == "both" else (side,)
                    for shown in shown_sides if s.target == "reconstruct" else ():
                        terms[f"reconstruct_{side}_{shown}"] = self.server.loss(shown, code_BD, x[shown])
                    if side in merged:
                        terms[f"transfer_{side}"] = s.transfer * feature_kl(
                            grown(merged[side][rows]), code_BD, s.temperature
                        )
                    if side in bodies and body_BH.shape[1] == self.width:
                        terms[f"second_{side}"] = s.second_layer * feature_kl(
                            grown(bodies[side][rows]), body_BH, s.temperature
                        )
                stepper.zero_grad(set_to_none=True)
                torch.stack(list(terms.values())).sum().backward()
                clip_grad_norm_(self.server.parameters(), s.clip)
                stepper.step()
                steps += 1
                for name, value in terms.items():
                    totals[name] = totals.get(name, 0.0) + value.item()
        return {f"server/{name}": value / steps for name, value in totals.items()}

    def contrast(self, codes: dict[str, tuple[Tensor, Tensor]], ids_BT: Tensor) -> Tensor:
        """The contrast of both sides of the pairs; pairs with one text match each other's images."""
        match_BB = (ids_BT[:, None] == ids_BT[None]).all(-1)
        image_BD, text_BD = (shrunk(codes[side][0]) for side in SIDES)
        return pair_nce(image_BD, text_BD, match_BB, self.settings.contrast_temperature)

    # -- a check that embeddings say something ---------------------------------------------------------------------

    def collapsed(self, side: str, cosine: float, whose: str) -> bool:
        """Whether a side's mean pairwise cosine is too high to learn from; a warning says so."""
        gone = cosine > self.settings.collapse
        if gone:
            LOG.warning(
                "FedMEKT: the %s embeddings of %s have a mean cosine of %.3f, so they are left out of the transfer",
                side,
                whose,
                cosine,
            )
        return gone

    def spread_out(
        self, merged: dict[str, Tensor], bodies: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
        """The sides of the clients' mean embeddings that are not one point, in both layers, and their mean cosines."""
        cosines = {side: mean_pairwise_cosine(shrunk(mean_ND)) for side, mean_ND in merged.items()}
        kept = [side for side, value in cosines.items() if not self.collapsed(side, value, "the clients")]
        figures = {f"clients/cosine_{side}": value for side, value in cosines.items()}
        return {s: merged[s] for s in kept}, {s: x for s, x in bodies.items() if s in kept}, figures

    def told(self, own: Embeddings) -> tuple[Embeddings, dict[str, float]]:
        """The embeddings that clients get: without the sides that are one point, and centred where it is asked for.

        The figures have each side's mean pairwise cosine before that, and whether it was left out.
        """
        figures: dict[str, float] = {}
        given: Embeddings = {}
        for side, layers_ in own.items():
            cosine = mean_pairwise_cosine(layers_[0])
            gone = self.collapsed(side, cosine, "the server")
            figures |= {f"server/cosine_{side}": cosine, f"server/left_out_{side}": float(gone)}
            given[side] = [] if gone else [centred(x) if self.settings.centre else x for x in layers_]
        return given, figures

    def rows(self, count: int) -> Iterator[Tensor]:
        """The batches of all passes; a last one of a single row, which batch norm refuses, is left out."""
        for _ in range(self.settings.epochs):
            yield from (rows for rows in torch.randperm(count).split(self.settings.batch) if len(rows) > 1)

    @torch.no_grad()
    def embedded(self, inputs: dict[str, Tensor], second: bool) -> Embeddings:
        """The server's unit embeddings of all samples, by side; its body's where that is as wide as a code."""
        self.server.eval()
        found = {}
        for side in SIDES:
            parts = [self.server.codes(side, x) for x in inputs[side].split(self.settings.batch)]
            code_ND, body_NH = (torch.cat([p[n] for p in parts]) for n in (0, 1))
            found[side] = [shrunk(code_ND)] + ([shrunk(body_NH)] if second and body_NH.shape[1] == self.width else [])
        return found

    @staticmethod
    def down(public: PublicRound, own: Embeddings, client: Client) -> Features:
        """What one client gets: the embeddings of the sides it reads, layers side by side."""
        none = torch.zeros(len(public), 0)
        sides = {side: torch.cat([none, *own[side]], 1) if side in sides_of(client) else none for side in SIDES}
        return Features(public.ids, sides["image"], sides["text"])

    # -- checkpoint --------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, meta = self.public.state()
        own = {f"server.{name}": value.detach().clone() for name, value in self.server.state_dict().items()}
        return {**tensors, **own}, meta

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.public.restore(tensors, meta)
        self.server.load_state_dict(part(tensors, "server"))


def grown(unit_BD: Tensor) -> Tensor:
    """A unit vector on the scale of a representation, whose norm is sqrt(D): a softmax at T would not see it."""
    return unit_BD * unit_BD.shape[-1] ** 0.5


def shrunk(z_ND: Tensor) -> Tensor:
    """A representation as the unit vector that travels."""
    return torch.nn.functional.normalize(z_ND, dim=-1)


def centred(unit_ND: Tensor) -> Tensor:
    """Unit vectors minus their mean, as unit vectors again: what all samples have in common is no knowledge of one."""
    return shrunk(unit_ND - unit_ND.mean(0))


def mean_pairwise_cosine(unit_ND: Tensor) -> float:
    """Mean cosine of two different rows: (|sum of the rows|^2 - N) / (N (N - 1)); 0 for fewer than two rows."""
    count = len(unit_ND)
    if count < 2:
        return 0.0
    return ((unit_ND.double().sum(0).square().sum() - count) / (count * (count - 1))).item()


# -- the server model --------------------------------------------------------------------------------------------------


class AutoEncoder(nn.Module):
    """The server model: an encoder and a decoder of each modality; a code is as wide as clients' representations.

    An encoder is one of a dual encoder's (models/pair.py): a body and a projection. A decoder gives back the pixels, or
    how often each word stood in the text.

    Inputs: image float [B, 3, S, S] in [-1, 1], text int64 token ids [B, T].
    """

    def __init__(self, clients: Any, settings: FedMEKTSettings, side: int, vocabulary: Vocabulary) -> None:
        super().__init__()
        width, wide = int(clients.width), {"image": 3 * side * side, "text": vocabulary.size}
        self.side, self.words, self.pad = side, vocabulary.size, vocabulary.pad
        dual = build.build_pair(clients, settings.architecture, vocabulary)
        self.encoders = nn.ModuleDict({"image": dual.image, "text": dual.text})
        for encoder in (dual.image, dual.text):
            frozen = settings.keep_pretrained and getattr(encoder.body, "pretrained", False)
            encoder.body.requires_grad_(not frozen)
        hidden = settings.hidden
        self.decoders = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, wide[m])) for m in SIDES}
        )

    def train(self, mode: bool = True) -> AutoEncoder:
        """Training mode, but for bodies that stay as they are: their batch norms would count the public samples."""
        super().train(mode)
        for encoder in self.encoders.values():
            body = cast(Encoder, encoder).body
            body.train(mode and any(p.requires_grad for p in body.parameters()))
        return self

    def codes(self, modality: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two layers of an encoder: its code [B, D] and its body's output before that [B, H]."""
        return layers(cast(Encoder, self.encoders[modality]), x)

    def original(self, modality: str, x: Tensor) -> Tensor:
        """What a decoder should give: pixels [B, 3 S S], or unit-norm word counts [B, V]."""
        if modality == "image":
            return x.flatten(1)
        counts_BV = torch.zeros(len(x), self.words, device=x.device)
        counts_BV.scatter_add_(1, x, (x != self.pad).float())
        return normalize(counts_BV, dim=-1)

    def loss(self, modality: str, code_BD: Tensor, x: Tensor) -> Tensor:
        """Mean squared error of the reconstruction of `x` (of `modality`) from a code. Word counts are a sum over V:
        their mean would vanish in a large vocabulary."""
        found, target = self.decoders[modality](code_BD), self.original(modality, x)
        error = mse_loss(found, target)
        return error if modality == "image" else error * self.words


def layers(model: Encoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """A model's representation z [B, D], and the output [B, H] of its body, on the same scale."""
    h_BH = model.body(x)
    return normalised(model.project(h_BH)), normalised(h_BH)


def built(clients: Any, settings: FedMEKTSettings, side: int, vocabulary: Vocabulary, seed: int) -> AutoEncoder:
    """The autoencoder as the seed starts it. ModelError names an architecture that is not there."""
    with seeds.scoped(seed, "model", "autoencoder"):
        return AutoEncoder(clients, settings, side, vocabulary)
