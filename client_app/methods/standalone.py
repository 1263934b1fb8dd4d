"""Standalone, client side: private epochs, as many as FedMMKT's clients have. Server side: strategies/standalone.py.

Down and up: nothing.
"""

from __future__ import annotations

from client_app.blocks.training import fit_private
from client_app.client import Client
from florilegium.config.fields import section, setting
from florilegium.learning.fit import LearningRate
from florilegium.protocol.payloads import Nothing


@section
class StandaloneClientSettings:
    """Client settings of Standalone: as many private batches as the clients of FedMMKT have, re-training included."""

    pretrain_epochs: int = setting(12, "E0: private epochs at a client's first training", low=0, high=1_000_000)
    local_epochs: int = setting(1, "private epochs of a round", low=0, high=1_000_000)
    extra_epochs: int = setting(
        2,
        "more private epochs of a round, in the place of FedMMKT's two passes over the distillation set",
        low=0,
        high=1_000_000,
    )
    extra_batches: int = setting(
        46,
        "the smallest number of private batches in these epochs; whole epochs are added until it is reached. FedMMKT's "
        "re-training mixes in at most 2 x ceil((240 + 480) / 32) = 46",
        low=0,
        high=1_000_000,
    )
    learning_rate: LearningRate = setting(help="learning rate of AdamW", factory=LearningRate)
    weight_decay: float = setting(0.01, "weight decay of AdamW", low=0, high=10)
    batch: int = setting(32, "rows in a batch", low=2, high=100_000)


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
