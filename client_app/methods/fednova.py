"""FedNova, client side (arXiv 2007.07481). Server side: strategies/fednova.py.

Down: weights. Up: weights, and how many plain gradients went into them (a_k, "effective_steps").
"""

from __future__ import annotations

from client_app.client import Client
from client_app.methods.fedavg import FedAvgClient
from florilegium.learning.averaging import effective_steps
from florilegium.protocol.payloads import Weights


class FedNovaClient(FedAvgClient):
    """FedAvg's local epochs; a client with more rows takes more steps, and says so."""

    def train(self, client: Client, down: Weights) -> Weights:
        s, up = self.settings, super().train(client, down)
        if not down.tensors:
            return up
        a = effective_steps(up.metrics["steps"], s.momentum if s.optimizer == "sgd" else 0.0)  # |a_k|_1
        return Weights(up.tensors, up.examples, up.metrics | {"effective_steps": a})
