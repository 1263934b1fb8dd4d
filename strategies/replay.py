"""A reservoir of earlier kept samples, so that the T2I model does not forget them (a choice of ours; size 0: off)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from florilegium import seeds


class Reservoir:
    """Keeps `size` samples of earlier rounds, each (image, label, caption, representation)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.tensors: dict[str, Tensor] = {}
        self.captions: list[str] = []

    def mixed(
        self, images: Tensor, labels: Tensor, captions: list[str], fused: Tensor, names: Sequence[object]
    ) -> tuple[Tensor, Tensor, list[str], Tensor]:
        """This round's samples followed by the kept ones; then this round's join the reservoir, chosen by `names`."""
        now = {"images": images, "labels": labels, "fused": fused}
        # a round without fusion has no representation to give; the reservoir then starts anew
        fits = bool(self.captions) and self.tensors["fused"].shape[1:] == fused.shape[1:]
        both = {k: torch.cat([v, self.tensors[k]]) if fits else v for k, v in now.items()}
        texts = captions + self.captions if fits else list(captions)
        if self.size:
            chosen = torch.randperm(len(texts), generator=seeds.generator(*names, "replay"))[: self.size]
            self.tensors = {k: v[chosen].clone() for k, v in both.items()}
            self.captions = [texts[i] for i in chosen.tolist()]
        return both["images"], both["labels"], texts, both["fused"]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.tensors), {"captions": self.captions}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.tensors, self.captions = dict(tensors), list(meta["captions"])
