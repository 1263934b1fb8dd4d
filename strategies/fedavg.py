"""FedAvg, server half (arXiv 1602.05629, Algorithm 1). Client half: client_app/methods/fedavg.py; FedProx, MOON and
the guided methods bring their own.

Down and up: weights. Clients must share one architecture.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from florilegium.averaging import weighted_mean
from florilegium.federation import Federation
from florilegium.guidance import GuidanceSettings
from strategies.rounds import Rounds
from strategies.weights import check_weighting, figures, shared_start, shares, trained


@dataclass
class FedAvgSettings:
    """The cohort's size is `cohort.fraction`."""

    weighting: str = "examples"    # p_k: examples (n_k / n) | uniform
    guidance: GuidanceSettings = field(default_factory=GuidanceSettings)  # conf/guidance, as the clients have it

    def __post_init__(self) -> None:
        check_weighting(self.weighting)


class FedAvg(Rounds):
    """Weighted mean of the clients' weights."""

    Settings = FedAvgSettings

    def begin(self, federation: Federation) -> dict[str, float]:
        self.weights = shared_start(federation, "fedavg")
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        replies = trained(federation, self.weights)                                     # ClientUpdate(k, w_t)
        p_K = shares(replies, self.settings.weighting)
        self.weights = weighted_mean([x.body.tensors for x in replies], p_K)            # w_{t+1} = sum_k p_k w_k
        return figures(replies)
