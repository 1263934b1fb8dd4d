"""Fed-ET, server side (arXiv 2204.12703, in the adapted form of docs/methods/logits.md).

Client side: client_app/methods/logits/fedet.py. Down: public samples, then consensus labels and the scores of those who
disagree. Up: class scores. Axes: K clients, N samples, C classes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation, means_of
from florilegium.protocol.payloads import Nothing, Report, SoftTargets
from strategies.blocks.public_set import PublicSet, PublicSetSettings, ask_scores, recorded
from strategies.blocks.rounds import Rounds

SCORES = ("softmax", "log_softmax")


@section
class FedETSettings:
    """Server settings of Fed-ET. The paper's lambda, the weight of diversity, is `client.logit_weight`."""

    scores: str = setting(
        "softmax",
        "l: the scores whose variance over the classes is a client's confidence: softmax (bounded: none decides "
        "alone because its scores are large) | log_softmax",
        choices=SCORES,
    )
    diversity: bool = setting(
        True, "send the scores of the clients that disagree; false: clients learn the consensus label alone"
    )
    public: PublicSetSettings = setting(help="the public set that clients answer", factory=PublicSetSettings)


class FedET(Rounds):
    """Ensemble transfer: a consensus weighted by confidence, regularised by those who disagree with it."""

    Settings = FedETSettings

    def __init__(self, settings: FedETSettings, resources: Any) -> None:
        super().__init__(settings, resources)
        self.public, self.classes = PublicSet(settings.public, resources), len(resources.classes)
        self.generator = self.public.generator

    def begin(self, federation: Federation) -> dict[str, float]:
        federation.ask("train", Nothing(), Nothing, Report)
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        public = self.public.drawn(r)
        federation.ask("train", Nothing(), Nothing, Report)  # local training
        replies, logits_KNC = ask_scores(federation, public, self.classes, "Fed-ET")
        score_KNC = logits_KNC.log_softmax(-1) if self.settings.scores == "log_softmax" else logits_KNC.softmax(-1)
        weight_KN = variance_weights(score_KNC)  # a_k = Var / sum Var
        label_N = weighted(weight_KN, score_KNC).argmax(-1)  # y~ = argmax sum a_k l_k
        diverse_NC, some_N = diversity(weight_KN, score_KNC, label_N)  # those with argmax != y~
        if self.settings.scores == "softmax":
            diverse_NC = diverse_NC.clamp_min(1e-12).log()  # as class scores again

        told_N = some_N.float() * self.settings.diversity
        learning = federation.send(
            "distill", SoftTargets(public.ids, label_N, diverse_NC, told_N), Report, clients=[x.client for x in replies]
        )  # CE(y~) + lambda KL
        losses = self.public.tune((r, self.num_rounds), public, label_N)  # Table III
        learnt = federation.collect(learning)
        self.votes = self.public.votes(public, label_N)
        weights = {f"fusion/weight_{x.client.id}": w for x, w in zip(replies, weight_KN.mean(1).tolist(), strict=True)}
        return (
            means_of(learnt)
            | losses
            | recorded(self.public, public, replies, logits_KNC, label_N)
            | weights
            | {"labels/disputed": some_N.float().mean().item()}
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.public.state()

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.public.restore(tensors, meta)


def variance_weights(score_KNC: Tensor) -> Tensor:
    """[K, N]: each client's variance over classes, as a share of all clients'; equal where nobody prefers a class."""
    variance_KN = score_KNC.double().var(-1, unbiased=False) + 1e-12
    return (variance_KN / variance_KN.sum(0)).to(score_KNC.dtype)


def weighted(weight_KN: Tensor, score_KNC: Tensor) -> Tensor:
    """[N, C]: the clients' weighted sum."""
    return (weight_KN[..., None] * score_KNC).sum(0)


def diversity(weight_KN: Tensor, score_KNC: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
    """[N, C] weighted mean of the clients whose arg-max is not the consensus, and whether there is one [N].

    Where all clients agree, the row is the mean of all clients, and the clients give it no weight.
    """
    other_KN = weight_KN * (score_KNC.argmax(-1) != label_N)
    some_N = other_KN.sum(0) > 0
    other_KN = other_KN.where(some_N, weight_KN)
    return weighted(other_KN / other_KN.sum(0), score_KNC), some_N
