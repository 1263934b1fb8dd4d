"""Labelled images that are nobody's private ones: public rows of the data, or what the T2I model draws of each class.

Axes: N images, S side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from florilegium import seeds
from florilegium.data.datasets import read_rows


@dataclass(frozen=True)
class Proxies:
    """uint8 images [N, 3, S, S], their labels [N], and where they came from: public, generated or upload."""

    images: Tensor
    labels: Tensor
    source: str


def resolved(source: str, resources: Any) -> str:
    """`auto` is public where every class has a public row, else generated. ValueError for public that is not there."""
    lacking = [str(name) for c, name in enumerate(resources.classes) if c not in set(public_labels(resources).tolist())]
    if source == "public" and lacking:
        raise ValueError(
            f"guidance: {resources.conf.data.name} has no public row of {', '.join(lacking)}; choose generated or auto"
        )
    return source if source != "auto" else "generated" if lacking else "public"


def proxies(source: str, per_class: int, resources: Any, seed: int) -> Proxies:
    """At most `per_class` images of each class, the same for the same seed; `source` is public or generated."""
    count = len(resources.classes)
    if source == "generated":
        labels = torch.arange(count).repeat_interleave(per_class)
        prompts = [resources.classes.prompt(c) for c in labels.tolist()]
        noise = [seeds.seed_of(seed, "proxies", n) for n in range(len(labels))]
        return Proxies(resources.generator().synthesize(prompts, noise), labels, source)
    where, labels_R = public_rows(resources), public_labels(resources)
    order = torch.randperm(len(labels_R), generator=seeds.generator(seed, "proxies"))
    chosen = torch.cat([order[labels_R[order] == c][:per_class] for c in range(count)]).sort().values
    table = resources.splits.train.select(where[chosen.numpy()])
    rows = read_rows(table, "image", int(resources.conf.data.image_size), f"{resources.splits.place}/train")
    return Proxies(rows.images, rows.labels, source)


def public_rows(resources: Any) -> np.ndarray:
    """Positions of the training rows that are public."""
    train = resources.splits.train
    if "part" not in train.column_names:
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.array(train["part"][:]) == "public")


def public_labels(resources: Any) -> Tensor:
    """Their labels."""
    return torch.from_numpy(np.array(resources.splits.train["label"][:], np.int64)[public_rows(resources)])
