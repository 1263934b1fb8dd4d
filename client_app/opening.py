"""Opens a client: its id, its memory and its rows, read once and kept on disk by a hash of what they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from client_app.batches import ClientError
from client_app.client import Client
from client_app.memory import Memory
from florilegium.config.instances import to_plain
from florilegium.config.node import node_settings
from florilegium.config.settings import Settings
from florilegium.data import datasets
from florilegium.data.datasets import Rows
from florilegium.data.private import PrivateData, open_private
from florilegium.data.stored_images import StoredImages
from florilegium.protocol.codec import Header
from florilegium.runs import files


def open_client(conf: Settings, node_config: Mapping[str, Any], header: Header) -> Client:
    """The client of this node as the message with this header finds it. Its id is the node's `partition-id`.

    SettingsError names a wrong key or value of the node configuration.
    """
    node = node_settings(node_config)
    id_ = node.partition_id if node.client_id is None else node.client_id
    if id_ is None:
        raise ClientError("the node configuration has no partition-id (or client-id)")
    if not 0 <= id_ < len(conf.clients.mix):
        raise ClientError(f"this node is client {id_}, but clients.mix has {len(conf.clients.mix)} clients")
    out = conf.out
    place = node.state_dir or conf.clients.state_dir or (out and Path(out, "state"))
    if not place:
        raise ClientError("nowhere to remember: set state-dir in the node configuration, or clients.state_dir")
    # a run directory's name is not enough: another run may have had it. Path: the server names no other folder
    run = Path(conf.run_id or out or "federation").name
    memory = Memory(Path(str(place), run, header.arm, f"client-{id_}"), header.round, header.step)
    data = open_rows(conf, id_, str(conf.clients.mix[id_].modality), node_config)
    client = Client(conf, id_, data, memory, header.round)
    client.own_data = node.data_path is not None
    client.public_path = node.public_path
    return client


KEPT = 3  # files of a client; one for each of the deals that it saw last
SPLITS = ("train", "validation", "test")
OWN = ("data-path", "validation-path", "test-path")


def open_rows(conf: Settings, client: int, modality: str, node_config: Mapping[str, Any]) -> PrivateData:
    """`open_private`, from the node's `state-dir` where it has one and the rows were opened before. DataError."""
    place = str(node_config.get("state-dir", ""))
    if not place or any(key in node_config for key in OWN):
        return open_private(conf, client, modality, node_config)
    path = Path(place, "rows", f"client-{client}-{fingerprint(conf)}.safetensors")
    try:
        return unflat(*files.load(path))
    except Exception:  # not there, or torn: it can be had again
        data = open_private(conf, client, modality, node_config)
    if any(isinstance(getattr(data, split).images, StoredImages) for split in SPLITS):
        return data  # it lies decoded in a file already
    files.save(path, *flat(data))
    there = sorted(path.parent.glob(f"client-{client}-*.safetensors"), key=lambda file: file.stat().st_mtime)
    for old in there[:-KEPT]:
        old.unlink(missing_ok=True)
    return data


def fingerprint(conf: Settings) -> str:
    """What the rows depend on: settings, seed, the files of the data set, and the code that deals and decodes."""
    parts = {"data": conf.data, "mix": conf.clients.mix, "partition": conf.clients.partition}
    told = {name: to_plain(part) for name, part in parts.items()}
    text = json.dumps([told, conf.seed, datasets.files(conf.data)], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for module in sorted(Path(datasets.__file__).parent.rglob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()[:32]


def flat(data: PrivateData) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by <split>.<field>, and the words."""
    tensors = {
        f"{split}.{name}": getattr(getattr(data, split), name)
        for split in SPLITS
        for name in ("ids", "labels", "images", "groups")
    }
    words: dict[str, Any] = {
        split: {"texts": getattr(data, split).texts, "tags": getattr(data, split).tags} for split in SPLITS
    }
    return tensors, words | {"classes": data.classes}


def unflat(tensors: Mapping[str, Tensor], words: Mapping[str, Any]) -> PrivateData:
    """Undo `flat`."""
    rows = {
        split: Rows(
            tensors[f"{split}.ids"],
            tensors[f"{split}.labels"],
            tensors[f"{split}.images"],
            texts=tuple(words[split]["texts"]),
            tags=tuple(map(tuple, words[split]["tags"])),
            groups=tensors[f"{split}.groups"],
        )
        for split in SPLITS
    }
    return PrivateData(rows["train"], rows["validation"], rows["test"], tuple(words["classes"]))
