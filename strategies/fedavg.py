"""FedAvg, server side (arXiv 1602.05629, Algorithm 1). Client side: client_app/methods/fedavg.py; FedProx, MOON and
the guided methods bring their own.

Down and up: weights. Clients must share one architecture, unless `groups: architecture` says that clients of one
architecture average among themselves (a control for the methods whose clients differ).
"""

from __future__ import annotations

from collections.abc import Callable

from florilegium.config.fields import section, setting
from florilegium.federation.federation import Client, Federation
from florilegium.learning.averaging import model_part, named, part, weighted_mean
from florilegium.methods.guidance.settings import GuidanceSettings
from florilegium.protocol.payloads import Weights
from strategies.blocks.rounds import Rounds
from strategies.blocks.weights import (
    GROUPINGS,
    WEIGHTINGS,
    figures,
    group_of,
    group_starts,
    grouped,
    shared_start,
    shares,
    trained,
)


@section
class FedAvgSettings:
    """Server settings of FedAvg. `cohort.fraction` says how many clients are asked in a round."""

    weighting: str = setting(
        "examples", "p_k, the weight of a client: examples (n_k / n) | uniform (all equal)", choices=WEIGHTINGS
    )
    groups: str = setting(
        "none",
        "none: one model for all clients | architecture: one model for the clients of each architecture",
        choices=GROUPINGS,
    )
    guidance: GuidanceSettings = setting(
        help="guidance by a frozen diffusion model, the same as the clients have (conf/guidance)",
        factory=GuidanceSettings,
    )


class FedAvg(Rounds):
    """The weighted mean of the clients' weights.

    With groups, `weights` holds the mean of each group under the group's name.
    """

    Settings = FedAvgSettings
    one_exchange = True

    def begin(self, federation: Federation) -> dict[str, float]:
        if self.settings.groups == "none":
            self.weights = shared_start(federation, "fedavg")
            return {}
        starts = group_starts(federation)
        self.weights = {name: value for group, start in starts.items() for name, value in named(group, start).items()}
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        if self.settings.groups == "none":
            replies = trained(federation, self.weights)  # ClientUpdate(k, w_t)
            p_K = shares(replies, self.settings.weighting)
            self.weights = weighted_mean([x.body.tensors for x in replies], p_K)  # w_{t+1} = sum_k p_k w_k
            return figures(replies)
        members = grouped(federation.cohort)
        down = {group: part(self.weights, group) for group in members}
        replies = trained(federation, lambda client: down[group_of(client)])
        for group in members:  # a group that nobody trained keeps its weights
            if mine := [x for x in replies if group_of(x.client) == group]:
                mean = weighted_mean([x.body.tensors for x in mine], shares(mine, self.settings.weighting))
                self.weights |= named(group, mean)
        return figures(replies) | {"weights/groups": float(len({group_of(x.client) for x in replies}))}

    def judged_model(self) -> Weights | Callable[[Client], Weights] | None:
        """The global model; with groups, the model of each client's group."""
        if self.settings.groups == "none" or not self.weights:
            return super().judged_model()
        names = {name.split(".")[0] for name in self.weights}
        models = {group: Weights(model_part(part(self.weights, group))) for group in sorted(names)}
        return lambda client: models[group_of(client)]
