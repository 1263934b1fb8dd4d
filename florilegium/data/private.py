"""The only door to personal data: what one client may see. Imported by client_app alone (a test holds it to that).

A client's rows come from its own node configuration (`data-path`), or, with the embedded data, from its part of the
partition. Nothing here is ever sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from florilegium.data.datasets import DataError, Rows, held_out, modality_rows, open_dataset, read_rows
from florilegium.data.partition import partition


@dataclass(frozen=True)
class PrivateData:
    """A client's own training rows, and the held-out rows of its modality that every client is judged on."""

    train: Rows
    validation: Rows
    test: Rows
    classes: tuple[str, ...]


def open_private(conf: DictConfig, client: int, modality: str, node_config: Mapping[str, Any]) -> PrivateData:
    """The data of one client; decoded once in a process. DataError names the file and the row."""
    own = str(node_config.get("data-path", ""))
    names = tuple(open_dataset(conf.data).classes)
    if own:
        train, classes = _own(own, modality, int(conf.data.image_size))
        if classes != names:
            raise DataError(f"{own}/classes.json names {', '.join(classes)}; the federation has {', '.join(names)}")
    else:
        rows = tuple(partition(conf)["clients"][client]["rows"])
        train = _part(OmegaConf.to_yaml(conf.data, resolve=True), modality, rows)
    return PrivateData(train, held_out(conf.data, "validation", modality), held_out(conf.data, "test", modality), names)


@lru_cache(maxsize=32)
def _part(data: str, modality: str, ids: tuple[int, ...]) -> Rows:
    conf = OmegaConf.create(data)
    splits = open_dataset(conf)
    return read_rows(splits.private("train"), modality, int(conf.image_size), f"{splits.place}/train", ids)


@lru_cache(maxsize=4)
def _own(place: str, modality: str, side: int) -> tuple[Rows, tuple[str, ...]]:
    splits = open_dataset(OmegaConf.create({"name": "own", "path": place}))
    rows = read_rows(modality_rows(splits.private("train"), modality), modality, side, f"{place}/train")
    return rows, tuple(splits.classes)
