"""LoRA-FL, client side: a baseline of arXiv 2308.12305 and 2510.12254 (Table VII). LoRA: arXiv 2106.09685, by `peft`.

Server side: strategies/modules/averaged_modules.py. Down and up: the low-rank factors. Body and head stay.
"""

from __future__ import annotations

from client_app import evaluation
from client_app.blocks.modules import PART, low_rank, still_statistics, trained_names, values
from client_app.blocks.own_model import OwnModelSettings, train_own
from client_app.client import Client
from florilegium.config.fields import section, setting
from florilegium.protocol.payloads import Adapters, Report


@section
class LoRAFLClientSettings(OwnModelSettings):
    """The local training, and the factors."""

    rank: int = setting(16, "r: rank of the factors", low=1, high=10_000)
    alpha: float = setting(16.0, "alpha: the product B A counts alpha / r", low=1e-6, high=1e6)


class LoRAFLClient:
    """Trains low-rank changes of the attention's queries and values, and a head of its own; the body is frozen."""

    Settings = LoRAFLClientSettings

    def __init__(self, settings: LoRAFLClientSettings) -> None:
        self.settings = settings

    def train(self, client: Client, down: Adapters) -> Adapters:
        s, figures = self.settings, {}
        with low_rank(client, down.tensors, s.rank, s.alpha) as factors:
            if down.tensors:  # empty: the server asks for a fresh start
                with still_statistics(client):
                    figures = train_own(client, s, trained=trained_names(client, factors))
            tensors = values(factors)
        client.memory.write(PART, tensors)
        return Adapters(tensors, client.examples, figures)

    def evaluate(self, client: Client) -> Report:
        found = client.memory.read(PART)
        with low_rank(client, found[0] if found else {}, self.settings.rank, self.settings.alpha):
            return evaluation.evaluate(client)
