"""FedMMKT, client half (arXiv 2510.12254, Algorithm 1). Server half: strategies/fedmmkt.py.

Down: synthetic samples of the client's modality, then targets. Up: answers (or logits). Private data and weights stay.
Axes: N samples, B batch, C classes, D width. Equation numbers and every free choice: docs/methods/fedmmkt.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn.functional import cross_entropy

from client_app.batches import Batch
from client_app.blocks.training import fit_private, private_without_end
from client_app.client import Client
from client_app.distillation_set import joined
from florilegium.config.bounds import between, one_of
from florilegium.learning.fit import LearningRate, fit
from florilegium.learning.losses import feature_kl, normalised
from florilegium.methods.fedmmkt.consensus import CONFIDENCES, confidence
from florilegium.protocol.payloads import Answers, Logits, Nothing, Report, Samples, Targets
from florilegium.protocol.phases import crosses


@dataclass
class FedMMKTClientSettings:
    """Client settings; the paper's symbol in the comment, `ours` where the paper is silent."""

    variant: str = "representation"  # representation (FedMMKT) | logit (l-) | unimodal (u-)
    confidence: str = "exp_neg"  # eq 3: exp_neg | inverse | normalized; ours
    alignment: float = 1.0  # lambda, eq 13; ours
    feature_temperature: float = 1.0  # tau_r, eq 13; ours
    renorm_target: bool = True  # LayerNorm on the fused target, whose norm shrinks when clients disagree; ours
    mix_private: bool = True  # a private batch beside each batch of the lesson, against forgetting; ours
    pretrain_epochs: int = 10  # E0, at a client's first training; ours
    local_epochs: int = 1  # private epochs before each round's answers; ours
    distill_epochs: int = 2  # passes over the lesson; ours
    learning_rate: LearningRate = field(default_factory=LearningRate)
    weight_decay: float = 0.01
    batch: int = 32
    replay: int = 1600  # earlier samples in the lesson; 0 is the literal reading

    def __post_init__(self) -> None:
        one_of("variant", self.variant, ("representation", "logit", "unimodal"))
        one_of("confidence", self.confidence, CONFIDENCES)
        between("alignment", self.alignment, 0, 1e4)
        between("feature_temperature", self.feature_temperature, 1e-3, 1e3)
        for key in ("pretrain_epochs", "local_epochs", "distill_epochs", "replay"):
            between(key, getattr(self, key), 0, 1_000_000)
        between("weight_decay", self.weight_decay, 0, 10)
        between("batch", self.batch, 2, 100_000)


class FedMMKTClient:
    """Learns alone, says what it sees in the server's samples, learns what all clients together saw."""

    Settings = FedMMKTClientSettings

    def __init__(self, settings: FedMMKTClientSettings) -> None:
        self.settings = settings

    def train(self, client: Client, _: Nothing) -> Nothing:
        """Private epochs: E0 of them the first time, `local_epochs` in later rounds."""
        s = self.settings
        fit_private(client, s, s.local_epochs if client.trained else s.pretrain_epochs, "private")  # eq 1
        return Nothing()

    @crosses(lambda s: ((Samples,), (Logits if s.variant == "logit" else Answers,)))
    def represent(self, client: Client, samples: Samples) -> Answers | Logits:
        s = self.settings
        client.keep(samples)  # the targets come later and are joined by id
        z_ND = client.encoded(client.inputs(samples))
        logits_NC = client.logits(z_ND)
        if s.variant == "logit":
            return Logits(samples.ids, logits_NC)  # eq 28
        p_NC = logits_NC.softmax(-1)
        augmented = z_ND[:, :0]
        if s.variant == "unimodal":
            augmented = client.encoded(client.inputs(samples, augment_seed=client.seed("view")))  # eq 33
        return Answers(samples.ids, p_NC.argmax(-1), confidence(p_NC, s.confidence), z_ND, augmented)  # eq 3

    def distill(self, client: Client, targets: Targets) -> Report:
        s, model = self.settings, client.model
        lesson = joined(client.recall(targets), client.replayed())
        client.store(lesson, s.replay)
        if not len(lesson):
            return Report({}, 0)
        inputs = client.inputs(lesson.samples)

        def objective(pair: tuple[Batch, Batch | None]) -> dict[str, Tensor]:  # eq 13
            batch, private = pair
            z_BD = model.encode(batch.inputs)
            terms = {"label": cross_entropy(model.head(z_BD), batch.labels)}
            if s.alignment and batch.fused.shape[-1]:
                teacher = normalised(batch.fused) if s.renorm_target else batch.fused
                terms["align"] = s.alignment * feature_kl(teacher, z_BD, s.feature_temperature)
            if private is not None:
                terms["private"] = cross_entropy(model(private.inputs), private.labels)
            return terms

        def batches(epoch: int) -> Iterator[tuple[Batch, Batch | None]]:
            beside = private_without_end(client, s.batch, epoch, s.mix_private)
            return zip(client.lesson_batches(lesson, inputs, s.batch, epoch), beside, strict=False)

        means = fit(
            model,
            batches,
            objective,
            lr=s.learning_rate.of(client.modality),
            weight_decay=s.weight_decay,
            epochs=s.distill_epochs,
        )
        return Report(means, len(lesson))
