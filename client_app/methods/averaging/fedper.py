"""FedPer, client side (arXiv 1912.00818, Algorithm 1). Server side: strategies/averaging/shared_part.py.

Down and up: weights of the base layers. The personalisation layers, the last ones of the model, stay.
"""

from __future__ import annotations

from torch import nn

from client_app.blocks.averaging import LocalSettings, local
from client_app.client import Client
from client_app.methods.fedavg import FedAvgClient
from florilegium.config.fields import section, setting
from florilegium.protocol.payloads import Weights


@section
class FedPerClientSettings(LocalSettings):
    """FedAvg's client settings, and the number of personal layers."""

    personal_layers: int = setting(
        1,
        "K_P: how many of the last layers stay; 1 is the classifier. Normalisation layers are not counted",
        low=1,
        high=10_000,
    )


class FedPerClient(FedAvgClient):
    """Some epochs on private data, base and personal layers at once."""

    Settings = FedPerClientSettings
    settings: FedPerClientSettings

    def personal(self, model: nn.Module) -> set[str]:
        """The names of the tensors of the last K_P layers, and of the normalisation layers between and after them."""
        return last_layers(model, self.settings.personal_layers)

    def train(self, client: Client, down: Weights) -> Weights:
        return local(client, self.settings, down, keeps=self.personal(client.model))


def last_layers(model: nn.Module, count: int) -> set[str]:
    """Names of the tensors of the last `count` layers that have a weight matrix, in the order in which the model names
    its layers. ValueError when that is the whole model."""
    layers = [(name, layer) for name, layer in model.named_modules() if any(True for _ in layer.parameters(False))]
    counted = [n for n, (_, layer) in enumerate(layers) if any(p.dim() > 1 for p in layer.parameters(False))]
    if count >= len(counted):
        raise ValueError(f"personal_layers is {count}, but the model has {len(counted)} layers and must share some")
    return {f"{name}.{tensor}" for name, layer in layers[counted[-count] :] for tensor in layer.state_dict()}
