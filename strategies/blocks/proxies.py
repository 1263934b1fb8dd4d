"""Proxies: labelled images that are nobody's private ones, for a server that looks at images of each class.

Axes: N images, R public rows, C classes, S image side.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from florilegium import seeds
from florilegium.data.datasets import read_rows
from florilegium.runs import files

FORMAT = 1  # raised whenever the same settings would draw other images


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


@dataclass(frozen=True)
class Drawer:
    """Where generated images are kept: a folder, and the hash of the weights of the generator that draws them."""

    folder: Path
    weights: str


def proxies(source: str, per_class: int, resources: Any, seed: int, drawer: Drawer | None = None) -> Proxies:
    """At most `per_class` images of each class, the same for the same seed; `source` is public or generated.

    Generated images are kept in `drawer` and read from there by the next run with the same generator and prompts.
    """
    count = len(resources.classes)
    if source == "generated":
        labels = torch.arange(count).repeat_interleave(per_class)
        return Proxies(drawn(labels, resources, seed, drawer), labels, source)
    where, labels_R = public_rows(resources), public_labels(resources)
    order = torch.randperm(len(labels_R), generator=seeds.generator(seed, "proxies"))
    chosen = torch.cat([order[labels_R[order] == c][:per_class] for c in range(count)]).sort().values
    table = resources.splits.train.select(where[chosen.numpy()])
    data, place = resources.conf.data, f"{resources.splits.place}/train"
    rows = read_rows(table, "image", int(data.image_size), place, workers=data.workers)
    return Proxies(rows.images, rows.labels, source)


def drawn(labels_N: Tensor, resources: Any, seed: int, drawer: Drawer | None) -> Tensor:
    """uint8 [N, 3, S, S]: what the generator draws for these classes."""
    prompts = [resources.classes.prompt(c) for c in labels_N.tolist()]
    noise = [seeds.seed_of(seed, "proxies", n) for n in range(len(labels_N))]
    if drawer is None:
        return resources.generator().synthesize(prompts, noise)
    told = [FORMAT, drawer.weights, str(resources.conf.diffusion), prompts, seed]
    path = drawer.folder / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]}.safetensors"
    try:
        return files.load(path)[0]["images"]
    except Exception:  # not there, or torn: safetensors has its own error classes
        images: Tensor = resources.generator().synthesize(prompts, noise)
        files.save(path, {"images": images.contiguous()})
        return images


def public_rows(resources: Any) -> np.ndarray:
    """Positions of the training rows that are public."""
    train = resources.splits.train
    if "part" not in train.column_names:
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.array(train["part"][:]) == "public")


def public_labels(resources: Any) -> Tensor:
    """Their labels."""
    return torch.from_numpy(np.array(resources.splits.train["label"][:], np.int64)[public_rows(resources)])
