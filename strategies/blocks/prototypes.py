"""What servers share that collect mean representations of classes: checked uploads and their mean by class.

Axes: K clients, G classes of a client, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from florilegium.federation.federation import Federation, Reply
from florilegium.protocol.payloads import Prototypes
from florilegium.protocol.validation import WireError


def ask_prototypes(federation: Federation, down: Any, classes: int, width: int) -> list[Reply]:
    """The cohort's prototypes after its answer to `down` in the phase `train`; a bad upload is left out and named."""
    return federation.ask("train", down, Prototypes, bounds={"C": classes, "D": width}, check=plausible)


def plausible(client: Any, body: Prototypes) -> None:
    """WireError when the rows behind the prototypes are more than the client's profile says, or there is none."""
    if not 1 <= body.examples <= max(client.examples, 1):
        raise WireError(f"Prototypes.counts sum to {body.examples}, the client's profile says {client.examples}")


def class_means(
    uploads: Sequence[Prototypes], classes: int, width: int, weighting: str = "uniform"
) -> tuple[Tensor, Tensor]:
    """([C, D], [C]): the mean of each class over the clients that have it, and how many rows these have of it.

    weighting: uniform (each client the same) | examples (by its rows of the class). A class of nobody is zero.
    """
    sums_CD, weights_C = torch.zeros(classes, width), torch.zeros(classes)
    counts_C = torch.zeros(classes, dtype=torch.int64)
    for up in uploads:
        weight_G = torch.ones(len(up.counts)) if weighting == "uniform" else up.counts.float()
        sums_CD.index_add_(0, up.classes, up.means * weight_G[:, None])
        weights_C.index_add_(0, up.classes, weight_G)
        counts_C.index_add_(0, up.classes, up.counts)
    return sums_CD / weights_C.clamp_min(1e-12)[:, None], counts_C
