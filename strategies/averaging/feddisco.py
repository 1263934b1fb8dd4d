"""FedDisco, server side (arXiv 2305.19229; formulas from MediaBrain-SJTU/FedDisco, disco.py).

Client side: client_app/methods/averaging/feddisco.py. Down and up: weights; up also d_k, how far the client's classes
are from uniform ("discrepancy"). Axes: K clients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation
from florilegium.learning.averaging import weighted_mean
from florilegium.methods.guidance.settings import GuidanceSettings
from strategies.blocks.rounds import Rounds
from strategies.blocks.weights import WEIGHTINGS, figures, shared_start, shares, trained


@section
class FedDiscoSettings:
    """How much the classes of a client count in its weight."""

    discrepancy: float = setting(0.5, "a: weight of the discrepancy d_k", low=0, high=1e4)
    offset: float = setting(0.1, "b: what is added to every client's weight", low=-1e4, high=1e4)
    weighting: str = setting(
        "examples", "p_k, before the discrepancy: examples (n_k / n) | uniform (all equal)", choices=WEIGHTINGS
    )
    guidance: GuidanceSettings = setting(
        help="guidance by a frozen diffusion model, the same as the clients have (conf/guidance)",
        factory=GuidanceSettings,
    )


class FedDisco(Rounds):
    """A client counts by its rows, and by how evenly its rows are spread over the classes."""

    Settings = FedDiscoSettings

    def begin(self, federation: Federation) -> dict[str, float]:
        self.weights = shared_start(federation, "feddisco")
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        most = math.log(len(self.weights["classifier.bias"])) + 1e-4  # d_k of a client with one class
        replies = trained(federation, self.weights, ranges={"discrepancy": (0.0, most)})
        p_K = shares(replies, self.settings.weighting)
        d_K = [x.body.metrics["discrepancy"] for x in replies]
        q_K = adjusted(p_K, d_K, self.settings.discrepancy, self.settings.offset)
        self.weights = weighted_mean([x.body.tensors for x in replies], q_K)  # w <- sum_k q_k w_k
        return figures(replies) | {"weights/unused": float(sum(q == 0 for q in q_K))}


def adjusted(p_K: Sequence[float], d_K: Sequence[float], a: float, b: float) -> list[float]:
    """q_k = max(p_k - a d_k / sum d + b, 0), divided by their sum; p_k where none is positive."""
    total = sum(d_K) or 1.0
    raw_K = [max(p - a * d / total + b, 0.0) for p, d in zip(p_K, d_K, strict=True)]
    return [q / sum(raw_K) for q in raw_K] if sum(raw_K) else list(p_K)
