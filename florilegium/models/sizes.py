"""How large a client's body is and what one row costs it, without fetching anything.

The papers' checkpoints are known by their names. What lies on this machine, or needs settings alone, is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from florilegium.assets import AssetError, located
from florilegium.config.clients import ClientsSettings
from florilegium.models import build

PAPERS = {  # millions of weights, and 1e9 operations of an image of 224 pixels or of one token, forward
    "microsoft/resnet-18": (11.2, 3.64),
    "google/vit-base-patch32-224-in21k": (87.5, 8.7),
    "microsoft/beit-base-patch16-224": (85.8, 34.9),
    "bert-base-uncased": (109.5, 0.17),
    "distilbert-base-uncased": (66.4, 0.085),
    "roberta-base": (124.6, 0.17),
}
PASSES = {"full": 3.0, "lora": 2.0, "frozen": 1.0}  # of a training step, in forward passes


@dataclass(frozen=True)
class BodySize:
    """`weights` of a body, those that `train`, `flops` of one row forward, `passes` of a training step in forwards."""

    weights: float
    trained: float
    flops: float
    passes: float


def body_size(clients: ClientsSettings, modality: str, architecture: str, side: int) -> BodySize | None:
    """Of one model of `clients.architectures` that reads images of `side` pixels, or texts. None where its files are
    not on this machine. ModelError as `build.body`."""
    given = clients.architectures.get(architecture) or {}
    name, how = str(given.get("pretrained") or given.get("path") or ""), str(given.get("training", "full"))
    if name in PAPERS:
        weights, flops = PAPERS[name]
        rows = 1 if modality == "image" else clients.tokens
        few = weights if how == "full" else 0.01 * weights  # adapters; of a frozen body nothing
        return BodySize(1e6 * weights, 1e6 * few, 1e9 * flops * rows, PASSES.get(how, 3.0))
    if name and not _here(name):
        return None
    reads = None if modality == "image" else build.vocabulary(clients, architecture)
    body = build.plain_body(clients, modality, architecture, reads).eval()
    row = torch.zeros(1, 3, side, side) if modality == "image" else torch.ones(1, clients.tokens, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        body(row)
    weights = sum(p.numel() for p in body.parameters())
    trained = sum(p.numel() for p in body.parameters() if p.requires_grad)
    return BodySize(weights, trained, float(counter.get_total_flops()), PASSES.get(how, 3.0))


def _here(name: str) -> bool:
    """Whether a checkpoint is an asset or a directory of this machine."""
    try:
        return Path(located(name, bare=True)).is_dir()
    except AssetError:
        return False
