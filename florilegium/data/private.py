"""The only door to personal data: what one client may see. Imported by client_app alone (a test holds it to that).

A client's rows come from its own node configuration (`data-path`, docs/data.md), or, with the embedded data, from its
part of the partition, where a partition with a domain shift also says which domain is the client's. Nothing here is
ever sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from florilegium.config.data import DataSettings
from florilegium.config.instances import from_text, to_text
from florilegium.config.settings import Settings
from florilegium.data import shift
from florilegium.data.datasets import (
    DataError,
    Rows,
    at_sites,
    classes_of,
    held_out,
    modality_rows,
    open_dataset,
    read_rows,
)
from florilegium.data.own.examination import examine
from florilegium.data.own.sources import OwnSettings
from florilegium.data.own.splits import split_rows
from florilegium.data.partition import dealt
from florilegium.data.stored_images import StoredImages, picked

HELD_OUT = ("validation", "test")  # splits that no client trains on


@dataclass(frozen=True)
class PrivateData:
    """A client's own training rows, and the held-out rows of its modality that it is judged on.

    Those are the same for all clients, unless each has a domain of its own and is judged on that (`judged: own`), or a
    site brings its own: `own` names the splits (test, validation) whose rows are the site's.
    """

    train: Rows
    validation: Rows
    test: Rows
    classes: tuple[str, ...]
    own: tuple[str, ...] = ()


@dataclass(frozen=True)
class Domain:
    """A client's domain: one `value` of the column `by` (None: any), and its pictures' shift, `kind` by `amount`."""

    by: str = "style"
    value: str | None = None
    kind: str = "none"
    amount: float = 0.0

    def shifted(self, rows: Rows) -> Rows:
        if self.kind == "none":
            return rows
        if isinstance(rows.images, StoredImages):
            return replace(rows, images=rows.images.through(lambda x: shift.shifted(x, self.kind, self.amount)))
        return replace(rows, images=shift.shifted(rows.images, self.kind, self.amount))


def open_private(conf: Settings, client: int, modality: str, node_config: Mapping[str, Any]) -> PrivateData:
    """The data of one client; decoded once in a process. DataError names the file and the row.

    With `test-path` or `validation-path` in the node configuration the client is judged on the site's own rows.
    """
    own = OwnSettings.of(node_config)
    if own is not None and not operators_rows(conf.data):
        return _at_site(conf, own, modality, node_config)
    names, side = tuple(classes_of(conf.data)), int(conf.data.image_size)
    data, domain = to_text(conf.data), Domain()
    if own is not None:
        train = _own(own, names, modality, side)
    else:
        mine, s = dealt(conf, client)
        domain = Domain(s["by"], mine.get("domain"), s["shift"] if "shift" in mine else "none", mine.get("shift", 0.0))
        train = _part(data, modality, tuple(mine["rows"]), domain)
        domain = domain if s["judged"] == "own" else Domain()
    validation, test = (
        _own(given, names, modality, side, split)
        if (given := OwnSettings.of(node_config, f"{split}-path"))
        else _judged(data, split, modality, domain)
        for split in HELD_OUT
    )
    brought = tuple(split for split in HELD_OUT if OwnSettings.of(node_config, f"{split}-path"))
    return PrivateData(train, validation, test, names, brought)


def operators_rows(data: DataSettings) -> bool:
    """Whether the rows of the settings' data set are on this machine. A site has none of the operator's files."""
    if at_sites(data):
        return False
    return (
        data.own
        or bool(data.hub or data.hub_domains)
        or data.name == "toy"
        or not data.path
        or Path(data.path).is_dir()
    )


def _at_site(conf: Settings, own: OwnSettings, modality: str, node_config: Mapping[str, Any]) -> PrivateData:
    """The data of a site that has nothing of the operator's: held-out rows are its own, given, split, or drawn."""
    classes, side = classes_of(conf.data), int(conf.data.image_size)
    rows = {"train": _own(own, tuple(classes), modality, side)}
    drawn: dict[str, float] = {}
    for split in reversed(HELD_OUT):
        if given := OwnSettings.of(node_config, f"{split}-path"):
            rows[split] = _own(given, tuple(classes), modality, side, split)
        elif (found := _own_split(own, tuple(classes), modality, side, split)) is not None:
            rows[split] = found
        else:
            drawn[split] = getattr(conf.data.split, split)
    if drawn:
        rows |= split_rows(rows["train"], classes, drawn, conf.data.split.seed)
    return PrivateData(rows["train"], rows["validation"], rows["test"], tuple(classes), HELD_OUT)


@lru_cache(maxsize=8)
def _own_split(own: OwnSettings, classes: tuple[str, ...], modality: str, side: int, split: str) -> Rows | None:
    """The rows of a split that the site's data have, None where they have no such split."""
    found = examine(own, classes, modality, side, split)
    return found.whole() if found.split == split else None


@lru_cache(maxsize=32)
def _part(data: str, modality: str, ids: tuple[int, ...], domain: Domain) -> Rows:
    private, where, side, place, workers = _dealt_from(data)
    if unknown := [i for i in ids if i not in where]:
        raise DataError(f"{place} has no row with id {unknown[0]}")
    # without a fingerprint of its own, the library hashes each selection, which takes longer than the rows
    mine = private.select([where[i] for i in ids], new_fingerprint=hashlib.sha256(str(ids).encode()).hexdigest()[:16])
    return domain.shifted(read_rows(mine, modality, side, place, workers=workers))


@lru_cache(maxsize=4)
def _dealt_from(data: str) -> tuple[Any, dict[int, int], int, str, int]:
    """The training rows that are dealt to clients, where each id is, the side of images, what the rows are called, and
    how many processes decode.

    Every client of a process takes its part of these.
    """
    conf = from_text(DataSettings, data)
    splits = open_dataset(conf)
    private = splits.private("train")
    where = {int(i): n for n, i in enumerate(private["id"][:])}
    return private, where, int(conf.image_size), f"{splits.place}/train", conf.workers


@lru_cache(maxsize=8)
def _judged(data: str, split: str, modality: str, domain: Domain) -> Rows:
    """The held-out rows of a domain."""
    conf = from_text(DataSettings, data)
    rows = held_out(conf, split, modality)
    if domain.value is not None:
        splits = open_dataset(conf)
        values = modality_rows(splits.private(split), modality)[domain.by][:]
        chosen = torch.tensor([n for n, value in enumerate(values) if str(value) == domain.value], dtype=torch.int64)
        if not len(chosen):
            raise DataError(f"{splits.place}/{split} has no row of {domain.by} {domain.value!r} to judge on")
        rows = replace(rows, ids=rows.ids[chosen], labels=rows.labels[chosen], images=picked(rows.images, chosen))
    return domain.shifted(rows)


@lru_cache(maxsize=4)
def _own(own: OwnSettings, classes: tuple[str, ...], modality: str, side: int, split: str = "train") -> Rows:
    """Rows of a site's own. OwnDataError names file and row of the first that is refused."""
    return examine(own, classes, modality, side, split).whole()
