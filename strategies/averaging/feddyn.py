"""FedDyn, server side (arXiv 2111.04263, Algorithm 1). Client side: client_app/methods/averaging/feddyn.py.

Down and up: weights theta. Clients: m in all, P in the cohort. The server keeps g = -h / alpha, the same for every
alpha.
"""

from __future__ import annotations

import torch
from torch import Tensor

from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation
from florilegium.learning.averaging import learned, model_part, named, part, weighted_mean, without
from florilegium.methods.guidance.settings import GuidanceSettings
from strategies.blocks.rounds import Rounds
from strategies.blocks.weights import WEIGHTINGS, figures, shared_start, shares, trained

DRIFT = "drift"  # the first name of g


@section
class FedDynSettings:
    """Server settings of FedDyn. alpha is the clients'."""

    weighting: str = setting(
        "uniform",
        "weight of a client's theta_k in the mean: uniform (all equal, as in the paper) | examples (n_k / n)",
        choices=WEIGHTINGS,
    )
    guidance: GuidanceSettings = setting(
        help="guidance by a frozen diffusion model, the same as the clients have (conf/guidance)",
        factory=GuidanceSettings,
    )


class FedDyn(Rounds):
    """Adds to the mean how far all clients have drifted so far, so that the mean's fixed point is a global minimum."""

    Settings = FedDynSettings

    def begin(self, federation: Federation) -> dict[str, float]:
        theta = shared_start(federation, "feddyn")
        # h_0 = 0, of the model alone: clients do not counter a drift of what a guide learns beside it
        g = {name: torch.zeros_like(value) for name, value in model_part(theta).items() if learned(name, value)}
        self.weights = theta | named(DRIFT, g)
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        theta, g = without(self.weights, DRIFT), part(self.weights, DRIFT)
        replies = trained(federation, theta, late=False)  # theta_k - theta is of this round's theta
        theta_P = [x.body.tensors for x in replies]
        mean = weighted_mean(theta_P, shares(replies, self.settings.weighting))
        g = drifted(g, theta, theta_P, len(federation.clients))
        theta = {name: value + g[name] if name in g else value for name, value in mean.items()}  # mean - h / alpha
        self.weights = theta | named(DRIFT, g)
        return figures(replies)


def drifted(
    g: dict[str, Tensor], theta: dict[str, Tensor], theta_P: list[dict[str, Tensor]], clients: int
) -> dict[str, Tensor]:
    """g <- g + 1/m sum_{k in P} (theta_k - theta). With h = -alpha g: h <- h - alpha/m sum (theta_k - theta)."""
    return {
        name: value + torch.stack([mine[name] - theta[name] for mine in theta_P]).sum(0) / clients
        for name, value in g.items()
    }
