"""Bias-FL, client side: a baseline of arXiv 2308.12305 and 2510.12254 (Table VII). Bias tuning: arXiv 2106.10199.

Server side: strategies/modules/averaged_modules.py. Down and up: the biases of the body. Everything else stays.
"""

from __future__ import annotations

from client_app.blocks.modules import Parameters, still_statistics, trained_names, value_of, values
from client_app.blocks.own_model import OwnModelSettings, train_own
from client_app.client import Client
from florilegium.models.places import place_of
from florilegium.protocol.payloads import Adapters

BIAS = ".bias"


class BiasFLClient:
    """Trains the biases of the body, and a head of its own; all other weights of the body are frozen."""

    Settings = OwnModelSettings

    def __init__(self, settings: OwnModelSettings) -> None:
        self.settings = settings

    def train(self, client: Client, down: Adapters) -> Adapters:
        chosen, figures = biases(client), {}
        for name, p in chosen.items():
            p.data.copy_(value_of(name, p, down.tensors, p.data.clone()))
        if down.tensors:  # empty: the server asks for a fresh start
            with still_statistics(client):  # statistics are no biases: nobody averages them
                figures = train_own(client, self.settings, trained=trained_names(client, chosen))
        return Adapters(values(chosen), client.examples, figures)


def biases(client: Client) -> Parameters:
    """Every bias of the body by its place, `3.query.bias`."""
    return {
        place_of(name.removesuffix(BIAS)) + BIAS: p
        for name, p in client.classifier.named_parameters()
        if name.startswith("body.") and name.endswith(BIAS)
    }
