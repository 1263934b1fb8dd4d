"""What clients share that answer public samples with class scores and then learn from others' scores.

Down: public samples of the client's modality, then labels and class scores. Up: class scores. Each method
that uses this gives its own settings in its own file (docs/methods/logits.md).
Axes: N samples, B batch, C classes. Sources and every free choice: docs/methods/logits.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from client_app.batches import Batch
from client_app.blocks.training import fit_private, private_without_end
from client_app.client import Client
from client_app.distillation_set import DistillationSet, joined
from florilegium.config.fields import section, setting
from florilegium.learning.fit import LearningRate, fit
from florilegium.learning.losses import logit_kl, logit_l1
from florilegium.protocol.payloads import Logits, Nothing, Report, Samples, SoftTargets, Targets


@section
class LogitsClientSettings:
    """Settings of a client that exchanges class scores. Each method's own file gives its values."""

    distance: str = setting(
        "kl",
        "distance to the scores of the others: l1 (mean absolute error) | kl (KL divergence)",
        choices=("l1", "kl"),
    )
    label_weight: float = setting(1.0, "weight of the cross-entropy with the labels that come down", low=0, high=1e4)
    logit_weight: float = setting(1.0, "weight of the distance to the scores that come down", low=0, high=1e4)
    temperature: float = setting(1.0, "temperature of the KL divergence; 1 in the papers", low=1e-3, high=1e3)
    pretrain_epochs: int = setting(12, "private epochs at a client's first training", low=0, high=1_000_000)
    local_epochs: int = setting(1, "private epochs before a client answers in a round", low=0, high=1_000_000)
    distill_epochs: int = setting(1, "passes over the distillation set in a round", low=0, high=1_000_000)
    revisit_epochs: int = setting(0, "private epochs after the distillation set", low=0, high=1_000_000)
    alone_batches: int = setting(
        46,
        "private batches of a round, in whole epochs, for clients that get no distillation set (image-text "
        "retrieval); as many as the reference of clients that learn alone has (our choice)",
        low=0,
        high=1_000_000,
    )
    warmup_epochs: int = setting(
        10,
        "with server.warm_up: passes over the labelled public samples before the first private training",
        low=0,
        high=1_000_000,
    )
    mix_private: bool = setting(True, "learn a private batch beside each batch of the distillation set (our choice)")
    learning_rate: LearningRate = setting(help="learning rate of AdamW", factory=LearningRate)
    weight_decay: float = setting(0.01, "weight decay of AdamW", low=0, high=10)
    batch: int = setting(32, "private rows in a batch", low=2, high=100_000)
    distill_batch: int = setting(32, "public samples in a batch", low=2, high=100_000)
    replay: int = setting(
        0,
        "earlier public samples that stay in the distillation set, with the scores they came with (our choice)",
        low=0,
        high=1_000_000,
    )

    def __post_init__(self) -> None:
        if not self.label_weight + self.logit_weight:
            raise ValueError("label_weight and logit_weight are both 0: a distillation set would teach nothing")


class LogitsClient:
    """Private training, scores of public samples, private training again where the method revisits."""

    Settings = LogitsClientSettings

    def __init__(self, settings: LogitsClientSettings) -> None:
        self.settings = settings

    def train(self, client: Client, _: Nothing) -> Nothing:
        """Private epochs. A client without distillation sets (image-text retrieval) trains its other batches here."""
        s, later = self.settings, self.settings.local_epochs
        if client.modality not in ("image", "text"):
            later += max(s.revisit_epochs, math.ceil(s.alone_batches / math.ceil(client.examples / s.batch)))
        begun = client.memory.read("begun") is not None  # a warm-up trains the model before this
        fit_private(client, s, later if begun else s.pretrain_epochs, "private")
        if not begun:
            client.memory.write("begun", {"round": torch.tensor([client.round])})
        return Nothing()

    def represent(self, client: Client, samples: Samples) -> Logits:
        client.keep(samples)  # the distillation set comes later and is joined by id
        return Logits(samples.ids, client.logits(client.encoded(client.inputs(samples))))

    def distill(self, client: Client, down: Logits | SoftTargets | Targets) -> Report:
        s = self.settings
        if isinstance(down, Targets):  # a warm-up: labels
            return self.learn(client, client.recall(down), s.warmup_epochs, warmup=True)
        distillation = joined(recalled(client, down), client.replayed())
        client.store(distillation, s.replay)
        report = self.learn(client, distillation, s.distill_epochs)  # digest
        if s.revisit_epochs:
            means = fit_private(client, s, s.revisit_epochs, "revisit")  # revisit
            report.metrics.update({"revisit": means["task"]} if "task" in means else {})
        return report

    def learn(self, client: Client, distillation: DistillationSet, epochs: int, warmup: bool = False) -> Report:
        """Passes over public samples: the label's cross-entropy and the distance to the scores that came with it."""
        s, model = self.settings, client.model
        if not len(distillation) or not epochs:
            return Report({}, len(distillation))
        inputs = client.inputs(distillation.samples)

        def objective(pair: tuple[Batch, Batch | None]) -> dict[str, Tensor]:
            (batch, private), terms = pair, {}
            logits_BC = model(batch.inputs)
            if warmup or s.label_weight:
                terms["label"] = (1.0 if warmup else s.label_weight) * cross_entropy(logits_BC, batch.labels)
            if s.logit_weight and not warmup:
                teacher_BC, weight_B = batch.fused[:, :-1], batch.fused[:, -1]
                terms["logits"] = s.logit_weight * (
                    logit_l1(teacher_BC, logits_BC, weight_B)
                    if s.distance == "l1"
                    else logit_kl(teacher_BC, logits_BC, weight_B, s.temperature)
                )
            if private is not None:
                terms["private"] = cross_entropy(model(private.inputs), private.labels)
            return terms

        def batches(epoch: int) -> Iterator[tuple[Batch, Batch | None]]:
            beside = private_without_end(client, s.batch, epoch, s.mix_private and not warmup)
            return zip(client.distillation_batches(distillation, inputs, s.distill_batch, epoch), beside, strict=False)

        means = fit(
            model,
            batches,
            objective,
            lr=s.learning_rate.of(client.modality),
            weight_decay=s.weight_decay,
            epochs=epochs,
        )
        return Report(means, len(distillation))


def recalled(client: Client, down: Logits | SoftTargets) -> DistillationSet:
    """The kept samples with labels, and in `fused` [N, C + 1] their scores and, last, how much these count.

    Scores that come without labels count fully, their arg-max is the label.
    """
    if isinstance(down, SoftTargets):
        weight_N, labels_N = down.weight, down.labels
    else:
        weight_N, labels_N = torch.ones(len(down.ids)), down.logits.argmax(-1)
    scores = torch.cat([down.logits, weight_N[:, None]], dim=1)
    return client.recall(Targets(down.ids, labels_N, scores), wide=client.classes + 1)
