"""FedAFD, client side (arXiv 2603.04890). Server side: strategies/fedafd.py.

Down: the server's encoders (whole once, then what changed) and its features of the public pairs. Up: the features of
the client's own encoder of these. Weights and private data stay. Section numbers are those of our notes.
Axes: N public pairs, B batch, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from florilegium.config.fields import section, setting
from florilegium.learning.fit import LearningRate, fit
from florilegium.methods.fedafd.fidelity import Divergences, other_view
from florilegium.protocol.payloads import Features, Modules, Nothing, PublicSet, Report

Item = tuple[Tensor | None, Any | None]  # rows of the public set, a private batch: either or both


@section
class FedAFDClientSettings:
    """Client settings of FedAFD. "Our choice" in a help text marks what the paper leaves open."""

    fusion: str = setting(
        "gff",
        "what a client does with the global encoders: gff (GFF, fuse their features with its own) | global (the frozen "
        "global encoder and a linear head, a control) | none",
        choices=("gff", "global", "none"),
    )
    alignment: bool = setting(True, "BAA: align with the global features by two discriminators")
    adversarial: float = setting(0.5, "beta: weight of the alignment", low=0, high=1e4)
    hidden: list[int] = setting(
        help="widths of the hidden layers of the discriminators", low=1, high=1_000_000, factory=lambda: [128, 64]
    )
    slope: float = setting(0.2, "slope of the discriminators' LeakyReLU", low=0, high=1)
    discriminator_rate: float = setting(
        1e-3,
        "learning rate of the discriminators (Adam); 1e-4 in the paper, which takes far more steps",
        low=0,
        high=10,
    )
    public_batch: int = setting(
        32, "public pairs in a batch; 128 in the paper, 32 here beside private batches of 32", low=2, high=100_000
    )
    public_batches: int | None = setting(
        None,
        "with divergences.schedule=alternate: public batches of an epoch; null takes the whole public set (our choice)",
        low=1,
        high=1_000_000,
    )
    reduction: int = setting(4, "r: how much narrower the bottlenecks of GFF are", low=1, high=100_000)
    fusion_start: str = setting(
        "even", "start of GFF's gates: even (all 1/2) | random (our choice)", choices=("even", "random")
    )
    fusion_rate: LearningRate = setting(
        help="learning rate of the fusion (Adam)", factory=lambda: LearningRate(5e-3, 5e-3, 1e-4)
    )
    fusion_weight_decay: float = setting(0.01, "weight decay of the fusion of image and text clients", low=0, high=10)
    fusion_weight_decay_pair: float = setting(0.1, "weight decay of the fusion of pair clients", low=0, high=10)
    architecture: str = setting(
        "clip+clip", "image+text, the bodies of the server's encoders; set it by method.architecture"
    )
    pretrain_epochs: int = setting(
        12,
        "E0: private epochs at a client's first training, as many as FedMMKT has (our choice)",
        low=0,
        high=1_000_000,
    )
    local_epochs: int = setting(2, "E: epochs of a round; 5 in the paper", low=0, high=1_000_000)
    learning_rate: LearningRate = setting(help="learning rate of AdamW", factory=LearningRate)
    weight_decay: float = setting(0.01, "weight decay of AdamW", low=0, high=10)
    batch: int = setting(32, "private rows in a batch", low=2, high=100_000)
    divergences: Divergences = setting(
        help="where the released code differs from the paper (conf/fidelity)", factory=Divergences
    )


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
        s, fused = self.settings, Fused(client, self.settings, training=True)
        figures = {} if client.trained else self.begin(client, fused)
        if client.round == 0:
            return Report(figures, client.examples)
        game: Adversary | None = None
        real, public, count, steps = {}, {}, 0, {"task": 0, "adversarial": 0}
        if s.alignment and isinstance(down, Features):
            game = Adversary(client, s.hidden, s.slope, s.discriminator_rate, s.divergences)
            public = self.public_inputs(client, PublicSet(client.public_pairs.order, down.ids))
            count, real = len(down.ids), {"image": down.image.to(client.device), "text": down.text.to(client.device)}
        fused.train()

        def objective(item: tuple[int, Item]) -> dict[str, Tensor]:
            (epoch, (rows, batch)), terms = item, {}
            if rows is not None and game is not None:  # section 3
                client.budget.shared += len(rows)
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
            lambda epoch: self.items(client, epoch, count),
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
