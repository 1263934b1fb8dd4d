"""Captions beside images that have nothing to do with a run's data: what the T2I model is judged on in general.

Axes: N captions, S side.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from florilegium import assets, seeds
from florilegium.config.data import DataSettings
from florilegium.data.datasets import SPLITS, DataError, Splits, open_dataset, undecoded
from florilegium.data.decoding import decoded_rows
from florilegium.data.stored_images import Pictures


@dataclass(frozen=True)
class Captioned:
    """N captions, each of another picture, and the pictures uint8 [N, 3, S, S], cut to their middle square."""

    texts: list[str]
    images: Any  # a tensor, or StoredImages where they are many


def open_captioned(place: str, split: str, most: int, side: int, seed: int, workers: int = 0) -> Captioned:
    """At most `most` captions of a split (`all`: of all three), drawn by the seed; of each picture the first caption.

    `place` is an embedded data set, a directory in a layout of docs/full-size.md, or a hub's id. Where a data set marks
    public rows, they alone are taken. DataError is one line.
    """
    splits = open_dataset(_settings(place))
    rows: list[tuple[str, int, str]] = []  # split, row, caption
    for name in SPLITS if split == "all" else (split,):
        rows += [(name, n, text) for n, text in _first_captions(splits, name)]
    if len(rows) < 2:
        raise DataError(f"evaluation.generic.data: {place} has {len(rows)} pictures with captions in {split}")
    order = torch.randperm(len(rows), generator=seeds.generator(seed, "generic captions"))[:most].sort().values
    chosen = [rows[n] for n in order.tolist()]
    pictures = Pictures(side)
    for name in SPLITS:
        those = [n for split_name, n, _ in chosen if split_name == name]
        table = undecoded(getattr(splits, name).select(those))
        for n, image in zip(those, decoded_rows(table, len(those), side, workers, crop=True), strict=True):
            if isinstance(image, str):
                raise DataError(f"{splits.place}/{name}, row {n}: {image}")
            pictures.append(image)
    return Captioned([text for _, _, text in chosen], pictures.images())


def _settings(place: str) -> DataSettings:
    if (path := Path(place).expanduser()).is_dir():
        saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
        return DataSettings(name="generic", hub=str(path)) if saved else DataSettings(name="generic", path=str(path))
    if "/" in place and not place.startswith((".", "/", "~")) and place.count("/") == 1:
        return DataSettings(name="generic", hub=place)
    if place != "toy" and "/" not in place:
        assets.path("data", place)
    elif place != "toy":
        raise DataError(f"evaluation.generic.data: there is no directory {place}")
    return DataSettings(name=place)


def _first_captions(splits: Splits, split: str) -> list[tuple[int, str]]:
    """(row, caption) of each picture that everybody may have, in the order of the rows."""
    table = getattr(splits, split)
    usable = np.ones(len(table), dtype=bool)
    for column, wanted in (("part", "public"), ("modality", None)):
        if column in table.column_names:
            cells = np.array(table[column][:])
            usable &= cells == wanted if wanted else cells != "text"
    concepts = table["concept"][:] if "concept" in table.column_names else range(len(table))
    texts, seen, found = table["text"][:], set(), []
    for n in np.flatnonzero(usable).tolist():
        if concepts[n] not in seen and texts[n]:
            seen.add(concepts[n])
            found.append((n, str(texts[n])))
    return found
