"""FedRep, client side (arXiv 2102.07078, Algorithm 1). Server side: strategies/averaging/shared_part.py.

Down and up: weights of the representation phi. The head h stays.
"""

from __future__ import annotations

from torch import nn

from client_app.blocks.averaging import LocalSettings, Turn, local
from client_app.client import Client
from client_app.methods.fedavg import FedAvgClient
from florilegium.config.fields import section, setting
from florilegium.protocol.payloads import Weights

HEAD = "classifier."


@section
class FedRepClientSettings(LocalSettings):
    """FedAvg's client settings; `local_epochs` are those of the representation."""

    local_epochs: int = setting(
        1, "tau_phi: epochs of the representation after those of the head; 1 or 5 in the paper", low=1, high=1_000_000
    )
    head_epochs: int = setting(
        1, "tau_h: epochs of the head for the representation that came; 10 in the paper", low=1, high=1_000_000
    )


class FedRepClient(FedAvgClient):
    """First the best head for the shared representation, then a step of the representation for that head."""

    Settings = FedRepClientSettings
    settings: FedRepClientSettings

    def personal(self, model: nn.Module) -> set[str]:
        """The names of the head's tensors."""
        return {name for name in model.state_dict() if name.startswith(HEAD)}

    def train(self, client: Client, down: Weights) -> Weights:
        head = self.personal(client.model)
        body = {name for name, _ in client.model.named_parameters()} - head
        turns = (
            Turn(self.settings.head_epochs, head, "head"),  # h_k <- GRD(f(h_k, phi), h_k), tau_h times
            Turn(self.settings.local_epochs, body),  # phi_k <- GRD(f(h_k, phi), phi)
        )
        return local(client, self.settings, down, keeps=head, turns=turns)
