"""FedAvg, client side (arXiv 1602.05629, Algorithm 1, ClientUpdate). Server side: strategies/fedavg.py.

Down and up: weights.
"""

from __future__ import annotations

from client_app.blocks.averaging import LocalSettings, local
from client_app.client import Client
from client_app.guidance import phases
from florilegium.protocol.payloads import Weights


class FedAvgClient:
    """E epochs of the task on private data, from the server's weights."""

    Settings = LocalSettings
    represent = phases.represent

    def __init__(self, settings: LocalSettings) -> None:
        self.settings = settings

    def train(self, client: Client, down: Weights) -> Weights:
        return local(client, self.settings, down)
