"""A network that makes the bridges of clients: one graph network over the layers of all architectures, and a vector of
each client (in the manner of arXiv 2103.04628, pFedHN, for graphs of layers).

Axes: V nodes of a graph, F features of a node, G width of the graph network, E width of a client's vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from florilegium import seeds

ROLES = ("body", "down", "up", "end")  # of a node: a client's body, the two maps of a bridge, its head or retrieval
SIDES = ("image", "text")
OF_NAME = 4  # numbers that stand for an architecture's name
FEATURES = len(ROLES) + len(SIDES) + 2 + OF_NAME
Shapes = Mapping[str, tuple[int, ...]]  # name of a made tensor -> its shape


@dataclass(frozen=True)
class Graph:
    """The layers of the clients of one group: body - down - up - end, for each side. `group` is modality and
    architecture, `shapes` are those of the tensors that are made."""

    group: str
    shapes: Shapes

    @cached_property
    def nodes(self) -> list[tuple[str, str]]:
        """(side, role) of each node; the end of all sides is one node."""
        sides = [side for side in SIDES if any(name.startswith(f"{side}.") for name in self.shapes)]
        return [(side, role) for side in sides for role in ROLES[:3]] + [("", "end")]

    @cached_property
    def near_VV(self) -> Tensor:
        """The mean over a node's neighbours, as a matrix."""
        at = {node: n for n, node in enumerate(self.nodes)}
        near_VV = torch.zeros(len(at), len(at))
        for side in {side for side, _ in self.nodes if side}:
            chain = [at[side, role] for role in ROLES[:3]] + [at["", "end"]]
            for a, b in zip(chain, chain[1:], strict=False):
                near_VV[a, b] = near_VV[b, a] = 1.0
        return near_VV / near_VV.sum(1, keepdim=True)

    @cached_property
    def features_VF(self) -> Tensor:
        """Role, side, logarithms of the two widths; of a body, numbers drawn for the architecture's name."""
        rows = []
        for side, role in self.nodes:
            wide = self.shapes.get(f"{side}.{role}.weight" if side else "head.weight", (1, 1))
            known = [float(role == one) for one in ROLES] + [float(side == one) for one in SIDES]
            sizes = [math.log2(n) / 10 for n in wide]
            name = torch.randn(OF_NAME, generator=seeds.generator("architecture", self.group)).tolist()
            rows.append(known + sizes + (name if role == "body" else [0.0] * OF_NAME))
        return torch.tensor(rows)

    def node_of(self, name: str) -> int:
        """The node that a tensor belongs to."""
        side, role = name.split(".")[:2]
        return self.nodes.index((side, role) if side in SIDES else ("", "end"))


class HyperNetwork(nn.Module):
    """theta_v = decoder[role, shape](tanh(W [h_v ; c_k])), h the graph network's vectors, c_k the client's vector."""

    def __init__(self, graphs: Mapping[str, Graph], width: int, client_width: int, seed: int) -> None:
        super().__init__()
        self.graphs = graphs
        with seeds.scoped(seed, "hypernetwork"):
            self.own = nn.ModuleList([nn.Linear(FEATURES, width), nn.Linear(width, width)])
            self.near = nn.ModuleList([nn.Linear(FEATURES, width, bias=False), nn.Linear(width, width, bias=False)])
            self.mix = nn.Linear(width + client_width, width)
            self.decoders = nn.ModuleDict()
            for graph in graphs.values():
                for name, shape in graph.shapes.items():
                    if (key := decoder_of(name, shape)) not in self.decoders:
                        self.decoders[key] = fresh_decoder(name, shape, width)

    def forward(self, group: str, client_E: Tensor) -> dict[str, Tensor]:
        """The tensors made for a client of a group, by name."""
        graph = self.graphs[group]
        h_VG = graph.features_VF
        for own, near in zip(self.own, self.near, strict=True):
            h_VG = torch.tanh(own(h_VG) + near(graph.near_VV @ h_VG))
        mixed_VG = torch.tanh(self.mix(torch.cat([h_VG, client_E.expand(len(h_VG), -1)], 1)))
        return {
            name: self.decoders[decoder_of(name, shape)](mixed_VG[graph.node_of(name)]).view(shape)
            for name, shape in graph.shapes.items()
        }


def decoder_of(name: str, shape: tuple[int, ...]) -> str:
    """Tensors of one role and shape have one decoder, whatever the modality: `down-weight-16x64`."""
    return f"{'-'.join(name.split('.')[-2:])}-{'x'.join(map(str, shape))}"


def fresh_decoder(name: str, shape: tuple[int, ...], width: int) -> nn.Linear:
    """A decoder that at first makes what a fresh layer has (`up` and biases: nearly zero), a little different for each
    client. It draws from torch's generators."""
    decoder = nn.Linear(width, math.prod(shape))
    nn.init.normal_(decoder.weight, std=0.01)
    bound = 0.0 if ".up." in name or name.endswith("bias") else shape[-1] ** -0.5
    nn.init.uniform_(decoder.bias, -bound, bound)
    return decoder
