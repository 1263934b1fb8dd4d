"""FedDisco, client side (arXiv 2305.19229). Server side: strategies/averaging/feddisco.py.

Down: weights. Up: weights, and how far the client's classes are from uniform (d_k, "discrepancy"). Axes: C classes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from client_app.client import Client
from client_app.methods.fedavg import FedAvgClient
from florilegium.learning.losses import entropy
from florilegium.protocol.payloads import Weights


class FedDiscoClient(FedAvgClient):
    """FedAvg's local epochs; the client says how uneven its classes are, and not which ones it has."""

    def train(self, client: Client, down: Weights) -> Weights:
        up = super().train(client, down)
        if not down.tensors:
            return up
        counts_C = torch.bincount(client.data.train.labels, minlength=client.classes)
        return replace(up, metrics=up.metrics | {"discrepancy": discrepancy(counts_C)})


def discrepancy(counts_C: Tensor) -> float:
    """KL of the client's distribution of classes from the uniform one: log C - entropy."""
    p_C = counts_C.double() / counts_C.sum()
    return max(math.log(len(counts_C)) - entropy(p_C).item(), 0.0)
