"""FedAvg, server half (arXiv 1602.05629, Algorithm 1). Client half: client_app/methods/fedavg.py.

Down and up: weights. The default round of `Rounds` is this method's; clients must share one architecture.
"""

from __future__ import annotations

from dataclasses import dataclass

from florilegium.federation import Federation, FederationError
from florilegium.wire import Weights
from strategies.rounds import Rounds


@dataclass
class FedAvgSettings:
    """No setting of its own: the cohort's size is `cohort.fraction`."""


class FedAvg(Rounds):
    """Weighted mean of the clients' weights."""

    Settings = FedAvgSettings

    def begin(self, federation: Federation) -> dict[str, float]:
        kinds = {f"{c.modality} {c.architecture}" for c in federation.clients}
        if len(kinds) > 1:
            raise FederationError(f"fedavg averages one architecture, these clients have {', '.join(sorted(kinds))}")
        first = federation.ask("train", Weights({}), Weights, clients=federation.clients[:1])  # a common start
        self.weights = first[0].body.tensors
        return {}
