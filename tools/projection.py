"""Points in the plane for pictures: principal components, and t-SNE (van der Maaten and Hinton 2008), exact.

Axes: N points, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from florilegium import seeds

EARLY, LEARNING_STEPS = 100, 500  # steps with exaggerated neighbourhoods, steps in all


def principal(x_ND: Tensor) -> Tensor:
    """The two directions of most variance, [N, 2]."""
    centred = x_ND - x_ND.mean(0)
    _, _, v_DD = torch.linalg.svd(centred, full_matrices=False)
    return centred @ v_DD[:2].T


def neighbours(x_ND: Tensor, perplexity: float) -> Tensor:
    """Symmetric neighbour probabilities [N, N] that sum to one; each row's entropy is log(perplexity) by bisection."""
    d_NN = torch.cdist(x_ND, x_ND).square().fill_diagonal_(torch.inf)
    low, high = torch.full((len(x_ND), 1), 1e-10), torch.full((len(x_ND), 1), 1e10)
    for _ in range(64):
        beta = (low * high).sqrt()
        p_NN = (-beta * d_NN).softmax(-1)
        entropy = -(p_NN * p_NN.clamp_min(1e-30).log()).sum(-1, keepdim=True)
        wide = entropy > torch.tensor(perplexity).log()
        low, high = torch.where(wide, beta, low), torch.where(wide, high, beta)
    return (p_NN + p_NN.T) / (2 * len(x_ND))


def tsne(x_ND: Tensor, perplexity: float = 30.0) -> Tensor:
    """t-SNE from the principal components on, [N, 2]; the same every time. Perplexity at most a third of N."""
    x_ND = x_ND.double()
    p_NN = neighbours(x_ND, min(perplexity, len(x_ND) / 3))
    y = principal(x_ND)
    noise = torch.randn(y.shape, generator=seeds.generator("t-SNE"), dtype=y.dtype)
    y = 1e-4 * (y / y.std().clamp_min(1e-12) + 0.01 * noise)
    velocity, rate = torch.zeros_like(y), max(len(y) / 12, 50.0)
    for step in range(LEARNING_STEPS):
        exaggerated = p_NN * (12 if step < EARLY else 1)
        near_NN = (1 / (1 + torch.cdist(y, y).square())).fill_diagonal_(0)
        pull_NN = (exaggerated - near_NN / near_NN.sum()) * near_NN
        gradient = 4 * (pull_NN.sum(-1, keepdim=True) * y - pull_NN @ y)
        velocity = (0.5 if step < EARLY else 0.8) * velocity - rate * gradient
        y = y + velocity
    return (y - y.mean(0)).float()
