"""FedNova, server side (arXiv 2007.07481). Client side: client_app/methods/fednova.py.

Down: weights. Up: weights and the number of effective local steps a_k. Axes: K clients.
"""

from __future__ import annotations

from torch import Tensor

from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation
from florilegium.learning.averaging import learned, weighted_mean
from florilegium.methods.guidance.settings import GuidanceSettings
from strategies.blocks.rounds import Rounds
from strategies.blocks.weights import WEIGHTINGS, figures, shared_start, shares, trained

STEPS = (1.0, 1e9)  # a_k: at least one step


@section
class FedNovaSettings:
    """Server settings of FedNova. It has none of its own but the clients' weights p_k."""

    weighting: str = setting(
        "examples", "p_k, the weight of a client: examples (n_k / n) | uniform (all equal)", choices=WEIGHTINGS
    )
    guidance: GuidanceSettings = setting(
        help="guidance by a frozen diffusion model, the same as the clients have (conf/guidance)",
        factory=GuidanceSettings,
    )


class FedNova(Rounds):
    """Averages the clients' directions per step, so that many local steps do not count twice."""

    Settings = FedNovaSettings

    def begin(self, federation: Federation) -> dict[str, float]:
        self.weights = shared_start(federation, "fednova")
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        replies = trained(federation, self.weights, ranges={"effective_steps": STEPS})
        p_K = shares(replies, self.settings.weighting)
        a_K = [x.body.metrics["effective_steps"] for x in replies]
        self.weights = normalised_average(self.weights, [x.body.tensors for x in replies], p_K, a_K)
        return figures(replies)


def normalised_average(
    start: dict[str, Tensor], states: list[dict[str, Tensor]], p_K: list[float], a_K: list[float]
) -> dict[str, Tensor]:
    """w - a_eff sum_k p_k d_k with d_k = (w - w_k) / a_k and a_eff = sum_k p_k a_k; with equal a_k this is FedAvg.

    What batch norm counts is no sum of gradients and could turn negative: it is averaged.
    """
    a_eff = sum(p * a for p, a in zip(p_K, a_K, strict=True))
    mean = weighted_mean(states, p_K)
    for name, w in start.items():
        if learned(name, w):
            d = sum(p / a * (w.double() - state[name].double()) for p, a, state in zip(p_K, a_K, states, strict=True))
            mean[name] = (w.double() - a_eff * d).to(w.dtype)
    return mean
