"""FedCola, client side (Sun et al., ECCV 2024, arXiv 2404.12467; formulas from imguangyu/FedCola, models/mome.py).

Server side: strategies/modules/fedcola.py. Down: the client's model, and attention of the other modality. Up: the
model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from client_app.batches import ClientError
from client_app.blocks.own_model import OwnModelSettings, train_objective
from client_app.blocks.representing import towers
from client_app.blocks.training import task_terms
from client_app.client import Client
from florilegium.config.fields import section, setting
from florilegium.learning.averaging import part
from florilegium.models.places import place_of
from florilegium.protocol.payloads import Adapters

ATTENTION, OWN, AUXILIARY = "attention", "own", "auxiliary"
ROLES = ("query", "key", "value", "attended")  # of the linear maps of an attention


@section
class FedColaClientSettings(OwnModelSettings):
    """The local training, and what the other modality adds to it."""

    complement: bool = setting(True, "complementary training: W + s W_aux, W_aux the other modality's attention")
    merge: bool = setting(
        False, "true: s W_aux stays in the weights that leave; false: it is left out, as in the released code"
    )


class Complement(nn.Module):
    """W -> W + s W_aux: the other modality's weights, which are trained too, and s, zero at first."""

    def __init__(self, auxiliary: Tensor) -> None:
        super().__init__()
        self.auxiliary = nn.Parameter(auxiliary.clone())
        self.scale = nn.Parameter(torch.zeros(1, device=auxiliary.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * self.auxiliary


class FedColaClient:
    """Trains the whole model; what the other modality's attention knows is a part of its own attention meanwhile."""

    Settings = FedColaClientSettings

    def __init__(self, settings: FedColaClientSettings) -> None:
        self.settings = settings

    def train(self, client: Client, down: Adapters) -> Adapters:
        s, names, figures = self.settings, wire_names(client), {}
        if down.tensors:  # empty: the server asks for a fresh start
            if missing := [wire for wire in names.values() if wire not in down.tensors]:
                raise ClientError(f"the server's model has no {missing[0]}")
            client.load({name: down.tensors[wire] for name, wire in names.items()})
            given = part(down.tensors, AUXILIARY) if s.complement else {}
            with complemented(client, given, s.merge):
                figures = train_objective(client, s, lambda batch: task_terms(client, batch))
        state = client.model.state_dict()
        tensors = {wire: state[name].detach().cpu().clone() for name, wire in names.items()}
        return Adapters(tensors, client.examples, figures)


def attention_layers(client: Client) -> dict[str, tuple[str, str]]:
    """Name in the model of each linear map of an attention -> (side and body, place): `image.vit`, `3.query`."""
    bodies = dict(zip(towers(client), client.architecture.split("+"), strict=True))
    found = {}
    for side, tower in towers(client).items():
        before = f"{side}." if client.modality == "pair" else ""
        for name, layer in tower.named_modules():
            place = place_of(name)
            if isinstance(layer, nn.Linear) and place.split(".")[-1] in ROLES:
                found[before + name] = (f"{side}.{bodies[side]}", place)
    return found


def wire_names(client: Client) -> dict[str, str]:
    """Name of each tensor of the model -> its name on the wire: `attention.image.vit.3.query.weight`, or `own.` and
    the name in the model."""
    layers, names = attention_layers(client), {}
    for name in client.model.state_dict():
        layer, _, parameter = name.rpartition(".")
        names[name] = f"{OWN}.{name}"
        if layer in layers:
            names[name] = ".".join((ATTENTION, *layers[layer], parameter))
    return names


@contextmanager
def complemented(client: Client, given: Mapping[str, Tensor], merge: bool) -> Iterator[None]:
    """Inside, each attention map with one of the given weights at its place, `3.query.weight`, is complemented by it.
    ClientError when a shape differs."""
    changed = []
    for name, (_, place) in attention_layers(client).items():
        if (auxiliary := given.get(f"{place}.weight")) is None:
            continue
        layer = client.model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        if auxiliary.shape != layer.weight.shape:
            raise ClientError(
                f"the server's {place}.weight is {tuple(auxiliary.shape)}, not {tuple(layer.weight.shape)}"
            )
        register_parametrization(layer, "weight", Complement(auxiliary.to(client.device)))
        changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            remove_parametrizations(layer, "weight", leave_parametrized=merge)
