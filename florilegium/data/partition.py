"""Who gets which rows: a pure function of the settings and the seed.

Partitioners are flwr-datasets' and those of skew.py; docs/partitions.md has their forms and presets. Image and text
clients are partitioned separately, from disjoint halves of the concepts (thirds, where there are pair clients), so no
two clients of different modalities share a specimen. The server computes it for the record, every client for itself;
both get the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from florilegium import seeds
from florilegium.config.clients import ClientsSettings
from florilegium.config.data import FLOWER_PARTITIONS, MODALITIES, DataSettings, PartitionSettings
from florilegium.config.instances import from_text, to_text
from florilegium.config.settings import Settings
from florilegium.data import shift, skew
from florilegium.data.datasets import Classes, DataError, modality_rows, open_dataset, texts_alone
from florilegium.runs import files

if TYPE_CHECKING:
    from datasets import Dataset


EVENLY = " (clients.partition.name=iid deals them evenly)"
KEPT = "FLORILEGIUM_PARTITIONS"  # a folder of one launch: what its launcher has dealt, for the processes it starts
LEAST, LEAST_OWN = 10, 2  # rows of a client, where clients.partition.min_samples is null; people may bring few rows


def partition(conf: Settings) -> dict[str, Any]:
    """{"clients": [{client, modality, model, rows (ids), classes {name: rows}}], "settings", "seed", "hash"}.

    A client of a shifted domain also has its "domain" (a value of the column `by`) or its "shift" (an amount).
    Raises DataError or SettingsError when the clients cannot be served.
    """
    return deepcopy(_whole(conf))


def dealt(conf: Settings, client: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """One client's part of `partition`, and its settings; of a thousand clients, a copy of all takes longer than work.

    Raises DataError or SettingsError when the clients cannot be served.
    """
    whole = _whole(conf)
    return deepcopy(whole["clients"][client]), dict(whole["settings"])


def keep(conf: Settings, folder: Path) -> None:
    """Write the partition into `folder`, for processes that have it as KEPT in their environment. WriteError.

    Dealing takes a second or two in each process, almost all of it for importing flwr-datasets and what that imports.
    """
    files.write_json(folder / _name(conf), _whole(conf))


def _name(conf: Settings) -> str:
    """The file of a run's partition. The run directory is part of it: another run may have other rows by then."""
    return f"{hashlib.sha256(json.dumps([*_given(conf), str(conf.out)]).encode()).hexdigest()}.json"


def _given(conf: Settings) -> tuple[str, str, int]:
    """All that a partition depends on."""
    clients = ClientsSettings(mix=conf.clients.mix, partition=conf.clients.partition)
    return to_text(conf.data), to_text(clients), conf.seed


def _whole(conf: Settings) -> dict[str, Any]:
    """The partition as the cache has it: not to be changed."""
    if (folder := os.environ.get(KEPT)) and (kept := Path(folder, _name(conf))).is_file():
        return _read(str(kept))
    return _partition(*_given(conf))


@lru_cache(maxsize=8)
def _read(kept: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(kept).read_bytes())
    return found


@lru_cache(maxsize=8)
def _partition(data: str, clients_: str, seed: int) -> dict[str, Any]:
    given = from_text(ClientsSettings, clients_, "clients")
    mix, s = given.mix, given.partition
    for k, member in enumerate(mix):
        if member.modality not in MODALITIES:
            raise DataError(f"clients.mix[{k}]: no modality {member.modality!r}; there are {', '.join(MODALITIES)}")
    given_data = from_text(DataSettings, data, "data")
    s = replace(s, min_samples=s.min_samples or (LEAST_OWN if given_data.own else LEAST))
    splits = open_dataset(given_data)
    private = _long_tail(splits.private("train"), len(splits.classes), s.imbalance, seed)
    private, owned = _owned(private, mix)
    members = {m: [k for k, member in enumerate(mix) if member.modality == m and k not in owned] for m in MODALITIES}
    apart = parts(private, s, [m for m in MODALITIES if members[m]], seed) if s.disjoint_modalities else {}
    clients: list[dict[str, Any]] = [{} for _ in mix]
    for modality, ids in members.items():
        if not ids:
            continue
        mine = modality_rows(private.select(apart[modality]) if apart else private, modality)
        for k, dealt in zip(ids, deal(mine, len(ids), s, modality, seed, len(splits.classes)), strict=True):
            clients[k] = {"client": k, "modality": modality, "model": mix[k].model, **dealt}
            if s.shift != "none" and modality == "image":
                clients[k]["shift"] = shift.amount(s.shift, k, s.rotation, s.contrast)
        _warn_of_gaps([clients[k] for k in ids], splits.classes, modality)
    for k, mine in owned.items():
        clients[k] = {"client": k, "modality": mix[k].modality, "model": mix[k].model, **mine}
    for client in clients:
        counts = np.bincount(client.pop("labels"), minlength=len(splits.classes))
        client["classes"] = {name: int(n) for name, n in zip(splits.classes, counts, strict=True)}
    digest = hashlib.sha256(json.dumps([client["rows"] for client in clients]).encode()).hexdigest()
    return {"clients": clients, "settings": vars(s), "seed": seed, "hash": digest}


def _owned(private: Dataset, mix: Any) -> tuple[Dataset, dict[int, dict[str, Any]]]:
    """The rows that are dealt, and {client: {"rows": ids, "labels": labels}} of clients with data of their own."""
    if "owner" not in private.column_names:
        return private, {}
    owners = np.array(private["owner"][:])
    found = {}
    for k, member in enumerate(mix):
        if member.data:
            mine = modality_rows(private.select(np.flatnonzero(owners == k)), str(member.modality))
            found[k] = {"rows": list(mine["id"][:]), "labels": list(mine["label"][:])}
            if not len(mine):
                raise DataError(f"clients.mix[{k}].data has no {member.modality} row to train on")
    return private.select(np.flatnonzero(owners < 0)), found


def _long_tail(private: Dataset, classes: int, imbalance: float, seed: int) -> Dataset:
    if imbalance == 1:
        return private
    random = np.random.default_rng(seeds.seed_of(seed, "partition", "long tail"))
    return private.select(skew.long_tail(np.array(private["label"][:]), classes, imbalance, random))


def parts(private: Dataset, s: PartitionSettings, modalities: list[str], seed: int) -> dict[str, np.ndarray]:
    """Row positions of each modality there is, no concept in two of them; {} for one modality, which has them all."""
    if len(modalities) <= 1:  # none, where every client has data of its own
        return {}
    found, rest = {}, np.arange(len(private))
    if "modality" in private.column_names and "text" in modalities:
        alone = texts_alone(private)
        found["text"], rest = np.flatnonzero(alone), np.flatnonzero(~alone)
        modalities = [m for m in modalities if m != "text"]
        if len(modalities) == 1:
            return {**found, modalities[0]: rest}
        private = private.select(rest)
        return found | {m: rest[chosen] for m, chosen in parts(private, s, modalities, seed).items()}
    if "pair" in modalities:
        split = disjoint(private, s.pair_share, seed, "pairs")
        found["pair"], rest = split["image"], split["text"]
    if "image" not in modalities or "text" not in modalities:
        return {**found, modalities[0]: rest}
    split = disjoint(private.select(rest), s.image_share, seed)
    return {**found, **{modality: rest[split[modality]] for modality in ("image", "text")}}


def disjoint(private: Dataset, image_share: float, seed: int, name: str = "halves") -> dict[str, np.ndarray]:
    """Row positions of the image half and of the text half: no concept in both, every class in its share."""
    labels = np.array(private["label"][:])
    concepts = np.array(private["concept"][:] if "concept" in private.column_names else private["id"][:])
    random = seeds.generator(seed, "partition", name)
    taken: set[Any] = set()
    for label in np.unique(labels):
        own = np.unique(concepts[labels == label])
        order = own[torch.randperm(len(own), generator=random).numpy()]
        # the random fraction lets neither modality always win the odd concept
        taken.update(order[: int(len(own) * image_share + torch.rand((), generator=random).item())].tolist())
    image = np.array([concept in taken for concept in concepts.tolist()])
    return {"image": np.flatnonzero(image), "text": np.flatnonzero(~image)}


def deal(
    rows: Dataset, count: int, s: PartitionSettings, modality: str, seed: int, classes: int
) -> list[dict[str, Any]]:
    """Deal rows to `count` clients of one modality: [{"rows": ids, "labels": labels}], ids ascending."""
    least = s.min_samples or LEAST
    what = f"{least} rows for each of {count} {modality} clients ({len(rows)} rows, {s.name})"
    if len(rows) < count * least:
        raise DataError(f"clients.partition.min_samples: there are not {what}")
    if s.name in ("natural", "domain") and s.by not in rows.column_names:
        raise DataError(f"clients.partition.by: the data have no column {s.by!r}; {', '.join(rows.column_names)}")
    domains = _domains(rows, count, s, modality) if s.name == "domain" else None
    draw = seeds.seed_of(seed, "partition", modality)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # flwr-datasets' re-draws until min_samples is met are no news
            if s.name in FLOWER_PARTITIONS:
                dealt = _flower(rows, count, s, modality, draw % 2**32)
            else:
                dealt = _skewed(rows, count, s, classes, domains, np.random.default_rng(draw))
    except DataError:
        raise
    except skew.SkewError as error:
        raise DataError(f"clients.partition.{error}") from error
    except (ValueError, AssertionError) as error:
        raise DataError(f"clients.partition: cannot deal {what}: {str(error).splitlines()[0]}{EVENLY}") from error
    if min(map(len, dealt)) < least:
        raise DataError(f"clients.partition.min_samples: cannot deal {what}; one has {min(map(len, dealt))}")
    ids, labels = np.array(rows["id"][:]), np.array(rows["label"][:])
    ordered = [part[np.argsort(ids[part])] for part in dealt]
    out: list[dict[str, Any]] = [{"rows": ids[part].tolist(), "labels": labels[part].tolist()} for part in ordered]
    for k, domain in enumerate(domains or ()):
        out[k]["domain"] = domain
    return out


def _skewed(
    rows: Dataset,
    count: int,
    s: PartitionSettings,
    classes: int,
    domains: list[str] | None,
    random: np.random.Generator,
) -> list[np.ndarray]:
    """Positions from skew.py's splits."""
    labels_N = np.array(rows["label"][:])
    if domains is not None:
        return skew.by_domain(rows[s.by][:], domains, random)
    if s.name == "dirichlet_grouped_balanced":
        return skew.grouped_balanced(labels_N, count, s.alpha, s.group, random)
    biased = count - s.unbiased if s.biased is None else s.biased
    if biased < 1 or biased + s.unbiased != count:
        raise skew.SkewError(f"biased: {biased} biased and {s.unbiased} unbiased clients are not the {count} there are")
    each = s.classes_per_biased or max(-(-classes // 5), -(-classes // biased))  # a fifth, or more to cover all
    return skew.biased_unbiased(labels_N, classes, biased, each, s.unbiased, random)


def _domains(rows: Dataset, count: int, s: PartitionSettings, modality: str) -> list[str]:
    """Each client's domain. DataError when the settings do not fit the data."""
    if modality != "image":
        raise DataError("clients.partition.name: domain shift is of images; clients.mix has text clients")
    there = sorted(set(map(str, rows[s.by][:])))
    domains = [there[k % len(there)] for k in range(count)] if s.domains is None else s.domains
    if len(domains) != count:
        raise DataError(f"clients.partition.domains names {len(domains)} domains for {count} clients")
    if unknown := [domain for domain in domains if domain not in there]:
        raise DataError(f"clients.partition.domains: no {s.by} {unknown[0]!r}; there are {', '.join(there)}")
    return list(domains)


def _flower(rows: Dataset, count: int, s: PartitionSettings, modality: str, seed: int) -> list[np.ndarray]:
    """Positions from flwr-datasets' partitioners."""
    from datasets import Dataset

    columns = dict.fromkeys(["label", *([s.by] if s.name == "natural" else [])])
    table = Dataset.from_dict({column: rows[column][:] for column in columns} | {"position": list(range(len(rows)))})
    partitioner = _partitioner(s, count, table, seed)
    # IID deals the rows out in order, so they are shuffled first
    partitioner.dataset = table.shuffle(seed=seed) if s.name == "iid" else table
    if partitioner.num_partitions != count:
        raise DataError(
            f"clients.partition: {s.name} makes {partitioner.num_partitions} parts for {count} {modality} clients"
        )
    return [np.array(partitioner.load_partition(k)["position"][:]) for k in range(count)]


def _partitioner(s: PartitionSettings, count: int, table: Dataset, seed: int) -> Any:
    from flwr_datasets import partitioner as flower

    if s.name == "dirichlet":
        balance = s.self_balancing
        return flower.DirichletPartitioner(
            count, "label", s.alpha, s.min_samples or LEAST, self_balancing=balance, seed=seed
        )
    if s.name == "pathological":
        return flower.PathologicalPartitioner(count, "label", s.classes_per_client, s.class_assignment, seed=seed)
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
