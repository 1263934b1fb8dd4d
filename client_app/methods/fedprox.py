"""FedProx, client side (arXiv 1812.06127, Algorithm 2). Server side: FedAvg's, strategies/fedavg.py.

Down and up: weights. Axes: B batch, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from client_app.batches import Batch
from client_app.blocks.averaging import LocalSettings, local
from client_app.client import Client
from client_app.methods.fedavg import FedAvgClient
from florilegium.config.fields import section, setting
from florilegium.models.frozen import trained_parameters
from florilegium.protocol.payloads import Weights


@section
class FedProxClientSettings(LocalSettings):
    """FedAvg's client settings, and the pull towards the server's weights."""

    proximal: float = setting(
        0.01, "mu: weight of the pull towards the server's weights; 0.001 to 1 in the paper", low=0, high=1e4
    )


class FedProxClient(FedAvgClient):
    """Local epochs that must not leave the server's weights too far behind."""

    Settings = FedProxClientSettings
    settings: FedProxClientSettings

    def train(self, client: Client, down: Weights) -> Weights:
        s, model = self.settings, client.model
        start = {name: value.to(client.device) for name, value in down.tensors.items()}

        def proximal(z_BD: Tensor, batch: Batch) -> dict[str, Tensor]:  # h_k = F_k + mu/2 |w - w_t|^2
            away = torch.stack([((w - start[name]) ** 2).sum() for name, w in trained_parameters(model).items()])
            return {"proximal": s.proximal / 2 * away.sum()}

        return local(client, s, down, proximal if s.proximal else None)
