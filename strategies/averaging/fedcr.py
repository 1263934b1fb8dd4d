"""FedCR, server side (Zhang et al., ICML 2023; formulas from haozzh/FedCR, distributed_training_utils.py).

Client side: client_app/methods/averaging/fedcr.py. Down: weights without the head, and a Gaussian of each class. Up:
the same of a client, and its class counts. Axes: K clients, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from florilegium.config.fields import section, setting
from florilegium.federation.federation import Client, Federation
from florilegium.learning.averaging import model_part, weighted_mean, without
from florilegium.protocol.payloads import Weights
from florilegium.protocol.validation import WireError
from strategies.averaging.shared_part import SharedPartSettings
from strategies.blocks.rounds import Rounds
from strategies.blocks.weights import figures, shared_start, shares, trained

GAUSSIANS, MEANS, DEVIATIONS = "gaussians", "gaussians.means", "gaussians.deviations"
COUNTS = "gaussians.counts"


@section
class FedCRSettings(SharedPartSettings):
    """How the shared weights are averaged, and how far the Gaussians of classes move."""

    rate: float = setting(
        1.0,
        "beta_2: share of the new Gaussian of a class; the rest is the old one's; 1 in the released script",
        low=0,
        high=1,
    )


class FedCR(Rounds):
    """The mean of the weights that clients share, and of each class the product of the clients' Gaussians."""

    Settings = FedCRSettings

    def begin(self, federation: Federation) -> dict[str, float]:
        shape = len(self.resources.classes), self.resources.width
        prior = {MEANS: torch.zeros(shape), DEVIATIONS: torch.ones(shape)}
        self.weights = shared_start(federation, "fedcr") | prior
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        like = self.weights | {COUNTS: self.weights[MEANS][:, 0]}
        replies = trained(federation, self.weights, like=like, check=plausible)  # ClientUpdate(k, shared, Gaussians)
        states = [without(x.body.tensors, GAUSSIANS) for x in replies]
        mean = weighted_mean(states, shares(replies, self.settings.weighting))  # shared <- sum_k p_k shared_k
        experts = [x.body.tensors for x in replies]
        new_CD = product([x[MEANS] for x in experts], [x[DEVIATIONS] for x in experts], [x[COUNTS] for x in experts])
        there_C = torch.stack([x[COUNTS] for x in experts]).sum(0) > 0  # a class that nobody has keeps its Gaussian
        rate_C1 = self.settings.rate * there_C[:, None]
        moved = {n: (1 - rate_C1) * self.weights[n] + rate_C1 * new_CD[n] for n in (MEANS, DEVIATIONS)}
        self.weights = {**mean, **moved}
        return figures(replies) | {"gaussians/deviation": moved[DEVIATIONS][there_C].mean().item()}

    def judged_model(self) -> Callable[[Client], Weights] | None:
        """Each client is judged: the shared weights with its own head."""
        if not self.weights:
            return None
        shared = Weights(model_part(self.weights))
        return lambda client: shared


def product(
    means_KCD: Sequence[Tensor], deviations_KCD: Sequence[Tensor], counts_KC: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The product of the Gaussians of the clients that have a class, and of N(0, 1): [C, D] means and deviations.

    1 / sigma^2 = 1 + sum_k 1 / sigma_k^2;  mu = sigma^2 sum_k mu_k / sigma_k^2
    """
    there_KC1 = (torch.stack(list(counts_KC)) > 0)[..., None]
    inverse_KCD = torch.stack(list(deviations_KCD)).double() ** -2 * there_KC1
    precision_CD = 1 + inverse_KCD.sum(0)
    means_CD = (torch.stack(list(means_KCD)) * inverse_KCD).sum(0) / precision_CD
    return {MEANS: means_CD.float(), DEVIATIONS: (precision_CD**-0.5).float()}


def plausible(client: Any, body: Weights) -> None:
    """WireError unless deviations are positive and counts are numbers of the client's examples, at least one."""
    if body.tensors[DEVIATIONS].min() <= 0:
        raise WireError(f"Weights.tensors[{DEVIATIONS}] has a deviation that is not positive")
    counts_C = body.tensors[COUNTS]
    if counts_C.min() < 0 or not 0.5 <= counts_C.sum() <= body.examples + 0.5:
        raise WireError(f"Weights.tensors[{COUNTS}] sums to {counts_C.sum():g} of {body.examples} examples")
