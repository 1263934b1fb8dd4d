"""SCAFFOLD, server side (arXiv 1910.06378, Algorithm 1). Client side: client_app/methods/scaffold.py.

Down: weights x and control variate c. Up: weights y_k and the change of c_k. Clients: M in all, S in the cohort.
"""

from __future__ import annotations

from torch import Tensor

from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation
from florilegium.learning.averaging import learned, named, part, weighted_mean, without
from florilegium.methods.guidance.settings import GuidanceSettings
from strategies.blocks.rounds import Rounds
from strategies.blocks.weights import WEIGHTINGS, figures, shared_start, shares, trained


@section
class ScaffoldSettings:
    """Server settings of SCAFFOLD."""

    rate: float = setting(1.0, "eta_g: global step size", low=1e-6, high=100)
    weighting: str = setting(
        "uniform",
        "weight of a client's change y_k - x: uniform (all equal, as in the paper) | examples (n_k / n)",
        choices=WEIGHTINGS,
    )
    guidance: GuidanceSettings = setting(
        help="guidance by a frozen diffusion model, the same as the clients have (conf/guidance)",
        factory=GuidanceSettings,
    )


class Scaffold(Rounds):
    """Keeps the mean of all clients' gradients, by which each client corrects its own."""

    Settings = ScaffoldSettings

    def begin(self, federation: Federation) -> dict[str, float]:
        self.weights = shared_start(federation, "scaffold")  # c_0 = 0 comes with it
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        replies = trained(federation, self.weights, late=False)  # dc_k is of this round's c
        x, c = without(self.weights, "control"), part(self.weights, "control")
        y_K = [without(reply.body.tensors, "control") for reply in replies]
        mean_change = weighted_mean([part(reply.body.tensors, "control") for reply in replies], [1.0] * len(replies))
        x = moved(x, weighted_mean(y_K, shares(replies, self.settings.weighting)), self.settings.rate)
        share = len(replies) / len(federation.clients)  # |S| / M
        c = {name: c[name] + share * mean_change[name] for name in c}  # c <- c + 1/M sum_S dc_k
        self.weights = x | named("control", c)
        return figures(replies)


def moved(x: dict[str, Tensor], mean: dict[str, Tensor], rate: float) -> dict[str, Tensor]:
    """x <- x + eta_g mean(y_k - x); what batch norm counts is averaged."""
    return {name: x[name] + rate * (y - x[name]) if learned(name, y) and rate != 1 else y for name, y in mean.items()}
