"""FPL, server side (Huang et al., CVPR 2023; formulas from WenkeHuang/RethinkFL, models/fpl.py).

Client side: client_app/methods/averaging/fpl.py. Down: weights, cluster prototypes and their classes. Up: weights, the
client's class means and counts. Axes: K clients, C classes, G cluster prototypes of all classes, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation
from florilegium.learning.averaging import weighted_mean, without
from florilegium.learning.clustering import cluster_means, first_neighbour_clusters
from florilegium.methods.guidance.settings import GuidanceSettings
from florilegium.protocol.payloads import Weights
from florilegium.protocol.validation import WireError
from strategies.blocks.rounds import Rounds
from strategies.blocks.weights import WEIGHTINGS, figures, shared_start, shares, trained

FPL_PART, CLUSTERS, CLASSES, MEANS, COUNTS = "fpl", "fpl.clusters", "fpl.classes", "fpl.means", "fpl.counts"


@section
class FPLSettings:
    """Server settings of FPL."""

    weighting: str = setting(
        "examples", "p_k, the weight of a client: examples (n_k / n) | uniform (all equal)", choices=WEIGHTINGS
    )
    guidance: GuidanceSettings = setting(
        help="guidance by a frozen diffusion model, the same as the clients have (conf/guidance)",
        factory=GuidanceSettings,
    )


class FPL(Rounds):
    """Averages weights, and clusters the clients' class means so that a rare domain keeps a prototype of its own."""

    Settings = FPLSettings

    def begin(self, federation: Federation) -> dict[str, float]:
        self.weights = shared_start(federation, "fpl")
        return {}

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        model = without(self.weights, FPL_PART)
        means_CD = torch.zeros_like(model["classifier.weight"])
        like = model | {MEANS: means_CD, COUNTS: means_CD[:, 0]}
        replies = trained(federation, self.weights, like=like, check=plausible)
        states = [without(x.body.tensors, FPL_PART) for x in replies]
        mean = weighted_mean(states, shares(replies, self.settings.weighting))
        clusters_GD, classes_G = clustered(
            torch.stack([x.body.tensors[MEANS] for x in replies]),
            torch.stack([x.body.tensors[COUNTS] for x in replies]),
        )
        self.weights = mean | {CLUSTERS: clusters_GD, CLASSES: classes_G}
        return figures(replies) | {"prototypes/clusters": float(len(classes_G))}


def clustered(means_KCD: Tensor, counts_KC: Tensor) -> tuple[Tensor, Tensor]:
    """(cluster prototypes [G, D], their classes [G]): of each class, the clients' means are clustered and averaged."""
    found, classes = [], []
    for c in range(means_KCD.shape[1]):
        mine_KD = means_KCD[counts_KC[:, c] > 0, c]
        if len(mine_KD):
            found.append(cluster_means(mine_KD, first_neighbour_clusters(mine_KD)))
            classes += [c] * len(found[-1])
    return torch.cat(found), torch.tensor(classes)


def plausible(client: Any, body: Weights) -> None:
    """WireError unless the counts are numbers of the client's examples, at least one."""
    counts_C = body.tensors[COUNTS]
    if counts_C.min() < 0 or not 0.5 <= counts_C.sum() <= body.examples + 0.5:
        raise WireError(f"Weights.tensors[{COUNTS}] sums to {counts_C.sum():g} of {body.examples} examples")
