"""FedNova, client side (arXiv 2007.07481). Server side: strategies/fednova.py.

Down: weights. Up: weights, and how many plain gradients went into them (a_k, "effective_steps").
"""

from __future__ import annotations

from client_app.blocks.averaging import LocalSettings, local
from client_app.client import Client
from client_app.guidance import phases
from florilegium.learning.averaging import effective_steps
from florilegium.protocol.payloads import Weights


class FedNovaClient:
    """FedAvg's local epochs; a client with more rows takes more steps, and says so."""

    Settings = LocalSettings
    represent = phases.represent

    def __init__(self, settings: LocalSettings) -> None:
        self.settings = settings

    def train(self, client: Client, down: Weights) -> Weights:
        s, up = self.settings, local(client, self.settings, down)
        if not down.tensors:
            return up
        a = effective_steps(up.metrics["steps"], s.momentum if s.optimizer == "sgd" else 0.0)  # |a_k|_1
        return Weights(up.tensors, up.examples, up.metrics | {"effective_steps": a})
