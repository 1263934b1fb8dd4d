"""The distillation set: samples with the targets that a client learns on them, joined by id, kept in its memory.

A client keeps samples as its model reads them (pixels of its own image size, or texts). So it decodes an image once,
when the image arrives. Axes: N samples, D width, S image side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from florilegium.protocol import pieces
from florilegium.protocol.payloads import Targets

NO_IMAGES = torch.zeros(0, 3, 1, 1, dtype=torch.uint8)


class DistillationSetError(ValueError):
    """Targets do not fit the samples that were kept."""


@dataclass(frozen=True)
class Kept:
    """Samples as a client keeps them: ids [N], and uint8 images [N, 3, S, S] or N texts; the other side is empty, but
    for a retrieval client, which keeps both."""

    ids: Tensor
    images: Tensor = NO_IMAGES
    texts: tuple[str, ...] = ()

    def select(self, rows: Tensor) -> Kept:
        """The samples of these rows, in this order."""
        images = self.images[rows] if len(self.images) else self.images
        return Kept(self.ids[rows], images, tuple(self.texts[i] for i in rows.tolist()) if self.texts else ())


@dataclass(frozen=True)
class DistillationSet:
    """N samples, their labels [N] and fused representations [N, D], or [N, 0] if there are labels only."""

    samples: Kept
    labels: Tensor
    fused: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Tensor) -> DistillationSet:
        return DistillationSet(self.samples.select(rows), self.labels[rows], self.fused[rows])


def joined(a: DistillationSet, b: DistillationSet | None) -> DistillationSet:
    """`a` followed by `b`. Only `a` if b is missing or differs in whether it has representations; only `b` if a is
    empty, as then it has no width to differ in."""
    if b is None or not len(b):
        return a
    if not len(a):
        return b
    if a.fused.shape[1:] != b.fused.shape[1:]:
        return a
    samples = Kept(
        torch.cat([a.samples.ids, b.samples.ids]),
        torch.cat([a.samples.images, b.samples.images]),
        a.samples.texts + b.samples.texts,
    )
    return DistillationSet(samples, torch.cat([a.labels, b.labels]), torch.cat([a.fused, b.fused]))


def taught(samples: Kept, targets: Targets) -> DistillationSet:
    """Join targets to the kept samples by id. DistillationSetError names an id that was never sent, or sent twice."""
    where = {int(i): row for row, i in enumerate(samples.ids)}
    ids = targets.ids.tolist()
    if unknown := [i for i in ids if i not in where]:
        raise DistillationSetError(f"targets have id {unknown[0]}, which is not among the {len(where)} samples kept")
    if len(set(ids)) != len(ids):
        raise DistillationSetError("targets name one id twice")
    rows = torch.tensor([where[i] for i in ids], dtype=torch.int64)
    return DistillationSet(samples.select(rows), targets.labels, targets.representations)


def to_tensors(samples: Kept) -> dict[str, Tensor]:
    """Samples as flat tensors: ids, the images, and of texts the joined bytes and their lengths; what there is."""
    tensors = {"ids": samples.ids}
    if len(samples.images) or not samples.texts:
        tensors["images"] = samples.images
    if samples.texts:
        data, lengths = pieces.pack(samples.texts)
        tensors |= {"texts": torch.from_numpy(data.copy()), "lengths": torch.from_numpy(lengths)}
    return tensors


def from_tensors(tensors: dict[str, Tensor]) -> Kept:
    """Undo `to_tensors`."""
    if "texts" not in tensors:
        return Kept(tensors["ids"], tensors["images"])
    found = pieces.unpack(tensors["texts"].numpy(), tensors["lengths"].numpy())
    return Kept(tensors["ids"], tensors.get("images", NO_IMAGES), tuple(piece.decode() for piece in found))
