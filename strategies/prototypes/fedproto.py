"""FedProto, server side (arXiv 2105.00243, Algorithm 1). Client side: client_app/methods/prototypes/fedproto.py.

Down and up: prototypes, the mean representations of classes. Axes: C classes, D width.
"""

from __future__ import annotations

from typing import Any

import torch

from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation
from florilegium.protocol.payloads import Nothing, Prototypes
from strategies.blocks.prototypes import ask_prototypes, class_means
from strategies.blocks.rounds import Rounds
from strategies.blocks.weights import WEIGHTINGS, figures


@section
class FedProtoSettings:
    """How prototypes are averaged."""

    weighting: str = setting(
        "uniform",
        "weight of a client's prototype of a class: uniform (all equal, as in the released code) | examples (by its "
        "rows of the class, as in the paper's formula)",
        choices=WEIGHTINGS,
    )


class FedProto(Rounds):
    """Clients of any architecture agree on where the classes lie, and on nothing else."""

    Settings = FedProtoSettings

    def __init__(self, settings: FedProtoSettings, resources: Any) -> None:
        super().__init__(settings, resources)
        self.classes, self.width = len(resources.classes), resources.width

    def begin(self, federation: Federation) -> dict[str, float]:
        zero_C = torch.zeros(self.classes, dtype=torch.int64)
        self.weights = {"means": torch.zeros(self.classes, self.width), "counts": zero_C}
        return self.round(0, federation)

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        replies = ask_prototypes(federation, self.down(), self.classes, self.width)
        means_CD, counts_C = class_means([x.body for x in replies], self.classes, self.width, self.settings.weighting)
        there_C = counts_C > 0  # a class that nobody of the cohort has keeps its prototype
        self.weights = {
            "means": torch.where(there_C[:, None], means_CD, self.weights["means"]),
            "counts": torch.where(there_C, counts_C, self.weights["counts"]),
        }
        return figures(replies) | {"prototypes/classes": float((self.weights["counts"] > 0).sum())}

    def down(self) -> Nothing | Prototypes:
        """The global prototypes of all classes that there are; nothing before the first."""
        (there_G,) = self.weights["counts"].nonzero(as_tuple=True)
        if not len(there_G):
            return Nothing()
        return Prototypes(there_G, self.weights["counts"][there_G], self.weights["means"][there_G])

    def judged_model(self) -> None:
        """No global model: each client is judged with its own."""
        return None
