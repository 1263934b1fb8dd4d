"""FedAvg, client half (arXiv 1602.05629, Algorithm 1, ClientUpdate). Server half: strategies/fedavg.py.

Down and up: weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from client_app.client import Client
from client_app.training import LearningRate, fit_private
from florilegium.checks import between
from florilegium.wire import Weights


@dataclass
class FedAvgClientSettings:
    """E, eta and B of the paper, with AdamW."""

    local_epochs: int = 2          # E
    learning_rate: LearningRate = field(default_factory=LearningRate)
    weight_decay: float = 0.01
    batch: int = 32                # B

    def __post_init__(self) -> None:
        between("local_epochs", self.local_epochs, 1, 1_000_000)
        between("weight_decay", self.weight_decay, 0, 10)
        between("batch", self.batch, 2, 100_000)


class FedAvgClient:
    """A few epochs of the task on private data, from the server's weights."""

    Settings = FedAvgClientSettings

    def __init__(self, settings: FedAvgClientSettings) -> None:
        self.settings = settings

    def train(self, client: Client, down: Weights) -> Weights:
        """Empty weights ask for the client's fresh model: the common start of a federation."""
        if down.tensors:
            client.load(down.tensors)
            fit_private(client, self.settings, self.settings.local_epochs, "private")
        tensors = {name: value.detach().cpu() for name, value in client.model.state_dict().items()}
        return Weights(tensors, client.examples)
