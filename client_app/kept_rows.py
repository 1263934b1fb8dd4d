"""A client's rows of the embedded data, dealt and decoded once, then kept in its own state directory.

In a deployment every message starts a process anew, and dealing the rows and decoding the pictures takes longer than
much of the work. A site's own data are not copied: they are read where they lie.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from florilegium import atomic
from florilegium.data import datasets
from florilegium.data.datasets import Rows
from florilegium.data.private import PrivateData, open_private

KEPT = 3  # files of a client; one for each of the deals that it saw last
SPLITS = ("train", "validation", "test")
OWN = ("data-path", "validation-path", "test-path")


def open_rows(conf: DictConfig, client: int, modality: str, node_config: Mapping[str, Any]) -> PrivateData:
    """`open_private`, from the node's `state-dir` where it has one and the rows were opened before. DataError."""
    place = str(node_config.get("state-dir", ""))
    if not place or any(key in node_config for key in OWN):
        return open_private(conf, client, modality, node_config)
    path = Path(place, "rows", f"client-{client}-{fingerprint(conf)}.safetensors")
    try:
        return unflat(*atomic.load(path))
    except Exception:  # not there, or torn: it can be had again
        data = open_private(conf, client, modality, node_config)
    atomic.save(path, *flat(data))
    there = sorted(path.parent.glob(f"client-{client}-*.safetensors"), key=lambda file: file.stat().st_mtime)
    for old in there[:-KEPT]:
        old.unlink(missing_ok=True)
    return data


def fingerprint(conf: DictConfig) -> str:
    """What the rows depend on: settings, seed, the files of the data set, and the code that deals and decodes."""
    parts = {"data": conf.data, "mix": conf.clients.mix, "partition": conf.clients.partition}
    told = {name: OmegaConf.to_container(part, resolve=True) for name, part in parts.items()}
    text = json.dumps([told, int(conf.seed), datasets.files(conf.data)], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for module in sorted(Path(datasets.__file__).parent.glob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()[:32]


def flat(data: PrivateData) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by <split>.<field>, and the words."""
    tensors = {f"{split}.{name}": getattr(getattr(data, split), name)
               for split in SPLITS for name in ("ids", "labels", "images", "groups")}
    words: dict[str, Any] = {split: {"texts": getattr(data, split).texts, "tags": getattr(data, split).tags}
                             for split in SPLITS}
    return tensors, words | {"classes": data.classes}


def unflat(tensors: Mapping[str, Tensor], words: Mapping[str, Any]) -> PrivateData:
    """Undo `flat`."""
    rows = {split: Rows(*(tensors[f"{split}.{name}"] for name in ("ids", "labels", "images")),
                        texts=tuple(words[split]["texts"]), tags=tuple(map(tuple, words[split]["tags"])),
                        groups=tensors[f"{split}.groups"]) for split in SPLITS}
    return PrivateData(**rows, classes=tuple(words["classes"]))
