"""FedDyn, client side (arXiv 2111.04263, Algorithm 1). Server side: strategies/averaging/feddyn.py.

Down and up: weights theta. The client keeps q_k, its last gradient over -alpha. Axes: B batch, D width.
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

DRIFT = "drift"  # the part of the memory


@section
class FedDynClientSettings(LocalSettings):
    """FedAvg's client settings, and the strength of the regulariser."""

    alpha: float = setting(
        0.01, "alpha: weight of the dynamic regulariser; 0.001, 0.01 or 0.1 in the paper", low=1e-9, high=1e4
    )


class FedDynClient(FedAvgClient):
    """Local epochs whose regulariser makes the local minimum agree with the global one."""

    Settings = FedDynClientSettings
    settings: FedDynClientSettings

    def train(self, client: Client, down: Weights) -> Weights:
        alpha, model = self.settings.alpha, client.model
        theta = {name: value.to(client.device) for name, value in down.tensors.items()}
        q = {name: value.to(client.device) for name, value in self.remembered(client).items()}

        def dynamic(z_BD: Tensor, batch: Batch) -> dict[str, Tensor]:
            """-<grad L_k(theta_k), w> + alpha/2 |w - theta|^2, with grad L_k(theta_k) = -alpha q_k."""
            linear = torch.stack([(q[name] * w).sum() for name, w in trained_parameters(model).items()])
            away = torch.stack([((w - theta[name]) ** 2).sum() for name, w in trained_parameters(model).items()])
            return {"linear": alpha * linear.sum(), "proximal": alpha / 2 * away.sum()}

        up = local(client, self.settings, down, dynamic)
        if down.tensors:  # grad L_k(theta_k) <- grad L_k(theta_k) - alpha (theta_k - theta)
            moved = {name: q[name].cpu() + up.tensors[name] - down.tensors[name] for name in q}
            client.memory.write(DRIFT, moved)
        return up

    @staticmethod
    def remembered(client: Client) -> dict[str, Tensor]:
        """q_k as the client's last training left it; zero before the first."""
        found = client.memory.read(DRIFT)
        zero = {name: torch.zeros_like(p, device="cpu") for name, p in trained_parameters(client.model).items()}
        return zero if found is None else found[0]
