"""Clusters of first neighbours: the parameter-free hierarchy of arXiv 1902.11266 (FINCH), by its equation 1.

Axes: N points, G clusters, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def first_neighbour_clusters(points_ND: Tensor) -> Tensor:
    """The coarsest partition of the hierarchy that still has several clusters, as labels [N] from 0.

    Points are linked with their nearest neighbour by cosine; what hangs together is a cluster. The clusters' means are
    linked again, until one cluster would be left or a step merges at most two. Where the first step already gives
    one cluster, that is the answer.
    """
    labels_N = linked(points_ND)
    while True:
        means_GD = cluster_means(points_ND, labels_N)
        merged_G = linked(means_GD)
        before, after = len(means_GD), int(merged_G.max()) + 1
        if after == 1 or after == before:
            return labels_N
        labels_N = merged_G[labels_N]
        if before - after <= 1:
            return labels_N


def cluster_means(points_ND: Tensor, labels_N: Tensor) -> Tensor:
    """The mean of each cluster, [G, D]."""
    counts_G = labels_N.bincount().to(points_ND.dtype)
    sums_GD = points_ND.new_zeros(len(counts_G), points_ND.shape[1]).index_add_(0, labels_N, points_ND)
    return sums_GD / counts_G[:, None]


def linked(points_ND: Tensor) -> Tensor:
    """Labels [N] of what hangs together when each point is linked with its nearest neighbour by cosine.

    Two points with the same nearest neighbour hang together through it, as eq. 1 wants it.
    """
    count = len(points_ND)
    if count == 1:
        return torch.zeros(1, dtype=torch.int64)
    unit_ND = normalize(points_ND.double(), dim=-1)
    nearest_N = (unit_ND @ unit_ND.T).fill_diagonal_(-torch.inf).argmax(1)
    labels_N = torch.arange(count)
    for n, other in enumerate(nearest_N.tolist()):
        labels_N[labels_N == labels_N[other]] = labels_N[n].item()
    return labels_N.unique(return_inverse=True)[1]
