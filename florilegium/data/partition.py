"""Who gets which rows: a pure function of the settings and the seed, with flwr-datasets' partitioners.

Image and text clients are partitioned separately, from disjoint halves of the concepts, so no two clients of different
modalities share a specimen. The server computes it for the record, every client for itself; both get the same.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from florilegium import models, seeds
from florilegium.checks import between, one_of
from florilegium.data.datasets import Classes, DataError, modality_rows, open_dataset
from florilegium.settings import typed

if TYPE_CHECKING:
    from datasets import Dataset

NAMES = ("dirichlet", "iid", "pathological", "shard", "natural")


@dataclass
class PartitionSettings:
    """`conf.clients.partition`."""

    name: str = "dirichlet"             # dirichlet | iid | pathological | shard | natural
    alpha: float = 0.5                  # dirichlet: concentration; small is skewed
    min_samples: int = 10               # rows every client has at least
    classes_per_client: int = 2         # pathological
    shards_per_client: int = 2          # shard
    by: str = "style"                   # natural: the column whose values are dealt out, e.g. a domain each
    disjoint_modalities: bool = True    # image and text clients see different concepts
    image_share: float = 0.5            # of the concepts, when they are disjoint

    def __post_init__(self) -> None:
        one_of("name", self.name, NAMES)
        between("alpha", self.alpha, 1e-3, 1e6)
        between("min_samples", self.min_samples, 2, 1_000_000)
        between("classes_per_client", self.classes_per_client, 1, 1_000_000)
        between("shards_per_client", self.shards_per_client, 1, 1_000_000)
        between("image_share", self.image_share, 0.05, 0.95)


def partition(conf: DictConfig) -> dict[str, Any]:
    """{"clients": [{client, modality, model, rows (ids), classes {name: rows}}], "settings", "seed", "hash"}.

    Raises DataError or SettingsError when the clients cannot be served.
    """
    parts = {"data": conf.data, "mix": conf.clients.mix, "partition": conf.clients.partition}
    plain = {k: OmegaConf.to_container(v, resolve=True) for k, v in parts.items()}
    return deepcopy(_partition(json.dumps(plain, sort_keys=True), int(conf.seed)))


@lru_cache(maxsize=8)
def _partition(text: str, seed: int) -> dict[str, Any]:
    conf = OmegaConf.create(json.loads(text))
    s = typed(PartitionSettings, conf.partition, "clients.partition")
    for k, member in enumerate(conf.mix):
        models.check(str(member.modality), str(member.model), f"clients.mix[{k}]")
    splits = open_dataset(conf.data)
    private = splits.private("train")
    members = {m: [k for k, member in enumerate(conf.mix) if member.modality == m] for m in ("image", "text")}
    halves = disjoint(private, s.image_share, seed) if s.disjoint_modalities and all(members.values()) else {}
    clients: list[dict[str, Any]] = [{} for _ in conf.mix]
    for modality, ids in members.items():
        if not ids:
            continue
        mine = modality_rows(private.select(halves[modality]) if halves else private, modality)
        for k, rows in zip(ids, deal(mine, len(ids), s, modality, seed), strict=True):
            clients[k] = {"client": k, "modality": modality, "model": conf.mix[k].model, **rows}
        _warn_of_gaps([clients[k] for k in ids], splits.classes, modality)
    for client in clients:
        counts = np.bincount(client.pop("labels"), minlength=len(splits.classes))
        client["classes"] = {name: int(n) for name, n in zip(splits.classes, counts, strict=True)}
    digest = hashlib.sha256(json.dumps([client["rows"] for client in clients]).encode()).hexdigest()
    return {"clients": clients, "settings": vars(s), "seed": seed, "hash": digest}


def disjoint(private: Dataset, image_share: float, seed: int) -> dict[str, np.ndarray]:
    """Row positions of the image half and of the text half: no concept in both, every class in its share."""
    labels = np.array(private["label"][:])
    concepts = np.array(private["concept"][:] if "concept" in private.column_names else private["id"][:])
    random = seeds.generator(seed, "partition", "halves")
    taken: set[Any] = set()
    for label in np.unique(labels):
        own = np.unique(concepts[labels == label])
        order = own[torch.randperm(len(own), generator=random).numpy()]
        # the random fraction lets neither modality always win the odd concept
        taken.update(order[: int(len(own) * image_share + torch.rand((), generator=random).item())].tolist())
    image = np.array([concept in taken for concept in concepts.tolist()])
    return {"image": np.flatnonzero(image), "text": np.flatnonzero(~image)}


def deal(rows: Dataset, count: int, s: PartitionSettings, modality: str, seed: int) -> list[dict[str, list[int]]]:
    """Deal rows to `count` clients of one modality: [{"rows": ids, "labels": labels}], ids ascending."""
    from datasets import Dataset

    what = f"{s.min_samples} rows for each of {count} {modality} clients ({len(rows)} rows, {s.name})"
    if len(rows) < count * s.min_samples:
        raise DataError(f"clients.partition.min_samples: there are not {what}")
    if s.name == "natural" and s.by not in rows.column_names:
        raise DataError(f"clients.partition.by: the data have no column {s.by!r}; {', '.join(rows.column_names)}")
    columns = ["id", "label", *([s.by] if s.name == "natural" else [])]
    table = Dataset.from_dict({column: rows[column][:] for column in dict.fromkeys(columns)})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its re-draws until min_samples is met are no news
            draw = seeds.seed_of(seed, "partition", modality) % 2**32
            partitioner = _partitioner(s, count, table, draw)
            # IID deals the rows out in order, so they are shuffled first
            partitioner.dataset = table.shuffle(seed=draw) if s.name == "iid" else table
            if partitioner.num_partitions != count:
                raise DataError(f"clients.partition: {s.name} makes {partitioner.num_partitions} parts"
                                f" for {count} {modality} clients")
            dealt = [partitioner.load_partition(k) for k in range(count)]
    except DataError:
        raise
    except (ValueError, AssertionError) as error:
        raise DataError(f"clients.partition: cannot deal {what}: {str(error).splitlines()[0]}") from error
    if min(map(len, dealt)) < s.min_samples:
        raise DataError(f"clients.partition.min_samples: cannot deal {what}; one has {min(map(len, dealt))}")
    pairs = [sorted(zip(part["id"][:], part["label"][:], strict=True)) for part in dealt]
    return [{"rows": [int(i) for i, _ in pair], "labels": [int(y) for _, y in pair]} for pair in pairs]


def _partitioner(s: PartitionSettings, count: int, table: Dataset, seed: int) -> Any:
    from flwr_datasets import partitioner as flower

    if s.name == "dirichlet":
        return flower.DirichletPartitioner(count, "label", s.alpha, s.min_samples, self_balancing=False, seed=seed)
    if s.name == "pathological":
        return flower.PathologicalPartitioner(count, "label", s.classes_per_client, seed=seed)
    if s.name == "shard":
        return flower.ShardPartitioner(count, "label", num_shards_per_partition=s.shards_per_client, seed=seed)
    if s.name == "natural":
        values = len(table.unique(s.by))
        if values < count:
            raise DataError(f"clients.partition.by: {s.by} has {values} values for {count} clients")
        return flower.GroupedNaturalIdPartitioner(s.by, values // count, "allow-bigger", sort_unique_ids=True)
    return flower.IidPartitioner(count)


def _warn_of_gaps(clients: list[dict[str, Any]], classes: Classes, modality: str) -> None:
    seen = {label for client in clients for label in client["labels"]}
    if missing := [name for label, name in enumerate(classes) if label not in seen]:
        warnings.warn(f"no {modality} client has a row of {', '.join(missing)}", stacklevel=2)
