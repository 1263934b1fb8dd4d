"""Mean representations of a client's own classes. Axes: N rows, G classes of the client, D width."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from client_app.client import Client
from florilegium.protocol.payloads import Prototypes

MEASURED = 256  # rows encoded at once


def prototypes(client: Client, figures: dict[str, float], seen: Callable[[Tensor], Tensor] | None = None) -> Prototypes:
    """The mean of z over the client's own rows of each class, un-augmented and in evaluation mode, with `figures`.

    `seen` maps z [N, D] to what is averaged instead.
    """
    rows = client.data.train
    parts = []
    for chosen in torch.arange(len(rows)).split(MEASURED):
        z_ND = client.encoded_rows(rows, chosen)
        parts.append(z_ND if seen is None else seen(z_ND))
    seen_ND = torch.cat(parts)
    classes_G, of_N, counts_G = rows.labels.unique(return_inverse=True, return_counts=True)
    sums_GD = torch.zeros(len(classes_G), seen_ND.shape[1]).index_add_(0, of_N, seen_ND)
    return Prototypes(classes_G, counts_G, sums_GD / counts_G[:, None], figures)
