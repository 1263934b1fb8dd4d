"""The distillation set: samples with the targets that a client learns on them, joined by id, kept in its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from florilegium.protocol.payloads import Samples, Targets


class DistillationSetError(ValueError):
    """Targets do not fit the samples that were kept."""


@dataclass(frozen=True)
class DistillationSet:
    """N samples, their labels [N] and fused representations [N, D], or [N, 0] if there are labels only."""

    samples: Samples
    labels: Tensor
    fused: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Tensor) -> DistillationSet:
        return DistillationSet(select(self.samples, rows), self.labels[rows], self.fused[rows])


def select(samples: Samples, rows: Tensor) -> Samples:
    """The samples of these rows, in this order."""
    n = rows.tolist()
    return Samples(
        samples.ids[rows],
        images=tuple(samples.images[i] for i in n) if samples.images else (),
        texts=tuple(samples.texts[i] for i in n) if samples.texts else (),
    )


def joined(a: DistillationSet, b: DistillationSet | None) -> DistillationSet:
    """`a` followed by `b`. Only `a` if b is missing or differs in whether it has representations."""
    if b is None or not len(b) or a.fused.shape[1:] != b.fused.shape[1:]:
        return a
    samples = Samples(
        torch.cat([a.samples.ids, b.samples.ids]),
        images=a.samples.images + b.samples.images,
        texts=a.samples.texts + b.samples.texts,
    )
    return DistillationSet(samples, torch.cat([a.labels, b.labels]), torch.cat([a.fused, b.fused]))


def taught(samples: Samples, targets: Targets) -> DistillationSet:
    """Join targets to the kept samples by id. DistillationSetError names an id that was never sent, or sent twice."""
    where = {int(i): row for row, i in enumerate(samples.ids)}
    ids = targets.ids.tolist()
    if unknown := [i for i in ids if i not in where]:
        raise DistillationSetError(f"targets have id {unknown[0]}, which is not among the {len(where)} samples kept")
    if len(set(ids)) != len(ids):
        raise DistillationSetError("targets name one id twice")
    rows = torch.tensor([where[i] for i in ids], dtype=torch.int64)
    return DistillationSet(select(samples, rows), targets.labels, targets.representations)


def to_tensors(samples: Samples) -> dict[str, Tensor]:
    """Samples as flat tensors: ids, the joined bytes and their lengths."""
    kind = "texts" if samples.texts else "images"
    pieces = [p.encode() if isinstance(p, str) else p for p in getattr(samples, kind)]
    data = np.frombuffer(b"".join(pieces), np.uint8).copy()
    return {
        "ids": samples.ids,
        kind: torch.from_numpy(data),
        "lengths": torch.tensor([len(p) for p in pieces], dtype=torch.int64),
    }


def from_tensors(tensors: dict[str, Tensor]) -> Samples:
    """Undo `to_tensors`."""
    kind = "texts" if "texts" in tensors else "images"
    pieces = split(tensors[kind].numpy().tobytes(), tensors["lengths"].tolist())
    if kind == "texts":
        return Samples(tensors["ids"], texts=tuple(p.decode() for p in pieces))
    return Samples(tensors["ids"], images=tuple(pieces))


def split(data: bytes, lengths: Sequence[int]) -> list[bytes]:
    pieces, start = [], 0
    for length in lengths:
        pieces.append(data[start : start + length])
        start += length
    return pieces
