"""The settings of each method on both sides: our Hydra overrides, and the peer's class with its own settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Shared:
    """What both sides have in common."""

    rounds: int = 20
    epochs: int = 2
    batch: int = 64
    rate: float = 0.05
    clients: int = 10
    data: str = "fashion"
    alpha: float = 0.1  # of the Dirichlet partition
    clip: float = 10.0

    def ours(self, method: str, seed: int, out: str) -> list[str]:
        """Our overrides of any method."""
        mix = ", ".join("{modality: image, model: resnet}" for _ in range(self.clients))
        return [
            f"method={method}",
            f"data={self.data}",
            "clients=ten",
            f"clients.mix=[{mix}]",
            "cohort.fraction=1.0",
            "clients.augment={crop: 0, flip: false}",
            "partition@clients.partition=dirichlet",
            f"clients.partition.alpha={self.alpha}",
            "references=none",
            f"rounds={self.rounds}",
            f"evaluation.every={self.rounds}",
            f"seed={seed}",
            f"out={out}",
            f"method.client.local_epochs={self.epochs}",
            f"method.client.batch={self.batch}",
            f"method.client.learning_rate.image={self.rate}",
            "method.client.momentum=0",
            "method.client.weight_decay=0",
            f"method.client.clip={self.clip}",
        ]


@dataclass(frozen=True)
class Pair:
    """One method: what we override, the peer's class, and its settings of client and server."""

    peer: str
    ours: tuple[str, ...] = ()
    client: dict[str, Any] = field(default_factory=dict)
    server: dict[str, Any] = field(default_factory=lambda: {"weighted": True})
    personal: bool = False  # clients are judged, not the server's model
    own_model: bool = False  # the peer's clients are made with a model


UNIFORM = {"weighted": False}
PAIRS = {
    "fedavg": Pair("fedavg.FedAVG"),
    "fedprox": Pair("fedprox.FedProx", ("method.client.proximal=0.1",), {"mu": 0.1}),
    "scaffold": Pair("scaffold.SCAFFOLD", (), {}, UNIFORM | {"global_step": 1.0}),
    "fednova": Pair("fednova.FedNova"),
    "moon": Pair(
        "moon.MOON",
        ("method.client.projection=0", "method.client.contrast=1", "method.client.temperature=0.5"),
        {"mu": 1.0, "tau": 0.5},
    ),
    "feddyn": Pair("feddyn.FedDyn", ("method.client.alpha=0.01",), {"alpha": 0.01}, UNIFORM | {"alpha": 0.01}),
    "fedbn": Pair("fedbn.FedBN", ("method.client.norms=batch",), personal=True),
    "fedper": Pair("fedper.FedPer", personal=True, own_model=True),
    "fedrep": Pair("fedrep.FedRep", ("method.client.head_epochs=2",), {"tau": 2}, personal=True, own_model=True),
}
