"""Adapters of other models in a frozen decoder: h + out(norm(A(in(h)))) behind the last map of its attention layers.

An adapter A comes from a transformer or a residual network of another width, and stays as it came. `in` and `out` lead
from the decoder's width to the adapter's and back; they alone are trained, and `out` is zero at first. `norm` brings
what A says to mean 0 and deviation 1, because a fresh adapter says 1e-3 of what it reads. Where the
adapters stand, and these two maps, are our choice (docs/methods/modules.md; arXiv 2510.12254, Table VII).

Axes: Q positions, W width of a decoder's layer, H width of an adapter, R its inner width, L adapters of a chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from florilegium import seeds

PARTS = ("down.weight", "down.bias", "up.weight", "up.bias")  # [R, H], [R], [H, R], [H]
FIXED = "/fixed"  # how the name of a tensor ends that is kept and not trained
AdapterValues = Mapping[str, Tensor]
Chain = Sequence[AdapterValues]  # the adapters of one model, the first layer's first


class Inserted(nn.Module):
    """A layer's last map, and adapters behind it: [..., W] -> [..., W]."""

    def __init__(self, last: nn.Module, width: int, adapters: Sequence[AdapterValues]) -> None:
        super().__init__()
        self.last = last
        self.adapters, self.into, self.out = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for values in adapters:
            inner, theirs = values["down.weight"].shape
            adapter = nn.ModuleDict({"down": nn.Linear(theirs, inner), "up": nn.Linear(inner, theirs)})
            self.adapters.append(adapter.requires_grad_(False))
            self.into.append(nn.Linear(width, theirs, bias=False))
            self.out.append(nn.Linear(theirs, width, bias=False))
            nn.init.zeros_(self.out[-1].weight)  # type: ignore[arg-type]
        self.load(adapters)

    def load(self, adapters: Sequence[AdapterValues]) -> None:
        """Take other values of the same shapes. ValueError where they do not fit."""
        if len(adapters) != len(self.adapters):
            raise ValueError(f"{len(adapters)} adapters for a layer that has {len(self.adapters)}")
        for mine, values in zip(self.adapters, adapters, strict=True):
            for name, own in mine.state_dict().items():
                if own.shape != values[name].shape:
                    raise ValueError(f"{name} of an adapter is {tuple(values[name].shape)}, not {tuple(own.shape)}")
                own.copy_(values[name])

    def forward(self, x: Tensor) -> Tensor:
        h = self.last(x)
        added = torch.zeros_like(h)
        each: Any = zip(self.adapters, self.into, self.out, strict=True)
        for adapter, into, out in each:
            inner = into(h.to(into.weight.dtype)).to(adapter["down"].weight.dtype)
            seen = adapter["up"](torch.relu(adapter["down"](inner)))
            added = added + out(layer_norm(seen, seen.shape[-1:]).to(out.weight.dtype)).to(h.dtype)
        return h + added


def insert(decoder: nn.Module, places: Sequence[str], chains: Sequence[Chain], seed: int) -> dict[str, Inserted]:
    """Put the adapters of every chain behind the modules `places`, in order; give the new modules by place.

    Of a chain of L adapters, place m of M gets adapter round(m (L - 1) / (M - 1)): the first the first, the last the
    last. ValueError without a place or an adapter.
    """
    if not places or not chains or not all(chains):
        raise ValueError(f"{len(chains)} chains of adapters for {len(places)} layers of the decoder")
    made = {}
    for m, place in enumerate(places):
        last: Any = decoder.get_submodule(place)
        with seeds.scoped(seed, "inserted", place):
            made[place] = Inserted(last, int(last.out_features), at_place(chains, m, len(places)))
        made[place].to(last.weight.device)
        decoder.set_submodule(place, made[place])
    return made


def at_place(chains: Sequence[Chain], place: int, places: int) -> list[AdapterValues]:
    """The adapter of each chain for a place among `places` ones."""
    share = place / (places - 1) if places > 1 else 1.0
    return [chain[round(share * (len(chain) - 1))] for chain in chains]


def removed(decoder: Any) -> Any:
    """The decoder without what was inserted, as its own library saves and reads it. It is changed in place."""
    for name, module in list(decoder.named_modules()):
        if isinstance(module, Inserted):
            decoder.set_submodule(name, module.last)
    return decoder


def as_tensors(chains: Sequence[Chain]) -> dict[str, Tensor]:
    """The chains for a checkpoint: `inserted.<chain>.<layer>.<part>/fixed`."""
    return {
        f"inserted.{c}.{n}.{part}{FIXED}": values[part].detach().cpu().clone()
        for c, chain in enumerate(chains)
        for n, values in enumerate(chain)
        for part in PARTS
    }


def from_tensors(tensors: Mapping[str, Tensor]) -> list[list[dict[str, Tensor]]]:
    """The chains that `as_tensors` wrote; none where there are none."""
    chains: dict[int, dict[int, dict[str, Tensor]]] = {}
    for name, value in tensors.items():
        if name.endswith(FIXED):
            _, c, n, part = name.removesuffix(FIXED).split(".", 3)
            chains.setdefault(int(c), {}).setdefault(int(n), {})[part] = value
    return [[chains[c][n] for n in sorted(chains[c])] for c in sorted(chains)]
