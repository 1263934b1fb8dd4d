"""FedAvg's client side for Flower's own strategies. Server side: strategies/flower.py.

Down and up: weights. With DP wrappers that clip at the client: the norm to clip to comes down, whether it did goes up.
"""

from __future__ import annotations

import torch

from client_app.client import Client
from client_app.methods.fedavg import FedAvgClient
from florilegium.protocol.payloads import Weights


class FlowerClient(FedAvgClient):
    """Local epochs; where the server names a clipping norm, the update is clipped before it leaves."""

    def train(self, client: Client, down: Weights) -> Weights:
        up = super().train(client, down)
        if not down.tensors or "clipping_norm" not in down.metrics:
            return up
        update = {n: up.tensors[n] - v for n, v in down.tensors.items() if v.is_floating_point()}
        norm = torch.stack([u.double().square().sum() for u in update.values()]).sum().sqrt().item()
        factor = min(1.0, down.metrics["clipping_norm"] / max(norm, 1e-12))  # FlatClip, arXiv 1710.06963
        clipped = {n: down.tensors[n] + factor * u for n, u in update.items()}
        return Weights(up.tensors | clipped, up.examples, up.metrics | {"norm_bit": float(factor < 1)})
