"""MOON, client side (arXiv 2103.16257, Algorithm 1). Server side: FedAvg's, strategies/fedavg.py.

Down and up: weights, with those of the projection head. The last local model stays. Axes: B batch, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from client_app.batches import Batch
from client_app.blocks.averaging import LocalSettings, local
from client_app.client import Client
from client_app.methods.fedavg import FedAvgClient
from florilegium import seeds
from florilegium.config.fields import section, setting
from florilegium.learning.averaging import model_part, named, part
from florilegium.learning.losses import model_contrast
from florilegium.protocol.payloads import Weights

MOON = "moon"  # the part of the memory, and the first name on the wire


@section
class MoonClientSettings(LocalSettings):
    """FedAvg's client settings, and the contrast between models."""

    contrast: float = setting(5.0, "mu: weight of the contrast; 1 for data with many classes", low=0, high=1e4)
    temperature: float = setting(0.5, "tau: temperature of the contrast", low=1e-3, high=1e3)
    projection: int = setting(
        256, "output width of the projection head; 0: the contrast compares z itself", low=0, high=1_000_000
    )


class MoonClient(FedAvgClient):
    """Pulls representations towards the global model's and away from the client's own last ones."""

    Settings = MoonClientSettings
    settings: MoonClientSettings

    def train(self, client: Client, down: Weights) -> Weights:
        s, project, left = self.settings, self.projection(client), client.previous_state[0]
        if down.tensors:
            weights, head = model_part(down.tensors), part(down.tensors, MOON)
            client.load(weights)  # ClientError, before we copy it
            current = self.frozen(client, weights, head)
            before = self.frozen(client, left, self.last_head(client)) if left else current

        def contrast(z_BD: Tensor, batch: Batch) -> dict[str, Tensor]:  # l_con
            near, far = current(batch.inputs), before(batch.inputs)
            return {"contrast": s.contrast * model_contrast(project(z_BD), near, far, s.temperature)}

        up = local(
            client, s, down, contrast if s.contrast else None, beside=named(MOON, dict(project.named_parameters()))
        )
        if s.projection:
            client.memory.write(MOON, part(up.tensors, MOON))
        return up

    def projection(self, client: Client) -> nn.Module:
        """The projection head, a two-layer MLP, as the seed starts it."""
        if not self.settings.projection:
            return nn.Identity()
        with seeds.scoped(client.conf.seed, "model", "moon"):
            head = nn.Sequential(
                nn.Linear(client.width, client.width), nn.ReLU(), nn.Linear(client.width, self.settings.projection)
            )
        return head.to(client.device)

    def last_head(self, client: Client) -> dict[str, Tensor]:
        """The projection head of the client's last local model."""
        return (client.memory.read(MOON) or ({}, {}))[0] if self.settings.projection else {}

    def frozen(
        self, client: Client, weights: Mapping[str, Tensor], head: Mapping[str, Tensor]
    ) -> Callable[[Tensor], Tensor]:
        """inputs -> projected representations of a model that is not trained."""
        model, project = copy.deepcopy(client.classifier), self.projection(client)
        model.load_state_dict(weights)
        project.load_state_dict(head)
        model.eval()

        @torch.no_grad()
        def seen(inputs: Tensor) -> Tensor:
            return project(model.encode(inputs))

        return seen
