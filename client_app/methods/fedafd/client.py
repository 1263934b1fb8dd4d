"""FedAFD, client half (arXiv 2603.04890). Server half: strategies/fedafd.py.

Down: the server's encoders (whole once, then what changed) and its features of the public pairs. Up: the features of
the client's own encoder of these. Weights and private data stay. Section numbers are those of our notes.
Axes: N public pairs, B batch, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from client_app.batches import shuffled
from client_app.blocks import representing
from client_app.blocks.training import fit_private
from client_app.client import Client
from client_app.methods.fedafd.adversary import Adversary
from client_app.methods.fedafd.fused import Fused, keep_encoders, own
from florilegium import seeds
from florilegium.config.bounds import between, one_of
from florilegium.learning.fit import LearningRate, fit
from florilegium.methods.fedafd.fidelity import Divergences, other_view
from florilegium.protocol.payloads import Features, Modules, Nothing, PublicSet, Report

Item = tuple[Tensor | None, Any | None]  # rows of the public set, a private batch: either or both


@dataclass
class FedAFDClientSettings:
    """Client settings; the paper's symbol in the comment, `ours` where the paper is silent."""

    fusion: str = "gff"  # GFF | global: the frozen encoder and a linear head (control) | none
    alignment: bool = True  # BAA
    adversarial: float = 0.5  # beta
    hidden: list[int] = field(default_factory=lambda: [128, 64])  # of the discriminators
    slope: float = 0.2  # of their LeakyReLU
    discriminator_rate: float = 1e-4  # Adam
    public_batch: int = 128
    public_batches: int | None = None  # of an epoch's pass over the public set (alternate); None: all; ours
    reduction: int = 4  # r, of GFF's bottlenecks
    fusion_start: str = "even"  # of the gates: all 1/2 | random; ours
    fusion_rate: LearningRate = field(default_factory=lambda: LearningRate(5e-3, 5e-3, 1e-4))  # Adam
    fusion_weight_decay: float = 0.01
    fusion_weight_decay_pair: float = 0.1
    architecture: str = "resnet+bert"  # the server's
    pretrain_epochs: int = 10  # E0, at a client's first training, as FedMMKT's; ours
    local_epochs: int = 2  # E; 5 in the paper
    learning_rate: LearningRate = field(default_factory=LearningRate)
    weight_decay: float = 0.01
    batch: int = 32
    divergences: Divergences = field(default_factory=Divergences)

    def __post_init__(self) -> None:
        one_of("fusion", self.fusion, ("gff", "global", "none"))
        one_of("fusion_start", self.fusion_start, ("even", "random"))
        if self.public_batches is not None:
            between("public_batches", self.public_batches, 1, 1_000_000)
        between("adversarial", self.adversarial, 0, 1e4)
        between("slope", self.slope, 0, 1)
        between("discriminator_rate", self.discriminator_rate, 0, 10)
        for key in ("fusion_weight_decay", "fusion_weight_decay_pair", "weight_decay"):
            between(key, getattr(self, key), 0, 10)
        for key in ("public_batch", "batch"):
            between(key, getattr(self, key), 2, 100_000)
        between("reduction", self.reduction, 1, 100_000)
        for key in ("pretrain_epochs", "local_epochs"):
            between(key, getattr(self, key), 0, 1_000_000)
        if not all(width > 0 for width in self.hidden):
            raise ValueError(f"hidden must be widths above 0, got {self.hidden}")


class FedAFDClient:
    """Pulls its encoder towards the server's by two discriminators, and learns its task on features fused with it."""

    Settings = FedAFDClientSettings

    def __init__(self, settings: FedAFDClientSettings) -> None:
        self.settings = settings

    def represent(self, client: Client, down: Modules | PublicSet) -> Report | Features:
        """Keep the encoders that came, or say what the client's own encoder (no fusion) sees in public pairs."""
        if isinstance(down, Modules):
            return keep_encoders(client, down)  # G_r
        d = self.settings.divergences
        if not len(down.ids) or (d.eval_mode and d.same_view):
            return representing.answer(client, down)  # I^c, T^c
        return self.released_features(client, down)

    def train(self, client: Client, down: Features | Nothing) -> Report:
        """E0 private epochs the first time; each round E times BAA over the public pairs, then its own task."""
        s, fused = self.settings, Fused(client, self.settings)
        figures = {} if client.trained else self.begin(client, fused)
        if client.round == 0:
            return Report(figures, client.examples)
        game, steps = None, {"task": 0, "adversarial": 0}
        if s.alignment and isinstance(down, Features):
            game = Adversary(client, s.hidden, s.slope, s.discriminator_rate, s.divergences)
            public = self.public_inputs(client, PublicSet(client.public_pairs.order, down.ids))
            real = {"image": down.image.to(client.device), "text": down.text.to(client.device)}
        fused.train()

        def objective(item: tuple[int, Item]) -> dict[str, Tensor]:
            (epoch, (rows, batch)), terms = item, {}
            if rows is not None:  # section 3
                fake = {side: own(client, side, x[rows]) for side, x in public.items()}
                loss = game.play(
                    {side: x[rows] for side, x in real.items()}, fake, s.adversarial, look=epoch == s.local_epochs - 1
                )
                terms["adversarial"] = loss if self.moves(client) else torch.zeros_like(loss, requires_grad=True)
            if batch is not None:  # section 4
                terms["task"] = fused.task(batch)
            for name in terms:
                steps[name] += 1
            return terms

        def before_step(_: Any) -> None:
            fused.step()
            if game is not None:
                game.after_backward()

        means = fit(
            client.model,
            lambda epoch: self.items(client, epoch, len(down.ids) if game else 0),
            objective,
            lr=s.learning_rate.of(client.modality),
            weight_decay=s.weight_decay,
            epochs=s.local_epochs,
            before_step=before_step,
        )
        means |= {name: means[name] * means["steps"] / n for name, n in steps.items() if n}  # of the steps that had it
        fused.keep()
        if game is not None:
            game.keep(client)
            means |= game.figures()
        return Report(means, client.examples)

    def begin(self, client: Client, fused: Fused) -> dict[str, float]:
        """E0 private epochs, through the fused path where the server's encoders came first."""
        s = self.settings
        if fused.mix is None and not fused.frozen:
            return fit_private(client, s, s.pretrain_epochs, "private")
        fused.train()
        figures = fit(
            client.model,
            lambda epoch: client.private_batches(s.batch, epoch, "private"),
            lambda batch: {"task": fused.task(batch)},
            lr=s.learning_rate.of(client.modality),
            weight_decay=s.weight_decay,
            epochs=s.pretrain_epochs,
            before_step=lambda _: fused.step(),
        )
        fused.keep()
        return figures

    def evaluate(self, client: Client) -> Report:
        """Judged as it was trained, through the fused path."""
        return Fused(client, self.settings).evaluate()

    # -- batches -------------------------------------------------------------------------------------------------------

    def items(self, client: Client, epoch: int, count: int) -> Iterator[tuple[int, Item]]:
        """A pass over the `count` public pairs, then one over the private rows; `joint`: both in every step (D3)."""
        s = self.settings
        random = torch.Generator().manual_seed(client.seed("public", epoch))
        public = list(shuffled(count, s.public_batch, random))[: s.public_batches] if count else []
        private = client.private_batches(s.batch, epoch, "private")
        if public and s.divergences.schedule == "joint":
            yield from ((epoch, item) for item in zip(cycle(public), private, strict=False))
            return
        yield from ((epoch, (rows, None)) for rows in public)
        yield from ((epoch, (None, batch)) for batch in private)

    def moves(self, client: Client) -> bool:
        """Whether alignment moves this client's encoders (D9)."""
        return client.modality != "pair" or self.settings.divergences.pair_encoder_step

    def public_inputs(self, client: Client, asked: PublicSet) -> dict[str, Tensor]:
        """The public pairs as model inputs, by side: clean, or (D8) with holes and missing words."""
        pairs = client.public(asked)
        images, texts = pairs.images, pairs.texts
        if not self.settings.divergences.same_view:
            images, texts = other_view(images, texts, torch.Generator().manual_seed(client.seed("public view")))
        return representing.read(client, images, texts)

    @torch.no_grad()
    def released_features(self, client: Client, down: PublicSet) -> Features:
        """D7: a unimodal client's features in training mode, where batch norm counts the public pairs too (in the
        message's copy of the model: no phase but training changes what stays)."""
        client.model.train(not self.settings.divergences.eval_mode and client.modality != "pair")
        with seeds.scoped(client.seed("public features")):
            found = {
                side: torch.cat([own(client, side, part).cpu() for part in x.split(self.settings.public_batch)])
                for side, x in self.public_inputs(client, down).items()
            }
        none = torch.zeros(len(down.ids), 0)
        return Features(down.ids, found.get("image", none), found.get("text", none))
