"""How well a client's features of public samples match the server's (arXiv 2603.04890).

Each of N samples is compared with all N anchors, a few rows at a time: the N x N matrix never stands in memory (10 GB
at N = 50,000). Axes: N samples, K clients, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1 << 23  # numbers of one block of rows: 32 MiB in float32


@torch.no_grad()
def match_scores(rep_ND: Tensor, anchor_ND: Tensor, temperature: float = 1.0, rows: int | None = None) -> Tensor:
    """log of the share that each representation's own anchor has among all anchors, by exp(dot / temperature).

    The diagonal of the row-wise log-softmax, -> [N]; inputs are compared as they are (unit vectors: by cosine).
    `rows` of them at a time; None: as many as BLOCK holds. ValueError when the shapes differ.
    """
    if rep_ND.shape != anchor_ND.shape or rep_ND.ndim != 2:
        raise ValueError(f"representations {tuple(rep_ND.shape)} and anchors {tuple(anchor_ND.shape)} do not match")
    count = len(anchor_ND)
    rows = min(rows or max(1, BLOCK // max(1, count)), count)
    paired_N, total_N = (rep_ND * anchor_ND).sum(-1) / temperature, rep_ND.new_empty(count)
    # one buffer for all blocks: freed and allocated anew, glibc lets 16 MiB blocks grow into gigabytes
    buffer = rep_ND.new_empty(rows, count)
    for first in range(0, count, rows or 1):
        chosen = rep_ND[first : first + rows]
        block_BN = torch.mm(chosen, anchor_ND.T, out=buffer[: len(chosen)]).div_(temperature)
        most_B1 = block_BN.amax(-1, keepdim=True)
        total_N[first : first + rows] = block_BN.sub_(most_B1).exp_().sum(-1).log_().add_(most_B1[:, 0])
    return paired_N - total_N


def similarity_weights(scores_KN: Tensor) -> Tensor:
    """Each sample's weights of the clients, a softmax over them. [K, N] -> [K, N]."""
    return scores_KN.softmax(0)


def weighted(reps_KND: Tensor, weights_KN: Tensor) -> Tensor:
    """sum_c w^{c,k} rep^{c,k}, not normalised. -> [N, D]."""
    return torch.einsum("kn,knd->nd", weights_KN, reps_KND)
