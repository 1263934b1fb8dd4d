"""FedMBridge, client side (Chen and Zhang, ICML 2024), reconstructed from the abstract: docs/methods/modules.md.

Server side: strategies/modules/fedmbridge.py. Down: a bridge and a head that the server's hypernetwork made for this
client. Up: both after the local training. The body stays. Axes: B batch, D representation width, R width of the bridge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from client_app import evaluation
from client_app.blocks.modules import PART, Adapter, Parameters, behind_projections, drawn, value_of, values
from client_app.blocks.own_model import OwnModelSettings, train_objective
from client_app.blocks.training import task_terms
from client_app.client import Client
from florilegium.config.fields import section, setting
from florilegium.learning.averaging import named
from florilegium.protocol.payloads import Adapters, Report


@section
class FedMBridgeClientSettings(OwnModelSettings):
    """The local training, and the size of the bridge."""

    reduction: int = setting(4, "the representation's width over the bridge's", low=1, high=10_000)


class Bridge(Adapter):
    """z [B, D] -> z + up(relu(down(z)))."""

    def forward(self, h: Tensor) -> Tensor:
        return h + super().forward(h)


class FedMBridgeClient:
    """Trains its own model from the bridge and the head that the server made for it."""

    Settings = FedMBridgeClientSettings

    def __init__(self, settings: FedMBridgeClientSettings) -> None:
        self.settings = settings

    def train(self, client: Client, down: Adapters) -> Adapters:
        with bridged(client, down.tensors, self.settings.reduction) as made:
            figures = {}
            if down.tensors:  # empty: the server asks which tensors there are
                figures = train_objective(client, self.settings, lambda batch: task_terms(client, batch))
            up = values(made)
        client.memory.write(PART, up)
        return Adapters(up, client.examples, figures)

    def evaluate(self, client: Client) -> Report:
        found = client.memory.read(PART)
        with bridged(client, found[0] if found else {}, self.settings.reduction):
            return evaluation.evaluate(client)


@contextmanager
def bridged(client: Client, given: Mapping[str, Tensor], reduction: int) -> Iterator[Parameters]:
    """Inside, a bridge follows each projection of the client; gives the parameters that the server makes by name:
    `image.down.weight` of a bridge, and `head.weight` of a classifier. `given` are their values; empty: the bridge says
    nothing and the head is the client's own. ClientError when they do not fit."""
    inner = max(1, client.width // reduction)
    with behind_projections(client, lambda side: Bridge(client.width, inner)) as bridges:
        made: Parameters = {}
        for side, bridge in bridges.items():
            made |= named(side, dict(bridge.named_parameters()))
        for name, p in made.items():
            silent = ".up." in name or name.endswith("bias")
            start = torch.zeros(p.shape) if silent else drawn(client, name, p.shape, p.shape[-1] ** -0.5)
            p.data.copy_(value_of(name, p, given, start))
        if client.modality != "pair":
            head: Parameters = named("head", dict(client.classifier.classifier.named_parameters()))
            for name, p in head.items():
                p.data.copy_(value_of(name, p, given, p.data))
            made |= head
        yield made
