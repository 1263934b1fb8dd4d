"""FedDAT, client side (arXiv 2308.12305, Algorithm 1; formulas from HaokunChen245/FedDAT, task_trainer.py, adapter.py).

Server side: strategies/modules/averaged_modules.py. Down and up: the shared adapters. Local ones, body and head stay.
Axes: B batch, C classes, H width of a layer, R width of an adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client_app import evaluation
from client_app.batches import Batch
from client_app.blocks.modules import PART, Adapter, drawn, still_statistics, trained_names, value_of, values
from client_app.blocks.own_model import OwnModelSettings, epochs_of
from client_app.client import Client
from florilegium.config.fields import section, setting
from florilegium.learning.averaging import named, part
from florilegium.learning.fit import fit
from florilegium.learning.losses import logit_kl
from florilegium.models import places
from florilegium.protocol.payloads import Adapters, Report

SHARED, DUAL = "shared", "dual"  # which path a forward pass takes


@section
class FedDATClientSettings(OwnModelSettings):
    """The local training, the adapters, and the mutual distillation."""

    reduction: int = setting(16, "a layer's width over its adapter's", low=1, high=10_000)
    temperature: float = setting(3.0, "T: temperature of the mutual distillation", low=1e-3, high=1e3)


class DualAdapter(nn.Module):
    """A layer's last map, then adapters: the shared one A_s, or the teacher (A_c + frozen A_s) / 2 with a local A_c."""

    def __init__(self, last: nn.Module, width: int, inner: int) -> None:
        super().__init__()
        self.last, self.path = last, DUAL
        self.local, self.shared, self.frozen = (Adapter(width, inner) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out = self.last(x)
        h = out.movedim(1, -1) if out.dim() == 4 else out  # a convolution's channels stand second
        change = self.shared(h) if self.path == SHARED else (self.local(h) + self.frozen(h)) / 2
        return out + (change.movedim(-1, 1) if out.dim() == 4 else change)


class FedDATClient:
    """Shared adapters learn from the teacher that local ones make with them, and the local ones learn back."""

    Settings = FedDATClientSettings

    def __init__(self, settings: FedDATClientSettings) -> None:
        self.settings = settings

    def train(self, client: Client, down: Adapters) -> Adapters:
        kept = (client.memory.read(PART) or ({}, {}))[0]
        with dual(client, down.tensors, part(kept, "local"), self.settings.reduction) as layers:
            figures = self.distill_mutually(client, layers) if down.tensors else {}  # empty: for a fresh start
            shared = values(adapters(layers, SHARED))
            # the frozen copy stays the one that came: it is a part of the teacher, which is judged
            frozen, local = values(adapters(layers, "frozen")), values(adapters(layers, "local"))
            client.memory.write(PART, named("local", local) | named("frozen", frozen))
        return Adapters(shared, client.examples, figures)

    def distill_mutually(self, client: Client, layers: Mapping[str, DualAdapter]) -> dict[str, float]:
        """Each batch twice: a step of the shared adapters, then one of the local ones."""
        s, model, seen = self.settings, client.classifier, {}

        def logits(batch: Batch, path: str) -> Tensor:
            for layer in layers.values():
                layer.path = path
            return model(batch.inputs)

        def objective(given: tuple[Batch, str]) -> dict[str, Tensor]:
            batch, turn = given
            if turn == SHARED:  # L_s: [CE(z_s) + KL(z_DAT -> z_s)] / 2
                with torch.no_grad():
                    teacher_BC = logits(batch, DUAL)
                own_BC = seen["shared"] = logits(batch, SHARED)
            else:  # L_c: [CE(z_DAT) + KL(z_s -> z_DAT)] / 2
                teacher_BC, own_BC = seen["shared"], logits(batch, DUAL)
            kl = logit_kl(teacher_BC, own_BC, torch.ones(len(own_BC), device=own_BC.device), s.temperature)
            return {"task": cross_entropy(own_BC, batch.labels) / 2, "distillation": kl / 2}

        def batches(epoch: int) -> Iterator[tuple[Batch, str]]:
            for batch in client.private_batches(s.batch, epoch, "private"):
                yield from ((batch, SHARED), (batch, DUAL))  # type: ignore[misc]

        chosen = adapters(layers, SHARED) | named("local", adapters(layers, "local"))
        names = trained_names(client, chosen)
        for name, p in model.named_parameters():
            p.requires_grad_(name in names)
        with still_statistics(client):
            return fit(
                model,
                batches,
                objective,
                lr=s.learning_rate.of(client.modality),
                weight_decay=s.weight_decay,
                epochs=epochs_of(client, s),
                clip=s.clip,
                optimizer=s.optimizer,
                momentum=s.momentum,
            )

    def evaluate(self, client: Client) -> Report:
        kept = (client.memory.read(PART) or ({}, {}))[0]
        with dual(client, part(kept, "frozen"), part(kept, "local"), self.settings.reduction):
            return evaluation.evaluate(client)


@contextmanager
def dual(
    client: Client, shared: Mapping[str, Tensor], local: Mapping[str, Tensor], reduction: int
) -> Iterator[dict[str, DualAdapter]]:
    """Inside, adapters follow the last map of every layer; gives them by place. Values that are not given are drawn by
    the run's seed: N(0, 0.02) for weights, zero for biases. Outside the model is as it was."""
    layers: dict[str, DualAdapter] = {}
    for place, name in places.output_places(client.classifier).items():
        last = client.classifier.get_submodule(name)
        width = int(last.out_channels if isinstance(last, nn.Conv2d) else last.out_features)  # type: ignore[arg-type]
        layers[name] = DualAdapter(last, width, max(1, width // reduction)).to(client.device)
        layers[name].place = place  # type: ignore[assignment]
        client.classifier.set_submodule(name, layers[name])
    found = {str(layer.place): layer for layer in layers.values()}
    try:
        for which, given in ((SHARED, shared), ("frozen", shared), ("local", local)):
            for name, p in adapters(found, which).items():
                drawn_as = f"local.{name}" if which == "local" else name  # a teacher's two adapters are no copies
                p.data.copy_(value_of(name, p, given, fresh(client, drawn_as, p)))
        yield found
    finally:
        for name, layer in layers.items():
            client.classifier.set_submodule(name, layer.last)
        client.model.requires_grad_(True)


def adapters(layers: Mapping[str, DualAdapter], which: str) -> dict[str, nn.Parameter]:
    """The parameters of one of the three adapters of all layers, `3.output.down.weight`."""
    return {
        f"{place}.{name}": p
        for place, layer in layers.items()
        for name, p in layer.get_submodule(which).named_parameters()
    }


def fresh(client: Client, name: str, parameter: Tensor) -> Tensor:
    """A first value, the same at every client: weights N(0, 0.02), biases zero."""
    if name.endswith("bias"):
        return torch.zeros(parameter.shape)
    return torch.erfinv(drawn(client, name, parameter.shape, 1 - 1e-6)) * 2**0.5 * 0.02
