"""FedMMKT, client side (arXiv 2510.12254, Algorithm 1). Server side: strategies/fedmmkt.py.

Down: synthetic samples of the client's modality (both for a client of pairs), then targets. Up: answers (or logits).
Private data and weights stay.
Axes: N samples, B batch, C classes, D width. Equation numbers and every free choice: docs/methods/fedmmkt.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.nn.functional import cross_entropy

from client_app.batches import Batch
from client_app.blocks import zero_shot
from client_app.blocks.training import fit_private, private_without_end
from client_app.client import Client
from client_app.distillation_set import joined
from florilegium.config.fields import section, setting
from florilegium.learning.fit import LearningRate, fit
from florilegium.learning.losses import feature_kl, normalised
from florilegium.methods.fedmmkt.consensus import CONFIDENCES, confidence
from florilegium.protocol.payloads import Answers, Logits, Nothing, Report, Samples, Targets
from florilegium.protocol.phases import crosses


@section
class FedMMKTClientSettings:
    """Client settings of FedMMKT. "Our choice" in a help text marks what the paper leaves open."""

    variant: str = setting(
        "representation",
        "what clients send: representation (FedMMKT) | logit (l-FedMMKT) | unimodal (u-FedMMKT)",
        choices=("representation", "logit", "unimodal"),
    )
    confidence: str = setting(
        "exp_neg",
        "eq. 3: how the entropy of an answer becomes a confidence: exp_neg | inverse | normalized (our choice)",
        choices=CONFIDENCES,
    )
    alignment: float = setting(
        2.0, "lambda of eq. 13: weight of the alignment with the fused representations (our choice)", low=0, high=1e4
    )
    feature_temperature: float = setting(
        1.0, "tau_r of eq. 13: temperature of the alignment (our choice)", low=1e-3, high=1e3
    )
    renorm_target: bool = setting(
        True,
        "apply LayerNorm to the fused representation, whose norm becomes small when clients disagree (our choice)",
    )
    mix_private: bool = setting(
        True,
        "learn a private batch beside each batch of the distillation set, so that clients do not forget (our choice)",
    )
    pretrain_epochs: int = setting(
        12, "E0: private epochs at a client's first training (our choice)", low=0, high=1_000_000
    )
    local_epochs: int = setting(
        1, "private epochs before a client answers in a round (our choice)", low=0, high=1_000_000
    )
    distill_epochs: int = setting(2, "passes over the distillation set in a round (our choice)", low=0, high=1_000_000)
    learning_rate: LearningRate = setting(help="learning rate of AdamW", factory=LearningRate)
    weight_decay: float = setting(0.01, "weight decay of AdamW", low=0, high=10)
    batch: int = setting(32, "rows in a batch", low=2, high=100_000)
    replay: int = setting(
        480,
        "earlier samples that stay in the distillation set; 0 is the paper's literal reading (our choice)",
        low=0,
        high=1_000_000,
    )


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
        if client.modality == "pair":
            logits_NC, z_ND = zero_shot.seen(client, client.open_samples(samples))
        else:
            z_ND = client.encoded(client.inputs(samples))
            logits_NC = client.logits(z_ND)
        if s.variant == "logit":
            return Logits(samples.ids, logits_NC)  # eq 28
        p_NC = logits_NC.softmax(-1)
        augmented = z_ND[:, :0]
        if s.variant == "unimodal":
            augmented = client.encoded(client.inputs(samples, augment_seed=client.seed("view")))  # eq 33
        return Answers(samples.ids, p_NC.argmax(-1), confidence(p_NC, s.confidence), z_ND, augmented)  # eq 3

    def aligned(self, fused_BD: Tensor, z_BD: Tensor) -> Tensor:
        """The weighted alignment of z with fused representations (eq 13)."""
        s = self.settings
        teacher = normalised(fused_BD) if s.renorm_target else fused_BD
        return s.alignment * feature_kl(teacher, z_BD, s.feature_temperature)

    def distill(self, client: Client, targets: Targets) -> Report:
        s = self.settings
        distillation = joined(client.recall(targets), client.replayed())
        if not len(distillation):
            return Report({}, 0)
        client.store(distillation, s.replay)
        if client.modality == "pair":
            means = zero_shot.learn(client, s, distillation, self.aligned if s.alignment else None)
            return Report(means, len(distillation))
        model = client.classifier
        inputs = client.inputs(distillation.samples)

        def objective(pair: tuple[Batch, Batch | None]) -> dict[str, Tensor]:  # eq 13
            batch, private = pair
            z_BD = model.encode(batch.inputs)
            terms = {"label": cross_entropy(model.head(z_BD), batch.labels)}
            if s.alignment and batch.fused.shape[-1]:
                terms["align"] = self.aligned(batch.fused, z_BD)
            if private is not None:
                terms["private"] = cross_entropy(model(private.inputs), private.labels)
            return terms

        def batches(epoch: int) -> Iterator[tuple[Batch, Batch | None]]:
            beside = private_without_end(client, s.batch, epoch, s.mix_private)
            return zip(client.distillation_batches(distillation, inputs, s.batch, epoch), beside, strict=False)

        means = fit(
            model,
            batches,
            objective,
            lr=s.learning_rate.of(client.modality),
            weight_decay=s.weight_decay,
            epochs=s.distill_epochs,
        )
        return Report(means, len(distillation))
