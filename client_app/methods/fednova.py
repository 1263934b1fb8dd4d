"""FedNova, client side (arXiv 2007.07481). Server side: strategies/fednova.py.

Down: weights. Up: weights, and how many plain gradients went into them (a_k, "effective_steps").
"""

from __future__ import annotations

from client_app.blocks.averaging import LocalSettings
from client_app.client import Client
from client_app.methods.fedavg import FedAvgClient
from florilegium.config.fields import section
from florilegium.learning.averaging import effective_steps
from florilegium.protocol.payloads import Weights


@section
class FedNovaClientSettings(LocalSettings):
    """FedAvg's client settings, with at least one epoch: what a client learnt is divided by its steps."""

    def __post_init__(self) -> None:
        if not self.local_epochs:
            raise ValueError("local_epochs must be at least 1, FedNova divides by a client's steps, got 0")


class FedNovaClient(FedAvgClient):
    """FedAvg's local epochs; a client with more rows takes more steps, and says so."""

    Settings = FedNovaClientSettings

    def train(self, client: Client, down: Weights) -> Weights:
        s, up = self.settings, super().train(client, down)
        if not down.tensors:
            return up
        a = effective_steps(up.metrics["steps"], s.momentum if s.optimizer == "sgd" else 0.0)  # |a_k|_1
        return Weights(up.tensors, up.examples, up.metrics | {"effective_steps": a})
