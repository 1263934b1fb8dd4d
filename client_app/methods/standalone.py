"""Standalone, client half: private epochs, as many as FedMMKT's clients have. Server half: strategies/standalone.py.

Down and up: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from client_app.blocks.training import fit_private
from client_app.client import Client
from florilegium.config.bounds import between
from florilegium.learning.fit import LearningRate
from florilegium.protocol.payloads import Nothing


@dataclass
class StandaloneClientSettings:
    """As FedMMKT's; `extra_epochs` and `extra_batches` stand for the private batches its re-training mixes in."""

    pretrain_epochs: int = 10
    local_epochs: int = 1
    extra_epochs: int = 2  # more private epochs a round
    extra_batches: int = 0  # or at least so many more private batches a round (whole epochs of them)
    learning_rate: LearningRate = field(default_factory=LearningRate)
    weight_decay: float = 0.01
    batch: int = 32

    def __post_init__(self) -> None:
        for key in ("pretrain_epochs", "local_epochs", "extra_epochs", "extra_batches"):
            between(key, getattr(self, key), 0, 1_000_000)
        between("weight_decay", self.weight_decay, 0, 10)
        between("batch", self.batch, 2, 100_000)


class StandaloneClient:
    """Trains on its own rows and nothing else (Table I of arXiv 2510.12254)."""

    Settings = StandaloneClientSettings

    def __init__(self, settings: StandaloneClientSettings) -> None:
        self.settings = settings

    def train(self, client: Client, _: Nothing) -> Nothing:
        """E0 epochs the first time, in the same order of rows as FedMMKT's clients see; then a round's share."""
        s = self.settings
        fit_private(client, s, s.local_epochs if client.trained else s.pretrain_epochs, "private")
        if client.trained:
            batches = -(-client.examples // s.batch)
            fit_private(client, s, max(s.extra_epochs, -(-s.extra_batches // batches)), "extra")
        return Nothing()
