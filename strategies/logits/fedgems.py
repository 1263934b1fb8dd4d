"""FedGEMS, server side (arXiv 2110.11027, in the adapted form of docs/methods/logits.md).

Client side: client_app/methods/logits/fedgems.py. Down: public samples, then their labels and the scores of whoever is
right. Up: class scores. Axes: K clients, N samples, C classes, M samples in the pool.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation, means_of
from florilegium.learning.averaging import part
from florilegium.learning.losses import entropy
from florilegium.protocol.payloads import Nothing, Report, SoftTargets
from strategies.blocks.public_set import PublicRound, PublicSet, PublicSetSettings, ask_scores, recorded
from strategies.blocks.rounds import Rounds

SERVERS = ("ensemble", "clip")


@section
class FedGEMSSettings:
    """Server settings of FedGEMS. The paper's e is `client.label_weight`, its 1 - e is `client.logit_weight`."""

    server_model: str = setting(
        "ensemble",
        "what stands for the server's classifier: ensemble (the mean scores of all clients) | clip (zero-shot)",
        choices=SERVERS,
    )
    clip_scale: float | None = setting(
        None, "factor of CLIP's cosines; null takes the one that CLIP was trained with", low=1e-3, high=1e3
    )
    pool: bool = setting(True, "L*: remember the scores with which the server was right, and send them again later")
    sharpest: float = setting(
        1e-3, "smallest entropy H in nats, so that 1 / H of a sure client stays finite (our choice)", low=1e-9, high=1
    )
    public: PublicSetSettings = setting(help="the public set that clients answer", factory=PublicSetSettings)


class FedGEMS(Rounds):
    """Selective transfer: the server's scores if right, else its earlier right scores, else the right clients'."""

    Settings = FedGEMSSettings

    def __init__(self, settings: FedGEMSSettings, resources: Any) -> None:
        super().__init__(settings, resources)
        self.public, self.classes = PublicSet(settings.public, resources), len(resources.classes)
        self.generator = self.public.generator
        self.pool: dict[int, Tensor] = {}  # L*, by sample id

    def begin(self, federation: Federation) -> dict[str, float]:
        federation.ask("train", Nothing(), Nothing, Report)
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        public, floor = self.public.drawn(r), self.settings.sharpest
        label_N = public.labels  # a labelled public set
        federation.ask("train", Nothing(), Nothing, Report)  # clients: CE on D_k
        replies, logits_KNC = ask_scores(federation, public, self.classes, "FedGEMS")
        server_NC = self.server_scores(public, logits_KNC)
        right_N = server_NC.argmax(-1) == label_N
        pooled_NC, known_N = self.remembered(public.ids)  # wrong, but in the pool
        weight_KN = selective_weights(logits_KNC, label_N, floor)  # wrong, not in the pool
        asked_NC = (weight_KN[..., None] * logits_KNC).sum(0)
        taught_NC = server_NC.where(right_N[:, None], pooled_NC.where(known_N[:, None], asked_NC))
        self.remember(public.ids[right_N], server_NC[right_N])

        learning = federation.send(
            "distill",
            SoftTargets(public.ids, label_N, taught_NC, torch.ones(len(public))),
            Report,
            clients=[x.client for x in replies],
        )  # e CE + (1 - e) KL
        losses = self.public.tune((r, self.num_rounds), public, label_N)  # Table III
        learnt = federation.collect(learning)
        self.votes = self.public.votes(public, taught_NC.argmax(-1))
        return (
            means_of(learnt)
            | losses
            | recorded(self.public, public, replies, logits_KNC, label_N)
            | {
                "server/right": right_N.float().mean().item(),
                "server/from_pool": (~right_N & known_N).float().mean().item(),
                "server/taught_right": (taught_NC.argmax(-1) == label_N).float().mean().item(),
            }
        )

    # -- the server's own opinion, and what it remembers of it ---------------------------------------------------------

    def server_scores(self, public: PublicRound, logits_KNC: Tensor) -> Tensor:
        """[N, C]: the entropy-weighted ensemble of all clients, which knows no label, or CLIP's zero-shot scores."""
        if self.settings.server_model == "ensemble":
            return (sure_weights(logits_KNC, self.settings.sharpest)[..., None] * logits_KNC).sum(0)
        clip = self.resources.clip_score()
        prompts = clip.encode_texts([self.public.classes.prompt(c) for c in range(self.classes)])
        scale = self.settings.clip_scale or clip.model.logit_scale.exp().item()
        return scale * clip.encode_images(public.images) @ prompts.T

    def remembered(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The pool's scores [N, C] of these samples (zeros where it has none), and whether it has them [N]."""
        known = [self.pool.get(i) for i in ids.tolist()]
        nothing = torch.zeros(self.classes)
        return torch.stack([nothing if x is None else x for x in known]), torch.tensor([x is not None for x in known])

    def remember(self, ids: Tensor, scores_NC: Tensor) -> None:
        """Put the server's right scores into the pool; they replace older ones."""
        if self.settings.pool:
            self.pool |= dict(zip(ids.tolist(), scores_NC.clone(), strict=True))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, meta = self.public.state()
        scores_MC = torch.stack(list(self.pool.values())) if self.pool else torch.zeros(0, self.classes)
        return tensors | {"pool.ids": torch.tensor(list(self.pool), dtype=torch.int64), "pool.scores": scores_MC}, meta

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.public.restore(tensors, meta)
        pool = part(tensors, "pool")
        self.pool = dict(zip(pool["ids"].tolist(), pool["scores"], strict=True))


def sure_weights(logits_KNC: Tensor, sharpest: float) -> Tensor:
    """[K, N]: softmax over clients of 1 / entropy."""
    return (1 / entropy(logits_KNC.softmax(-1)).clamp_min(sharpest)).softmax(0)


def selective_weights(logits_KNC: Tensor, label_N: Tensor, sharpest: float) -> Tensor:
    """[K, N]: softmax over clients of 1 / entropy where a client is right, of 0 where it is wrong."""
    sure_KN = 1 / entropy(logits_KNC.softmax(-1)).clamp_min(sharpest)
    return (sure_KN * (logits_KNC.argmax(-1) == label_N)).softmax(0)
