"""FedNH, server side (arXiv 2212.02758, Algorithm 1). Client side: client_app/methods/fednh.py.

Down: encoder, scale and class prototypes W. Up: encoder, scale, and the sums and counts of the client's own classes.
Axes: K clients, C classes, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from florilegium import seeds
from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation
from florilegium.learning.averaging import model_part, prototype_head, weighted_mean, without
from florilegium.methods.guidance.settings import GuidanceSettings
from florilegium.protocol.payloads import Weights
from florilegium.protocol.validation import WireError
from strategies.blocks.rounds import Rounds
from strategies.blocks.weights import WEIGHTINGS, figures, shared_start, shares, trained

PROTOTYPES, SCALE, SUMS, COUNTS = "fednh.prototypes", "fednh.scale", "fednh.sums", "fednh.counts"


@section
class FedNHSettings:
    """Server settings of FedNH."""

    smoothing: float = setting(
        0.9, "rho: share of the old prototype that stays when it moves to the clients' class means", low=0, high=1
    )
    weighting: str = setting(
        "uniform",
        "weight of a client's encoder: uniform (all equal, as in the released code) | examples (n_k / n)",
        choices=WEIGHTINGS,
    )
    guidance: GuidanceSettings = setting(
        help="guidance by a frozen diffusion model, the same as the clients have (conf/guidance)",
        factory=GuidanceSettings,
    )


class FedNH(Rounds):
    """Prototypes start far from each other and follow the clients' class means slowly; they are the head."""

    Settings = FedNHSettings

    def begin(self, federation: Federation) -> dict[str, float]:
        fresh = shared_start(federation, "fednh")
        classes, width = fresh["classifier.weight"].shape
        start = uniform_prototypes(classes, width, seeds.generator(federation.seed, "prototypes"))
        self.weights = without(fresh, "classifier") | {PROTOTYPES: start}
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        w_CD, encoder = self.weights[PROTOTYPES], {n: v for n, v in self.weights.items() if n != PROTOTYPES}
        like = encoder | {SUMS: w_CD, COUNTS: w_CD[:, 0]}
        replies = trained(federation, self.weights, like=like, check=plausible_classes)
        mean = weighted_mean(
            [{n: x.body.tensors[n] for n in encoder} for x in replies], shares(replies, self.settings.weighting)
        )
        sums_CD = torch.stack([x.body.tensors[SUMS] for x in replies]).sum(0)  # sum_k n_kc mu_kc
        counts_C = torch.stack([x.body.tensors[COUNTS] for x in replies]).sum(0)
        self.weights = mean | {PROTOTYPES: updated(w_CD, sums_CD, counts_C, self.settings.smoothing)}
        return figures(replies) | {"fednh/scale": mean[SCALE].item(), "fednh/classes": (counts_C > 0).sum().item()}

    def judged_model(self) -> Weights | None:
        if not self.weights:
            return None
        return Weights(model_part(self.weights) | prototype_head(self.weights[PROTOTYPES], self.weights[SCALE]))


def uniform_prototypes(classes: int, width: int, random: torch.Generator) -> Tensor:
    """Orthonormal rows [C, D]; with more classes than dimensions, random unit rows."""
    drawn = torch.randn(classes, width, generator=random)
    if classes > width:
        return normalize(drawn, dim=-1)
    q, r = torch.linalg.qr(drawn.T)
    return (q * r.diagonal().sign()).T.contiguous()


def updated(w_CD: Tensor, sums_CD: Tensor, counts_C: Tensor, smoothing: float) -> Tensor:
    """w_c <- normalise(rho w_c + (1 - rho) normalise(mean of class c)); a class nobody has keeps its prototype."""
    moved = normalize(smoothing * w_CD + (1 - smoothing) * normalize(sums_CD, dim=-1), dim=-1)
    return torch.where(counts_C[:, None] > 0, moved, w_CD)


def plausible_classes(client: Any, body: Weights) -> None:
    """WireError unless counts are numbers of the client's examples and no class mean is longer than one."""
    counts_C, sums_CD = body.tensors[COUNTS], body.tensors[SUMS]
    if counts_C.min() < 0 or counts_C.sum() > body.examples + 0.5:
        raise WireError(f"Weights.tensors[{COUNTS}] sums to {counts_C.sum():g} of {body.examples} examples")
    if (sums_CD.norm(dim=-1) > counts_C * 1.001 + 1e-6).any():
        raise WireError(f"Weights.tensors[{SUMS}] has a class mean longer than one")
