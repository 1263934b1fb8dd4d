"""SCAFFOLD, client side (arXiv 1910.06378, Algorithm 1, option II). Server side: strategies/scaffold.py.

Down: weights and the server's control variate c. Up: weights and the change of the client's own, c_k; c_k stays.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from client_app.blocks.averaging import LocalSettings, local
from client_app.client import Client
from client_app.methods.fedavg import FedAvgClient
from florilegium.config.fields import section, setting
from florilegium.learning.averaging import effective_steps, named, part, without
from florilegium.models.frozen import trained_parameters
from florilegium.protocol.payloads import Weights

CONTROL = "control"  # the part of the memory, and the first name on the wire


@section
class ScaffoldClientSettings(LocalSettings):
    """FedAvg's client settings with plain SGD: c_k is the mean gradient exactly."""

    momentum: float = setting(
        0.0, "momentum of SGD; with momentum, c_k is divided as FedNova divides the steps", low=0, high=0.999
    )

    def __post_init__(self) -> None:
        if self.optimizer != "sgd":
            raise ValueError(f"optimizer must be sgd, control variates are gradients of SGD, got {self.optimizer!r}")


class ScaffoldClient(FedAvgClient):
    """Each step is corrected by how this client's gradients differ from everyone's."""

    Settings = ScaffoldClientSettings
    settings: ScaffoldClientSettings

    def train(self, client: Client, down: Weights) -> Weights:
        s = self.settings
        zero = {name: torch.zeros_like(p, device="cpu") for name, p in trained_parameters(client.model).items()}
        if not down.tensors:
            fresh = local(client, s, down)
            return Weights(fresh.tensors | named(CONTROL, zero), fresh.examples)
        start, c = without(down.tensors, CONTROL), zero | part(down.tensors, CONTROL)
        own = self.remembered(client, zero)
        correction = {name: (c[name] - own[name]).to(client.device) for name in own}

        def corrected(model: nn.Module) -> None:  # y <- y - eta (g(y) - c_k + c)
            for name, p in model.named_parameters():
                if p.grad is not None:
                    p.grad += correction[name]

        up = local(client, s, Weights(start), before_step=corrected)
        length = effective_steps(up.metrics["steps"], s.momentum) * s.learning_rate.of(client.modality)  # S eta
        if length:
            new = {name: own[name] - c[name] + (start[name] - up.tensors[name]) / length for name in own}  # option II
        else:  # no step, so no gradient was seen
            new = own
        client.memory.write(CONTROL, new)
        change = {name: new[name] - own[name] for name in own}
        return Weights(up.tensors | named(CONTROL, change), up.examples, up.metrics)

    @staticmethod
    def remembered(client: Client, zero: dict[str, Tensor]) -> dict[str, Tensor]:
        """c_k as the client's last training left it; zero before the first."""
        found = client.memory.read(CONTROL)
        return zero if found is None else found[0]
