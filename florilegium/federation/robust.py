"""Robust arithmetic on what clients upload: pure functions, each with its source.

All of them move the clients' vectors so that the plain mean of the result is the robust centre: a method that averages
then has the robust mean, one that weighs clients has bounded outliers, and no
method needs to know. Axes: K clients, N samples, D width, C classes; a dot is any number of further axes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, one_hot


def capped(weight_KN: Tensor, share: float) -> Tensor:
    """The largest weights <= `weight_KN` (>= 0) of which none is more than `share` of its column's sum.

    With m weights cut to t, t = share * (m t + the others' sum). Fewer than 1 / share positive weights cannot do it:
    they become equal.
    """
    sorted_KN = weight_KN.sort(0, descending=True).values
    wanted = 1 / share - torch.arange(len(weight_KN), dtype=weight_KN.dtype)[:, None]  # 1 / share - m
    rest_KN = sorted_KN.flip(0).cumsum(0).flip(0)  # the sum without the m largest
    cut_KN = torch.where(wanted > 1e-6, rest_KN / wanted.clamp_min(1e-6), torch.zeros_like(rest_KN))
    fits_KN = (cut_KN >= sorted_KN * (1 - 1e-6)) & (wanted > 1e-6)
    first_N = fits_KN.to(torch.int8).argmax(0)
    cut_N = cut_KN.gather(0, first_N[None])[0]
    least_N = weight_KN.where(weight_KN > 0, math.inf).amin(0)  # of the positive ones
    enough_N = (weight_KN > 0).sum(0) >= 1 / share - 1e-6
    return torch.minimum(weight_KN, cut_N.where(enough_N & fits_KN.any(0), least_N)[None])


def shortened(x_KND: Tensor, share: float) -> Tensor:
    """Vectors cut in length so that none holds more than `share` of the K lengths of its sample."""
    length_KN = x_KND.norm(dim=-1)
    factor_KN = capped(length_KN, share) / length_KN.clamp_min(1e-12)
    return x_KND * factor_KN[..., None]


def trimmed(x_K: Tensor, trim: float) -> Tensor:
    """Coordinate-wise (Yin et al. 2018): the floor(trim * K) highest and lowest values become the mean of the others.

    The mean of the result is the trimmed mean. Nothing is trimmed where trim * K < 1.
    """
    clients = len(x_K)
    count = int(trim * clients + 1e-9)
    if not count:
        return x_K
    rank_K = x_K.argsort(dim=0, stable=True).argsort(dim=0, stable=True)
    kept_K = (rank_K >= count) & (rank_K < clients - count)
    centre = (x_K * kept_K).sum(0) / (clients - 2 * count)
    return x_K.where(kept_K, centre)


def median_weights(x_KND: Tensor, steps: int = 100, smoothing: float = 1e-6) -> Tensor:
    """Weights [K, N] with which the clients' mean is the geometric median: smoothed Weiszfeld steps (Weiszfeld 1937;
    Pillutla et al. 2022, RFA, Algorithm 2). `smoothing` bounds a weight from above, in units of the mean distance."""
    weight_KN = torch.full_like(x_KND[..., 0], 1 / len(x_KND))
    for _ in range(steps):
        centre_ND = (weight_KN[..., None] * x_KND).sum(0)
        far_KN = (x_KND - centre_ND).norm(dim=-1)
        near_KN = far_KN.clamp_min(smoothing * far_KN.mean(0).clamp_min(1e-12)).reciprocal()
        new_KN = near_KN / near_KN.sum(0)
        done = (new_KN - weight_KN).abs().amax() < 1e-7
        weight_KN = new_KN
        if done:
            break
    return weight_KN


def recentred(x_KND: Tensor, weight_KN: Tensor) -> Tensor:
    """Vectors whose plain mean is the mean of `x_KND` by `weight_KN` (columns sum to one): c + K w (x - c)."""
    centre_ND = (weight_KN[..., None] * x_KND).sum(0)
    return centre_ND + len(x_KND) * weight_KN[..., None] * (x_KND - centre_ND)


def shares(reputation_K: Tensor, sharpness: float) -> Tensor:
    """Reputations in [0, 1] as shares [K] of one: rho^s / sum rho^s; equal where nobody has any."""
    weight_K = reputation_K.clamp_min(0) ** sharpness
    total = weight_K.sum()
    return weight_K / total if total > 0 else torch.full_like(weight_K, 1 / len(weight_K))


def agreement(label_KN: Tensor, share_K: Tensor, classes: int) -> Tensor:
    """How often [K] each client's label is the one with the most `share_K` behind it; ties go to the lowest class."""
    score_NC = (one_hot(label_KN, classes) * share_K[:, None, None]).sum(0)
    return (label_KN == score_NC.argmax(-1)).float().mean(1)


def likeness(x_KND: Tensor, share_K: Tensor) -> Tensor:
    """The mean cosine [K] of each client's vectors with the clients' mean by `share_K`, not below 0."""
    centre_ND = (share_K[:, None, None] * x_KND).sum(0)
    return cosine_similarity(x_KND, centre_ND[None], dim=-1).mean(1).clamp_min(0)
