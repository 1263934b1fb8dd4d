"""From a layer's map to a short vector: the principal components of its channels, then a pool over its positions.

One projection is fitted once and shared by all clients, so that coordinate q means the same everywhere.
Axes: B rows, P positions of a map, R tokens (positions of many maps), C channels, Q components, D = sum of Q.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from florilegium import seeds

PARTS = ("mean", "components", "explained")


@dataclass(frozen=True)
class Axes:
    """One layer's directions: mean [C], components [Q, C] and each one's share of the variance [Q] (random: 0)."""

    mean: Tensor
    components: Tensor
    explained: Tensor


class Projection:
    """`projection(maps, pool)`: the maps of the layers -> [B, D]. `explained`: layer -> share of its variance kept."""

    def __init__(self, axes: Mapping[str, Axes]) -> None:
        self.axes = dict(axes)

    @property
    def width(self) -> int:
        """D, what the layers' widths sum to."""
        return sum(len(a.components) for a in self.axes.values())

    @property
    def explained(self) -> dict[str, float]:
        return {name: float(a.explained.sum()) for name, a in self.axes.items()}

    @property
    def version(self) -> str:
        """A hash of every number in it."""
        return fingerprint(self.tensors())

    @classmethod
    def fitted(cls, tokens: Mapping[str, Tensor], dims: Sequence[int], seed: int) -> Projection:
        """Axes of each layer's tokens [R, C]; seeded random ones where there are fewer than Q tokens or channels."""
        axes = {}
        for (name, tokens_RC), dim in zip(tokens.items(), dims, strict=True):
            if min(tokens_RC.shape) < dim:
                _say(
                    f"the PCA of layer {name} wants {dim} components, but has {len(tokens_RC)} tokens of "
                    f"{tokens_RC.shape[1]} channels: a random projection takes its place"
                )
                axes[name] = random_axes(tokens_RC, dim, seed, name)
            else:
                axes[name] = principal_axes(tokens_RC, dim)
        return cls(axes)

    def tensors(self) -> dict[str, Tensor]:
        """Everything in it, as `of` takes it: `<layer>.mean`, `<layer>.components`, `<layer>.explained`."""
        return {f"{name}.{part}": getattr(a, part) for name, a in self.axes.items() for part in PARTS}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Projection:
        """What `tensors` gave, from anywhere. ValueError names the tensor that is missing or does not fit."""
        names = sorted({name.partition(".")[0] for name in tensors})
        if not names or sorted(tensors) != sorted(f"{name}.{part}" for name in names for part in PARTS):
            raise ValueError(f"a projection has {', '.join(PARTS)} for each layer, not {', '.join(sorted(tensors))}")
        axes = {name: Axes(*(tensors[f"{name}.{part}"].float() for part in PARTS)) for name in names}
        for name, a in axes.items():
            if a.components.ndim != 2 or a.components.shape != (*a.explained.shape, *a.mean.shape):
                raise ValueError(
                    f"{name}.components is {tuple(a.components.shape)} beside a mean of "
                    f"{tuple(a.mean.shape)} and {tuple(a.explained.shape)} shares of variance"
                )
            if not all(t.isfinite().all() for t in (a.mean, a.components, a.explained)):
                raise ValueError(f"the projection of {name} has NaN or infinite values")
        return cls(axes)

    def to(self, device: str) -> Projection:
        return Projection(
            {name: Axes(*(getattr(a, part).to(device) for part in PARTS)) for name, a in self.axes.items()}
        )

    def __call__(self, maps: Mapping[str, Tensor], pool: str) -> Tensor:
        """Maps [B, P, C] of the fitted layers -> [B, D]. ValueError where layers or channels are others."""
        return torch.cat([pooled(map_BPQ, pool) for map_BPQ in self._onto_axes(maps)], -1)

    def on_grid(self, maps: Mapping[str, Tensor], side: int) -> Tensor:
        """Maps [B, P, C] of the fitted layers -> [B, D, G, G], each layer brought to G = `side` places. ValueError
        where layers or channels are others."""
        return torch.cat([gridded(map_BPQ, side) for map_BPQ in self._onto_axes(maps)], 1)

    def _onto_axes(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """Each layer's map in its own components, [B, P, Q]."""
        found, fitted = ({k: v.shape[-1] for k, v in maps.items()}, {k: len(a.mean) for k, a in self.axes.items()})
        if found != fitted:
            raise ValueError(f"the projection was fitted on {fitted} (layer: channels), these maps are {found}")
        return [(maps[name] - a.mean) @ a.components.T for name, a in self.axes.items()]


def gridded(map_BPQ: Tensor, side: int) -> Tensor:
    """A square map [B, P, Q] -> [B, Q, G, G]: means of finer places, or values between coarser ones."""
    wide = round(map_BPQ.shape[1] ** 0.5)
    map_BQhw = map_BPQ.transpose(1, 2).unflatten(-1, (wide, wide))
    if wide >= side:
        return adaptive_avg_pool2d(map_BQhw, side)
    return interpolate(map_BQhw, size=(side, side), mode="bilinear", align_corners=False)


def pooled(map_BPQ: Tensor, pool: str) -> Tensor:
    """[B, P, Q] -> [B, Q]: `l2norm` (a component's sign is lost), `rms` (its size does not grow with P), `gap`."""
    if pool == "gap":
        return map_BPQ.mean(1)
    norm_BQ = map_BPQ.norm(dim=1)
    return norm_BQ if pool == "l2norm" else norm_BQ / map_BPQ.shape[1] ** 0.5


def principal_axes(tokens_RC: Tensor, dim: int) -> Axes:
    """The `dim` directions of largest variance, largest first; each one's largest entry is positive."""
    tokens = tokens_RC.double()
    mean_C = tokens.mean(0)
    values_C, vectors_CC = torch.linalg.eigh((tokens - mean_C).T.cov())
    components = vectors_CC.flip(1).T[:dim]
    peak = components.gather(1, components.abs().argmax(1, keepdim=True))
    values_C = values_C.clamp_min(0)
    explained = values_C.flip(0)[:dim] / values_C.sum().clamp_min(1e-30)
    return Axes(mean_C.float(), (components * peak.sign()).float().contiguous(), explained.float())


def random_axes(tokens_RC: Tensor, dim: int, seed: int, name: str) -> Axes:
    """Gaussian directions that keep squared lengths on average (Johnson-Lindenstrauss)."""
    channels = tokens_RC.shape[1]
    mean_C = tokens_RC.float().mean(0) if len(tokens_RC) else torch.zeros(channels)
    drawn = torch.randn(dim, channels, generator=seeds.generator(seed, "random projection", name))
    return Axes(mean_C, drawn / dim**0.5, torch.zeros(dim))


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and numbers, as 32 hexadecimal digits."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        whole.update(values.numpy().tobytes())
    return whole.hexdigest()[:32]


@cache
def _say(line: str) -> None:
    """Once per process: clients of one simulation share it."""
    logging.getLogger("flwr").warning(line)
