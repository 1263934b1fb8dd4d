"""The public paired set: images with their texts, the same in the same order for the server and every client.

What travels are ids and the set's `order`, a hash of ids and content; whoever has another set refuses. Methods that
match features by position rest on it. Pairs for judging come from other splits, whose concepts no training row shows.
Axes: P pairs, S image side.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from florilegium import seeds
from florilegium.config.data import DataSettings, PublicSettings
from florilegium.config.instances import from_text, to_text
from florilegium.config.settings import Settings
from florilegium.data.datasets import DataError, Rows, Splits, held_out, modality_rows, open_dataset, read_rows
from florilegium.data.stored_images import StoredImages, picked
from florilegium.protocol import pixels
from florilegium.protocol.payloads import Samples

if TYPE_CHECKING:
    from datasets import Dataset

SHOWN = 16  # digits of a hash in a message
HASHED = 256  # images in memory at once


@dataclass(frozen=True)
class PublicPairs:
    """P pairs: ids [P], images uint8 [P, 3, S, S], texts (label and tags), labels [P]; `groups` [P] are equal for pairs
    that show or say the same, so that one may stand for the other in retrieval. Many images lie in a file."""

    ids: Tensor
    images: Any  # a tensor, or StoredImages
    texts: tuple[str, ...]
    labels: Tensor
    groups: Tensor
    order: str

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Tensor) -> PublicPairs:
        """The pairs of these rows [N], in this order."""
        texts = tuple(self.texts[n] for n in rows.tolist())
        order = hashlib.sha256(f"{self.order} {self.ids[rows].tolist()}".encode()).hexdigest()
        images = picked(self.images, rows)
        return PublicPairs(self.ids[rows], images, texts, self.labels[rows], self.groups[rows], order)

    def named(self, ids: Tensor) -> PublicPairs:
        """The pairs with these ids, in this order; the set itself when they are all of it. DataError names one that it
        has not."""
        if torch.equal(ids, self.ids):
            return self
        where = {i: row for row, i in enumerate(self.ids.tolist())}
        if unknown := [i for i in ids.tolist() if i not in where]:
            raise DataError(f"the public set has no pair with id {unknown[0]}")
        return self.select(torch.tensor([where[i] for i in ids.tolist()], dtype=torch.int64))

    def samples(self, modality: str, form: str = "png") -> Samples:
        """One side of the pairs as it travels to clients that have not the set."""
        if modality == "image":
            return Samples(self.ids, images=pixels.encode(self.images, form))
        return Samples(self.ids, texts=self.texts)


def open_public(conf: Settings, path: str | None = None) -> PublicPairs:
    """The public set of `conf.data`; decoded once in a process. `path` is where this machine keeps it, if elsewhere.

    Raises DataError when the data have no public rows, or fewer pairs than asked.
    """
    given, place = conf.data.public, path or conf.data.public.path
    return _open(_source(conf, place), bool(place), given.pairs, conf.seed if given.seed is None else given.seed)


def _source(conf: Settings, place: str | None) -> str:
    """The settings, as a text, of the data set whose public rows are meant: the run's own, or the one in `place`."""
    if not place:
        return to_text(replace(conf.data, public=PublicSettings(share=conf.data.public.share)))
    saved = any(Path(place, name).is_file() for name in ("dataset_dict.json", "state.json"))
    size, workers = conf.data.image_size, conf.data.workers
    if saved:
        return to_text(DataSettings(name="own", hub=place, image_size=size, workers=workers))
    return to_text(DataSettings(name="own", path=place, image_size=size, workers=workers))


def _everybodys(splits: Splits, split: str, apart: bool) -> Dataset:
    """The public rows of a split: of a set that lies apart and marks none, all of them. DataError."""
    rows = getattr(splits, split)
    return rows if apart and "part" not in rows.column_names else splits.public(split)


@lru_cache(maxsize=4)
def _open(data: str, apart: bool, pairs: int | None, seed: int) -> PublicPairs:
    conf = from_text(DataSettings, data)
    splits = open_dataset(conf)
    public = _everybodys(splits, "train", apart)
    if pairs is not None and pairs > len(public):
        raise DataError(f"data.public.pairs is {pairs}, but {splits.place}/train has {len(public)} public rows")
    chosen = torch.randperm(len(public), generator=seeds.generator(seed, "public pairs"))[:pairs].sort().values
    place = f"{splits.place}/train"
    rows = read_rows(public.select(chosen.tolist()), "pair", int(conf.image_size), place, workers=conf.workers)
    return as_pairs(rows)


def held_out_pairs(conf: Settings, split: str, part: str = "public") -> PublicPairs:
    """The pairs retrieval is judged on: of the `validation` or `test` split in the server's domain (`public`) or in the
    clients' (`private`). Those of the server are of the public set's own splits where it lies apart."""
    if part == "public" and (place := conf.data.public.path):
        return _held_out_apart(_source(conf, place), split)
    return _held_out(to_text(conf.data), split, part)


@lru_cache(maxsize=8)
def _held_out(data: str, split: str, part: str) -> PublicPairs:
    return as_pairs(held_out(from_text(DataSettings, data), split, "pair", part))


@lru_cache(maxsize=4)
def _held_out_apart(data: str, split: str) -> PublicPairs:
    conf = from_text(DataSettings, data)
    splits = open_dataset(conf)
    rows, place = modality_rows(_everybodys(splits, split, True), "pair"), f"{splits.place}/{split}"
    return as_pairs(read_rows(rows, "pair", int(conf.image_size), place, workers=conf.workers))


def as_pairs(rows: Rows) -> PublicPairs:
    """Rows of modality `pair`, each text with all its tags."""
    texts = tuple(", ".join([text, *tags]) for text, tags in zip(rows.texts, rows.tags, strict=True))
    order = hashed(rows.ids, rows.images, texts, rows.labels)
    return PublicPairs(rows.ids, rows.images, texts, rows.labels, rows.groups, order)


def hashed(ids_P: Tensor, images: Tensor | StoredImages, texts: tuple[str, ...], labels_P: Tensor) -> str:
    """SHA-256 over ids, images, texts and labels in their order."""
    digest = hashlib.sha256(f"{list(images.shape)}".encode())
    for tensor in ([ids_P], images.split(HASHED), [labels_P]):
        for part in tensor:
            digest.update(part.contiguous().numpy().tobytes())
    for text in texts:
        digest.update(f"{len(text)} {text}".encode())
    return digest.hexdigest()


def same_order(ours: PublicPairs, order: str, whose: str = "this client") -> None:
    """DataError with both hashes unless the two sides have one public set in one order."""
    if ours.order != order:
        raise DataError(
            f"the public set of {whose} is {ours.order[:SHOWN]}, the server's is {order[:SHOWN]}: other"
            " rows or another order (data.public must be the same on both sides)"
        )
