"""Small modules inside a client's model: put in for one message, trained beside the head, taken out again.

The body stays as it is. So the client's stored model is a plain one, and the modules are kept and exchanged beside it.
Axes: B batch, D representation width, H width of a layer, R width of a module, or rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from client_app.batches import ClientError
from client_app.blocks.representing import towers
from client_app.client import Client
from florilegium import seeds
from florilegium.models import places

PART = "modules"  # of the memory
HEAD = ("project", "classifier")  # what every client trains for itself

Parameters = dict[str, nn.Parameter]
Module = TypeVar("Module", bound=nn.Module)


class Adapter(nn.Module):
    """h [..., H] -> up(relu(down(h))) [..., H]."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, h: Tensor) -> Tensor:
        return self.up(torch.relu(self.down(h)))


@contextmanager
def behind_projections(client: Client, made: Callable[[str], Module]) -> Iterator[dict[str, Module]]:
    """Inside, `made(side)`, a map of [B, D] to [B, D], follows the projection of each of the client's encoders; gives
    these maps by side (image, text). Outside the model is as it was, but for what it learnt."""
    encoders = towers(client)
    before = {side: encoder.project for side, encoder in encoders.items()}
    added = {side: made(side).to(client.device) for side in encoders}
    for side, encoder in encoders.items():
        encoder.project = nn.Sequential(before[side], added[side])  # type: ignore[assignment]
    try:
        yield added
    finally:
        for side, encoder in encoders.items():
            encoder.project = before[side]
        client.model.requires_grad_(True)


@contextmanager
def low_rank(client: Client, given: Mapping[str, Tensor], rank: int, alpha: float) -> Iterator[Parameters]:
    """Inside, every query and value projection W of the model is W + alpha / R B A (arXiv 2106.09685), by `peft`.

    Gives the factors by the names under which they are exchanged, `3.query.A` and `3.query.B`. `given` are their
    values; empty: A drawn from the run's seed, the same at every client, and B zero. ClientError when they do not fit.
    """
    from peft import LoraConfig, LoraModel  # here: other methods do without it

    where = places.attention_places(client.classifier)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(where.values()))  # type: ignore[arg-type]
    tuner = LoraModel(client.model, config, "default")
    layers = dict(client.model.named_modules())
    factors: Parameters = {}
    for place, name in where.items():
        factors[f"{place}.A"] = layers[name].lora_A["default"].weight
        factors[f"{place}.B"] = layers[name].lora_B["default"].weight
    try:
        for name, p in factors.items():
            zero = name.endswith(".B")
            fresh = torch.zeros(p.shape) if zero else drawn(client, name, p.shape, p[0].numel() ** -0.5)
            p.data.copy_(value_of(name, p, given, fresh))
        client.model.requires_grad_(True)
        yield factors
    finally:
        tuner.unload()
        client.model.requires_grad_(True)


@contextmanager
def still_statistics(client: Client) -> Iterator[None]:
    """Inside, batch norm of the body uses the statistics it has and counts no new ones, as the body is frozen."""

    def stand_still(layer: nn.Module, _: object) -> None:
        layer.eval()  # when it is used, as the training loop puts the whole model into training

    norms = [layer for layer in client.classifier.body.modules() if isinstance(layer, _BatchNorm)]
    hooks = [layer.register_forward_pre_hook(stand_still) for layer in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def trained_names(client: Client, chosen: Parameters) -> set[str]:
    """The names, in the model as it is now, of these parameters and of the head's."""
    ids = {id(p) for p in chosen.values()}
    return {n for n, p in client.model.named_parameters() if id(p) in ids or n.split(".")[0] in HEAD}


def drawn(client: Client, name: str, shape: torch.Size, bound: float) -> Tensor:
    """Uniform between -bound and bound by the run's seed and this name: the same at every client."""
    random = seeds.generator(client.conf.seed, "modules", name, tuple(shape))
    return (torch.rand(shape, generator=random) * 2 - 1) * bound


def value_of(name: str, parameter: Tensor, given: Mapping[str, Tensor], fresh: Tensor) -> Tensor:
    """The given value of a parameter, or where nothing is given `fresh`. ClientError when it is another shape."""
    if not given:
        return fresh
    if name not in given or given[name].shape != parameter.shape:
        there = tuple(given[name].shape) if name in given else "nothing"
        raise ClientError(f"the server's {name} is {there}, expected {tuple(parameter.shape)}")
    return given[name]


def values(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, to be sent and kept."""
    return {name: p.detach().cpu().clone().contiguous() for name, p in parameters.items()}
