"""Fed-DFA, server side (Wang et al., "Fed-DFA: Federated Distillation for Heterogeneous Model Fusion Through the
Adversarial Lens", AAAI 2025, in the adapted form of docs/methods/logits.md).

Client side: client_app/methods/logits/feddfa.py. Down: public samples, then mean class scores and weights. Up: class
scores, and the steps of an attack that changed the client's decision. Axes: K clients, N samples, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation, means_of
from florilegium.protocol.payloads import BoundaryLogits, Nothing, Report, SoftTargets
from strategies.blocks.public_set import PublicSet, PublicSetSettings, ask_scores, recorded
from strategies.blocks.rounds import Rounds


@section
class FedDFASettings:
    """Server settings of Fed-DFA."""

    far_weight: float = setting(
        0.1, "beta: how much a sample counts that is far from the decision boundaries", low=0, high=1
    )
    steps: int = setting(5, "K: no client's steps count as more; the client's `steps`", low=1, high=1000)
    public: PublicSetSettings = setting(help="the public set that clients answer", factory=PublicSetSettings)


class FedDFA(Rounds):
    """The mean of class scores, of which clients learn most where samples are near their decision boundaries."""

    Settings = FedDFASettings

    def __init__(self, settings: FedDFASettings, resources: Any) -> None:
        super().__init__(settings, resources)
        self.public, self.classes = PublicSet(settings.public, resources), len(resources.classes)
        self.generator = self.public.generator

    def begin(self, federation: Federation) -> dict[str, float]:
        federation.ask("train", Nothing(), Nothing, Report)
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        public, s = self.public.drawn(r), self.settings
        federation.ask("train", Nothing(), Nothing, Report)  # eq. 1
        replies, logits_KNC = ask_scores(federation, public, self.classes, "Fed-DFA", BoundaryLogits)
        steps_KN = torch.stack([x.body.steps for x in replies]).clamp(1, s.steps)
        mean_NC, label_N = logits_KNC.mean(0), logits_KNC.mean(0).argmax(-1)
        near_N = near_boundary(steps_KN)

        learning = federation.send(
            "distill",
            SoftTargets(public.ids, label_N, mean_NC, near_N.float().where(near_N, s.far_weight)),
            Report,
            clients=[x.client for x in replies],
        )  # eq. 11
        losses = self.public.tune((r, self.num_rounds), public, label_N)  # Table III of arXiv 2510.12254
        learnt = federation.collect(learning)
        self.votes = self.public.votes(public, label_N)
        found = recorded(self.public, public, replies, logits_KNC, label_N)
        for way in ("up", "down"):  # a number more for each sample
            found[f"bytes/formula_{way}"] += 4.0 * len(public)
        steps = {"boundary/steps": steps_KN.mean().item(), "boundary/near": near_N.float().mean().item()}
        return means_of(learnt) | losses | found | steps

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.public.state()

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.public.restore(tensors, meta)


def near_boundary(steps_KN: Tensor) -> Tensor:
    """bool [N]: the samples whose mean over clients is at most the median of these means (eq. 10): half or more."""
    steps_N = steps_KN.mean(0)
    return steps_N <= steps_N.median()
