"""How a server maps class means to the latent space of its generator (arXiv 2403.15760; formulas from TsingZ0/FedKTL,
serverktl_stable_diffusion.py).

Axes: P uploaded class means, C classes (and their width), V values of a latent vector.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from florilegium import seeds
from florilegium.learning.fit import fit

BANDWIDTHS = (10.0, 15.0, 20.0, 50.0)  # of the kernels of the discrepancy


def feature_transformer(classes: int, latent: int) -> nn.Sequential:
    """F: [P, C] -> [P, V], two layers. Weights are drawn from torch's global generator: call it in `seeds.scoped`."""
    return nn.Sequential(nn.Linear(classes, classes), nn.BatchNorm1d(classes), nn.ReLU(), nn.Linear(classes, latent))


def discrepancy(x_PV: Tensor, y_PV: Tensor) -> Tensor:
    """The maximum mean discrepancy of two samples: mean of K(x, x) + K(y, y) - 2 K(x, y), K the sum over BANDWIDTHS a
    of exp(-|x - y|^2 / (2 a))."""

    def kernel(a_PV: Tensor, b_PV: Tensor) -> Tensor:
        square_PP = torch.cdist(a_PV, b_PV).square()
        return torch.stack([torch.exp(-square_PP / (2 * a)) for a in BANDWIDTHS]).sum(0)

    return (kernel(x_PV, x_PV) + kernel(y_PV, y_PV) - 2 * kernel(x_PV, y_PV)).mean()


@torch.no_grad()
def centroids_of(transformer: nn.Module, means_PC: Tensor, labels_P: Tensor, before_CV: Tensor) -> Tensor:
    """[C, V]: the mean of F(prototype) of each class; a class without one keeps what it had."""
    transformer.eval()
    latents_PV = transformer(means_PC)
    sums_CV = torch.zeros_like(before_CV).index_add_(0, labels_P, latents_PV)
    counts_C = labels_P.bincount(minlength=len(before_CV))
    return torch.where(counts_C[:, None] > 0, sums_CV / counts_C.clamp_min(1)[:, None], before_CV)


def align(
    transformer: nn.Module,
    means_PC: Tensor,
    labels_P: Tensor,
    before_CV: Tensor,
    *,
    weight: float,
    lr: float,
    epochs: int,
    batch: int,
    names: tuple[object, ...],
) -> tuple[Tensor, dict[str, float]]:
    """Train F so that F(prototypes) are spread like the generator's noise and lie near their class's centroid.

    `names` are of the seed. Returns the class centroids [C, V] after it, and the means of both terms.
    """
    centroids = nn.Parameter(centroids_of(transformer, means_PC, labels_P, before_CV))
    random = seeds.generator(*names)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for chosen in torch.randperm(len(means_PC), generator=random).split(batch):
            if len(chosen) > 1:  # batch norm cannot train on one row
                noise_PV = torch.randn(len(chosen), before_CV.shape[1], generator=random)
                yield means_PC[chosen], labels_P[chosen], noise_PV

    def objective(given: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        chosen_PC, of_P, noise_PV = given
        latents_PV = transformer(chosen_PC)
        return {
            "discrepancy": discrepancy(latents_PV, noise_PV),
            "centroid": weight * mse_loss(latents_PV, centroids[of_P]),
        }

    told = fit(transformer, batches, objective, lr=lr, epochs=epochs, clip=100.0, beside=[centroids])
    figures = {f"align/{name}": told[name] for name in ("discrepancy", "centroid") if name in told}
    return centroids_of(transformer, means_PC, labels_P, centroids.detach()), figures
