"""FedProx, client half (arXiv 1812.06127, Algorithm 2). Server half: FedAvg's, strategies/fedavg.py.

Down and up: weights. Axes: B batch, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from client_app.batches import Batch
from client_app.blocks.averaging import LocalSettings, local
from client_app.client import Client
from client_app.guidance import phases
from florilegium.config.bounds import between
from florilegium.protocol.payloads import Weights


@dataclass
class FedProxClientSettings(LocalSettings):
    """FedAvg's, and the pull towards the server's weights."""

    proximal: float = 0.01  # mu

    def __post_init__(self) -> None:
        super().__post_init__()
        between("proximal", self.proximal, 0, 1e4)


class FedProxClient:
    """Local epochs that must not leave the server's weights too far behind."""

    Settings = FedProxClientSettings
    represent = phases.represent

    def __init__(self, settings: FedProxClientSettings) -> None:
        self.settings = settings

    def train(self, client: Client, down: Weights) -> Weights:
        s, model = self.settings, client.model
        start = {name: value.to(client.device) for name, value in down.tensors.items()}

        def proximal(z_BD: Tensor, batch: Batch) -> dict[str, Tensor]:  # h_k = F_k + mu/2 |w - w_t|^2
            away = torch.stack([((w - start[name]) ** 2).sum() for name, w in model.named_parameters()])
            return {"proximal": s.proximal / 2 * away.sum()}

        return local(client, s, down, proximal if s.proximal else None)
