"""FedMD, FedGEMS and Fed-ET, client half: answer public samples with class scores, then learn from others' scores.

Server halves: strategies/fedmd.py, fedgems.py, fedet.py. Down: public samples of the client's modality, then labels and
class scores. Up: class scores. What differs between the three is a setting, in conf/method/<name>.yaml.
Axes: N samples, B batch, C classes. Sources and every free choice: docs/methods/logits.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from client_app.batches import Batch
from client_app.blocks.training import fit_private, private_without_end
from client_app.client import Client
from client_app.distillation_set import Lesson, joined
from florilegium.config.bounds import between, one_of
from florilegium.learning.fit import LearningRate, fit
from florilegium.learning.losses import logit_kl, logit_l1
from florilegium.protocol.payloads import Logits, Nothing, Report, Samples, SoftTargets, Targets


@dataclass
class LogitsClientSettings:
    """Client settings: FedMD | FedGEMS | Fed-ET; `ours` where their sources are silent."""

    distance: str = "kl"  # to the others' scores: l1 (FedMD's MAE) | kl (FedGEMS, Fed-ET)
    label_weight: float = 1.0  # of cross-entropy with the label: 0 | e = 0.75 | 1
    logit_weight: float = 1.0  # of the distance: 1 | 1 - e = 0.25 | lambda = 0.05
    temperature: float = 1.0  # of the KL; papers: 1
    pretrain_epochs: int = 12  # private epochs at a client's first training
    local_epochs: int = 1  # private epochs before each round's answers: none | 10 | some
    distill_epochs: int = 1  # passes over the lesson: FedMD's digest 1 | 10 | 128 iterations at the server
    revisit_epochs: int = 0  # private epochs after the lesson: FedMD's revisit 4 | none | none
    alone_batches: int = 46  # private batches a round, in whole epochs, in the place of a lesson for a client
    # that gets none; as Standalone's extra_batches; ours
    warmup_epochs: int = 10  # passes over labelled public samples before the first private training (FedMD)
    mix_private: bool = True  # a private batch beside each batch of the lesson, as FedMMKT's clients have; ours
    learning_rate: LearningRate = field(default_factory=LearningRate)
    weight_decay: float = 0.01
    batch: int = 32  # of private rows; FedMD 5
    lesson_batch: int = 32  # of public samples; FedMD 256
    replay: int = 0  # earlier public samples in the lesson, with the scores of their day; ours

    def __post_init__(self) -> None:
        one_of("distance", self.distance, ("l1", "kl"))
        between("label_weight", self.label_weight, 0, 1e4)
        between("logit_weight", self.logit_weight, 0, 1e4)
        if not self.label_weight + self.logit_weight:
            raise ValueError("label_weight and logit_weight are both 0: nothing would be learnt from the lesson")
        between("temperature", self.temperature, 1e-3, 1e3)
        for key in (
            "pretrain_epochs",
            "local_epochs",
            "distill_epochs",
            "revisit_epochs",
            "alone_batches",
            "warmup_epochs",
            "replay",
        ):
            between(key, getattr(self, key), 0, 1_000_000)
        between("weight_decay", self.weight_decay, 0, 10)
        for key in ("batch", "lesson_batch"):
            between(key, getattr(self, key), 2, 100_000)


class LogitsClient:
    """Private training, scores of public samples, private training again where the method revisits."""

    Settings = LogitsClientSettings

    def __init__(self, settings: LogitsClientSettings) -> None:
        self.settings = settings

    def train(self, client: Client, _: Nothing) -> Nothing:
        """Private epochs. A client that gets no lessons (image-text retrieval) has what comes with them here."""
        s, later = self.settings, self.settings.local_epochs
        if client.modality not in ("image", "text"):
            later += max(s.revisit_epochs, math.ceil(s.alone_batches / math.ceil(client.examples / s.batch)))
        begun = client.memory.read("begun") is not None  # a warm-up trains the model before this
        fit_private(client, s, later if begun else s.pretrain_epochs, "private")
        if not begun:
            client.memory.write("begun", {"round": torch.tensor([client.round])})
        return Nothing()

    def represent(self, client: Client, samples: Samples) -> Logits:
        client.keep(samples)  # the lesson comes later and is joined by id
        return Logits(samples.ids, client.logits(client.encoded(client.inputs(samples))))

    def distill(self, client: Client, down: Logits | SoftTargets | Targets) -> Report:
        s = self.settings
        if isinstance(down, Targets):  # FedMD's warm-up: labels
            return self.lesson(client, client.recall(down), s.warmup_epochs, warmup=True)
        lesson = joined(recalled(client, down), client.replayed())
        client.store(lesson, s.replay)
        report = self.lesson(client, lesson, s.distill_epochs)  # FedMD's digest
        if s.revisit_epochs:
            means = fit_private(client, s, s.revisit_epochs, "revisit")  # FedMD's revisit
            report.metrics.update({"revisit": means["task"]} if "task" in means else {})
        return report

    def lesson(self, client: Client, lesson: Lesson, epochs: int, warmup: bool = False) -> Report:
        """Passes over public samples: the label's cross-entropy and the distance to the scores that came with it."""
        s, model = self.settings, client.model
        if not len(lesson) or not epochs:
            return Report({}, len(lesson))
        inputs = client.inputs(lesson.samples)

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
            return zip(client.lesson_batches(lesson, inputs, s.lesson_batch, epoch), beside, strict=False)

        means = fit(
            model,
            batches,
            objective,
            lr=s.learning_rate.of(client.modality),
            weight_decay=s.weight_decay,
            epochs=epochs,
        )
        return Report(means, len(lesson))


def recalled(client: Client, down: Logits | SoftTargets) -> Lesson:
    """The kept samples with labels, and in `fused` [N, C + 1] their scores and, last, how much these count.

    Scores that come without labels (FedMD) count fully, their arg-max is the label.
    """
    soft = isinstance(down, SoftTargets)
    weight_N = down.weight if soft else torch.ones(len(down.ids))
    labels_N = down.labels if soft else down.logits.argmax(-1)
    scores = torch.cat([down.logits, weight_N[:, None]], dim=1)
    return client.recall(Targets(down.ids, labels_N, scores), wide=client.classes + 1)
