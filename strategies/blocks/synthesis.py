"""Synthetic samples of a round (eq 2 of arXiv 2510.12254): which classes are drawn, which samples tune the model, and
a reservoir of earlier samples, so that the T2I model does not forget them (a choice of ours; size 0: off).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from florilegium import seeds
from florilegium.data.datasets import Classes
from florilegium.diffusion.generator import Generator
from florilegium.diffusion.tuning import TuneSettings, TuneTexts
from florilegium.learning.averaging import named, part
from florilegium.protocol.payloads import Samples


def draw_classes(classes: int, samples: int, sampling: str, seed: int, r: int) -> Tensor:
    """[N] class ids for round `r`: `uniform` independent draws, or `stratified` (each class floor or ceil of N / C)."""
    random = seeds.generator(seed, "classes", r)
    if sampling == "uniform":
        return torch.randint(classes, (samples,), generator=random)
    whole = torch.arange(classes).repeat(samples // classes)
    rest = torch.randperm(classes, generator=random)[: samples % classes]
    drawn = torch.cat([whole, rest])
    return drawn[torch.randperm(samples, generator=random)]


def filled(
    drawn_N: Tensor, label_N: Tensor, keep_N: Tensor, share: float, votes_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(labels [N], used [N]): the kept samples and, where a class has fewer than `share` of its drawn ones, others.

    A class that no client votes for would be forgotten by the T2I model. What fills it has its drawn class as label
    and no representation. Samples with more of `votes_N`, the votes for their drawn class, are taken first; without
    votes, and where votes are equal, the first in order.
    """
    labels_N, used_N = torch.where(keep_N, label_N, drawn_N), keep_N.clone()
    best_first_N = torch.arange(len(drawn_N)) if votes_N is None else votes_N.argsort(descending=True, stable=True)
    for c in drawn_N.unique():
        lacking = int(share * (drawn_N == c).sum()) - int((labels_N[used_N] == c).sum())
        spare = best_first_N[((drawn_N == c) & ~used_N)[best_first_N]]
        used_N[spare[: max(lacking, 0)]] = True
    return labels_N, used_N


def mean_bytes(samples: Samples) -> float:
    """Mean length of the encoded samples."""
    pieces = samples.images or [t.encode() for t in samples.texts]
    return sum(map(len, pieces)) / max(len(pieces), 1)


# -- replay ------------------------------------------------------------------------------------------------------------


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

    def tune(
        self,
        generator: Generator,
        classes: Classes,
        settings: TuneSettings,
        rounds: tuple[int, int],
        seed: int,
        images: Tensor,
        labels: Tensor,
        captions: list[str],
        fused: Tensor,
    ) -> dict[str, float]:
        """Tune the generator on these samples and the kept ones, in round `rounds[0]` of `rounds[1]`."""
        images, labels, captions, fused = self.mixed(images, labels, captions, fused, (seed, rounds[0]))
        prompts = [classes.prompt(c) for c in labels.tolist()]
        return generator.finetune(
            images,
            TuneTexts.of(prompts, captions, settings.text),
            fused if fused.shape[-1] else None,
            settings,
            rounds=rounds,
            seed=seeds.seed_of(seed, "t2i", rounds[0]),
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return dict(self.tensors), {"captions": self.captions}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.tensors, self.captions = dict(tensors), list(meta["captions"])


def joint_state(generator: Generator, replay: Reservoir) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of a method that tunes a generator with a reservoir."""
    tensors, meta = generator.state()
    kept, texts = replay.state()
    return {**named("generator", tensors), **named("replay", kept)}, {"generator": meta, "replay": texts}


def restore_joint(generator: Generator, replay: Reservoir, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Put back what `joint_state` gave; other names are left alone."""
    generator.restore(part(tensors, "generator"), meta["generator"])
    replay.restore(part(tensors, "replay"), meta["replay"])
