"""FedBN, client side (arXiv 2102.07623, Algorithm 1). Server side: strategies/averaging/shared_part.py.

Down and up: weights without normalisation layers, which stay.
"""

from __future__ import annotations

from torch import nn

from client_app.blocks.averaging import LocalSettings, local
from client_app.client import Client
from client_app.methods.fedavg import FedAvgClient
from florilegium.config.fields import section, setting
from florilegium.protocol.payloads import Weights

BATCH = (nn.BatchNorm1d, nn.BatchNorm2d)
NORMS = {"batch": BATCH, "all": (*BATCH, nn.LayerNorm, nn.GroupNorm)}


@section
class FedBNClientSettings(LocalSettings):
    """FedAvg's client settings, and which layers stay."""

    norms: str = setting(
        "all",
        "layers that stay: batch (batch norm, the paper's) | all (layer norm and group norm too, for models without "
        "batch norm)",
        choices=tuple(NORMS),
    )


class FedBNClient(FedAvgClient):
    """Some epochs on private data, from the shared weights and the client's own normalisation layers."""

    Settings = FedBNClientSettings
    settings: FedBNClientSettings

    def personal(self, model: nn.Module) -> set[str]:
        """The names of the tensors of all normalisation layers, statistics included."""
        return {
            f"{name}.{tensor}"
            for name, layer in model.named_modules()
            if isinstance(layer, NORMS[self.settings.norms])
            for tensor in layer.state_dict()
        }

    def train(self, client: Client, down: Weights) -> Weights:
        return local(client, self.settings, down, keeps=self.personal(client.model))
