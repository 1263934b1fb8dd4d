"""FedMD, server side (arXiv 1910.03581, Algorithm 1, in the adapted form of docs/methods/logits.md).

Client side: client_app/methods/logits/fedmd.py. Down: public samples, then the mean class scores. Up: class scores.
Axes: K clients, N samples, C classes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation, means_of
from florilegium.protocol.payloads import Logits, Nothing, Report
from strategies.blocks.public_set import PublicSet, PublicSetSettings, ask_scores, recorded, warm_up
from strategies.blocks.rounds import Rounds


@section
class FedMDSettings:
    """Server settings of FedMD."""

    warm_up: bool = setting(
        False,
        "transfer learning: clients learn the labels of the public set before their private data; Table I's proxy set "
        "has no labels",
    )
    public: PublicSetSettings = setting(help="the public set that clients answer", factory=PublicSetSettings)


class FedMD(Rounds):
    """Heterogeneous clients meet at the mean of their class scores on public samples."""

    Settings = FedMDSettings

    def __init__(self, settings: FedMDSettings, resources: Any) -> None:
        super().__init__(settings, resources)
        self.public, self.classes = PublicSet(settings.public, resources), len(resources.classes)
        self.generator = self.public.generator

    def begin(self, federation: Federation) -> dict[str, float]:
        figures = {}
        if self.settings.warm_up:  # transfer learning: public,
            figures = means_of(warm_up(federation, self.public.drawn(0), self.classes, "FedMD"), "warmup")
        federation.ask("train", Nothing(), Nothing, Report)  # then private
        return figures

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        public = self.public.drawn(r)  # a random alignment set
        federation.ask("train", Nothing(), Nothing, Report)  # newcomers and non-classifiers
        replies, logits_KNC = ask_scores(federation, public, self.classes, "FedMD")  # communicate
        mean_NC = logits_KNC.mean(0)  # aggregate: f = 1/K sum f_k
        label_N = mean_NC.argmax(-1)  # adapted: labels for T2I

        digesting = federation.send(
            "distill",
            Logits(public.ids, mean_NC),
            Report,  # distribute, digest, revisit
            clients=[x.client for x in replies],
        )
        losses = self.public.tune((r, self.num_rounds), public, label_N)  # Table III
        digested = federation.collect(digesting)
        self.votes = self.public.votes(public, label_N)
        return means_of(digested) | losses | recorded(self.public, public, replies, logits_KNC, label_N)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.public.state()

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.public.restore(tensors, meta)
