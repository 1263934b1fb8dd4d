"""DisentAFL, client side (Chen and Zhang, AAAI 2024), reconstructed from the paper's abstract: docs/methods/modules.md.

Server side: strategies/modules/averaged_modules.py. Down and up: the experts that the client owns. Body, gates and head
stay. Axes: B batch, D representation width, R width of an expert, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from client_app import evaluation
from client_app.batches import Batch, PairBatch
from client_app.blocks.modules import PART, Adapter, Parameters, behind_projections, drawn, value_of, values
from client_app.blocks.own_model import OwnModelSettings, train_objective
from client_app.blocks.training import task_terms
from client_app.client import Client
from florilegium.config.fields import section, setting
from florilegium.learning.averaging import named, part
from florilegium.protocol.payloads import Adapters, Report

SHARED = "shared"
TASKS = {"image": "classification", "text": "classification", "pair": "retrieval"}  # of clients of a modality


@section
class DisentAFLClientSettings(OwnModelSettings):
    """The local training, the experts, and what holds them apart."""

    reduction: int = setting(4, "the representation's width over an expert's", low=1, high=10_000)
    orthogonality: float = setting(
        0.5, "weight of the mean squared cosine between the hidden vectors of two experts", low=0, high=1e4
    )


class Experts(nn.Module):
    """z [B, D] -> z plus what four experts say, mixed by gates of two stages.

    The first gate chooses between what all modalities share and what is the side's own, the second, for each of these,
    between what all tasks share and what is the task's own. `hidden` holds the experts' hidden vectors of the last
    batch.
    """

    def __init__(self, side: str, task: str, width: int, experts: Mapping[str, Adapter]) -> None:
        super().__init__()
        self.keys = [(modality, own) for modality in (SHARED, side) for own in (SHARED, task)]
        self.order = [experts[f"{modality}.{own}"] for modality, own in self.keys]
        self.experts = nn.ModuleList(self.order)
        self.modality_gate, self.task_gate = nn.Linear(width, 2), nn.Linear(width, 4)
        for gate in (self.modality_gate, self.task_gate):  # all experts count the same at first
            nn.init.zeros_(gate.weight)
            nn.init.zeros_(gate.bias)
        self.hidden: list[Tensor] = []

    def forward(self, z_BD: Tensor) -> Tensor:
        by_modality_B2 = self.modality_gate(z_BD).softmax(-1)
        by_task_B22 = self.task_gate(z_BD).unflatten(-1, (2, 2)).softmax(-1)
        weight_BE = (by_modality_B2[..., None] * by_task_B22).flatten(-2)
        self.hidden = [expert.down(z_BD) for expert in self.order]
        said_BED = torch.stack(
            [expert.up(torch.relu(h)) for expert, h in zip(self.order, self.hidden, strict=True)], dim=-2
        )
        return z_BD + (weight_BE[..., None] * said_BED).sum(-2)

    def overlap(self) -> Tensor:
        """The mean over the pairs of experts and the last batch of the squared cosine of their hidden vectors."""
        unit = [normalize(h, dim=-1) for h in self.hidden]
        return torch.stack([(a * b).sum(-1).square().mean() for a, b in combinations(unit, 2)]).mean()


class DisentAFLClient:
    """Trains its own model with experts inside; each expert is averaged among the clients that own one of its key."""

    Settings = DisentAFLClientSettings

    def __init__(self, settings: DisentAFLClientSettings) -> None:
        self.settings = settings

    def train(self, client: Client, down: Adapters) -> Adapters:
        kept = (client.memory.read(PART) or ({}, {}))[0]
        experts = self.experts(client, down.tensors)
        with inside(client, experts, part(kept, "gates")) as towers:
            figures = self.learn(client, towers) if down.tensors else {}  # empty: the server asks for a fresh start
            up, gates = values(parameters(experts)), values(gates_of(towers))
        client.memory.write(PART, named("experts", up) | named("gates", gates))
        return Adapters(up, client.examples, figures)

    def evaluate(self, client: Client) -> Report:
        kept = (client.memory.read(PART) or ({}, {}))[0]
        with inside(client, self.experts(client, part(kept, "experts")), part(kept, "gates")):
            return evaluation.evaluate(client)

    def learn(self, client: Client, towers: Mapping[str, Experts]) -> dict[str, float]:
        """Private epochs on the client's task and, weighted, the overlap of the experts."""

        def objective(batch: Batch | PairBatch) -> dict[str, Tensor]:
            terms = task_terms(client, batch)
            apart = torch.stack([tower.overlap() for tower in towers.values()]).mean()
            return terms | {"orthogonality": self.settings.orthogonality * apart}

        return train_objective(client, self.settings, objective)

    def experts(self, client: Client, given: Mapping[str, Tensor]) -> dict[str, Adapter]:
        """By key, `image.classification`, the experts that this client owns, with the given values.

        Without any they are drawn from the run's seed, the same at all clients, and say nothing: `up` is zero.
        """
        task, inner = TASKS[client.modality], max(1, client.width // self.settings.reduction)
        sides = ("image", "text") if client.modality == "pair" else (client.modality,)
        keys = [f"{modality}.{own}" for modality in (SHARED, *sides) for own in (SHARED, task)]
        made = {key: Adapter(client.width, inner).to(client.device) for key in keys}
        for name, p in parameters(made).items():
            silent = ".up." in name or name.endswith("bias")
            start = torch.zeros(p.shape) if silent else drawn(client, name, p.shape, p.shape[-1] ** -0.5)
            p.data.copy_(value_of(name, p, given, start))
        return made


@contextmanager
def inside(client: Client, experts: Mapping[str, Adapter], gates: Mapping[str, Tensor]) -> Iterator[dict[str, Experts]]:
    """Inside, the experts follow the client's projections, with the given gates; gives them by side."""
    task = TASKS[client.modality]
    with behind_projections(client, lambda side: Experts(side, task, client.width, experts)) as towers:
        for name, p in gates_of(towers).items():
            p.data.copy_(value_of(name, p, gates, p.data))
        yield towers


def parameters(experts: Mapping[str, Adapter]) -> Parameters:
    """The parameters of all experts, `image.classification.down.weight`."""
    return {f"{key}.{name}": p for key, expert in experts.items() for name, p in expert.named_parameters()}


def gates_of(towers: Mapping[str, Experts]) -> Parameters:
    """The parameters of the gates, `image.modality_gate.weight`."""
    return {
        f"{side}.{name}": p
        for side, tower in towers.items()
        for name, p in tower.named_parameters()
        if name.split(".")[0] != "experts"
    }
