"""FedMBridge, server side (Chen and Zhang, ICML 2024), reconstructed from the abstract: docs/methods/modules.md.

Client side: client_app/methods/modules/fedmbridge.py. Down: a bridge and a head made for each client. Up: both after
the local training. Clients may have any architecture. Axes: K clients, E width of a client's vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from florilegium import seeds
from florilegium.config.fields import section, setting
from florilegium.federation.federation import Client, Federation, Reply
from florilegium.learning.averaging import named, part
from florilegium.protocol.payloads import Adapters
from strategies.blocks.rounds import Rounds
from strategies.blocks.weights import WEIGHTINGS, figures, group_of, group_starts, shares, trained
from strategies.modules.hypernetwork import Graph, HyperNetwork


@section
class FedMBridgeSettings:
    """The hypernetwork, and how it learns from what clients trained."""

    width: int = setting(32, "width of the graph network and of what decoders read", low=1, high=100_000)
    client_width: int = setting(16, "numbers in a client's own vector", low=1, high=100_000)
    optimizer: str = setting(
        "adam",
        "adam | sgd; sgd with steps=1 is the rule phi <- phi + rate J^T (theta_trained - theta_made)",
        choices=("adam", "sgd"),
    )
    steps: int = setting(
        50, "steps of the hypernetwork in a round towards the bridges that came (our choice)", low=1, high=100_000
    )
    rate: float = setting(1e-3, "learning rate of the hypernetwork", low=0, high=10)
    client_rate: float = setting(5e-3, "learning rate of the clients' vectors", low=0, high=10)
    weight_decay: float = setting(
        0.0,
        "decay of the decoders' weights, not of their biases, in the steps: what is left of a client alone fades, and "
        "what all clients have in common stays (our choice)",
        low=0,
        high=1e4,
    )
    weighting: str = setting(
        "examples", "p_k, the weight of a client: examples (n_k / n) | uniform (all equal)", choices=WEIGHTINGS
    )


class FedMBridge(Rounds):
    """A hypernetwork makes each client's bridge, and learns from what the client made of it."""

    Settings = FedMBridgeSettings

    def __init__(self, settings: FedMBridgeSettings, resources: Any) -> None:
        super().__init__(settings, resources)
        self.seed = resources.seed
        self.graphs: dict[str, Graph] = {}
        self.vectors: dict[int, nn.Parameter] = {}  # of each client that was ever asked

    def begin(self, federation: Federation) -> dict[str, float]:
        starts = group_starts(federation, Adapters)
        self.build({group: {n: tuple(v.shape) for n, v in start.items()} for group, start in starts.items()})
        return self.round(0, federation)  # the clients' first training

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        with torch.no_grad():
            down = {client.id: self.made(client) for client in federation.cohort}
        replies = trained(federation, lambda client: down[client.id], kind=Adapters, late=False)
        learnt = self.learn(replies, shares(replies, self.settings.weighting))
        size = sum(v.numel() for x in replies for v in x.body.tensors.values()) / len(replies)
        return figures(replies) | learnt | {"bytes/formula_up": 4 * size, "bytes/formula_down": 4 * size}

    def judged_model(self) -> None:
        """No global model: each client is judged with its own, the bridge that it trained included."""
        return None

    # -- the hypernetwork --------------------------------------------------------------------------------------------

    def build(self, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> None:
        """A fresh hypernetwork for the tensors of each group."""
        s = self.settings
        self.graphs = {group: Graph(group, dict(those)) for group, those in shapes.items()}
        self.hyper = HyperNetwork(self.graphs, s.width, s.client_width, self.seed)

    def vector(self, client: int) -> nn.Parameter:
        """c_k [E]: drawn when the client is first asked."""
        if client not in self.vectors:
            drawn = torch.randn(self.settings.client_width, generator=seeds.generator(self.seed, "client", client))
            self.vectors[client] = nn.Parameter(drawn)
        return self.vectors[client]

    def made(self, client: Client) -> dict[str, Tensor]:
        """theta_k: the bridge and the head of a client; none for a group that was not there at the start."""
        group = group_of(client)
        return self.hyper(group, self.vector(client.id)) if group in self.graphs else {}

    def learn(self, replies: Sequence[Reply], p_K: Sequence[float]) -> dict[str, float]:
        """Steps down sum_k p_k |made - trained|^2 / 2; that distance before and after them."""
        s = self.settings
        own = [decoder.weight for decoder in self.hyper.decoders.values()]
        rest = [p for p in self.hyper.parameters() if not any(p is weight for weight in own)]
        groups = [
            {"params": own, "lr": s.rate, "weight_decay": s.weight_decay},
            {"params": rest, "lr": s.rate},
            {"params": [self.vector(x.client.id) for x in replies], "lr": s.client_rate},
        ]
        stepper = torch.optim.AdamW(groups, weight_decay=0.0) if s.optimizer == "adam" else torch.optim.SGD(groups)
        far = self.distance(replies, p_K)
        found = {"bridge/distance": far.item()}
        for _ in range(s.steps):
            stepper.zero_grad(set_to_none=True)
            far.backward()
            stepper.step()
            far = self.distance(replies, p_K)
        return found | {"bridge/left": far.item()}

    def distance(self, replies: Sequence[Reply], p_K: Sequence[float]) -> Tensor:
        """sum_k p_k |made_k - trained_k|^2 / 2."""
        each = []
        for x, p in zip(replies, p_K, strict=True):
            made = self.made(x.client)
            apart = [(made[name] - value).square().sum() for name, value in x.body.tensors.items()]
            each.append(p / 2 * torch.stack(apart).sum())
        return torch.stack(each).sum()

    # -- checkpoint --------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        hyper = {name: value.detach().clone() for name, value in self.hyper.state_dict().items()}
        vectors = {str(client): vector.detach().clone() for client, vector in self.vectors.items()}
        shapes = {group: {n: list(s) for n, s in graph.shapes.items()} for group, graph in self.graphs.items()}
        return named("hyper", hyper) | named("client", vectors), {"shapes": shapes}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.build({group: {n: tuple(s) for n, s in those.items()} for group, those in meta["shapes"].items()})
        self.hyper.load_state_dict(part(tensors, "hyper"))
        self.vectors = {int(k): nn.Parameter(v.clone()) for k, v in part(tensors, "client").items()}
