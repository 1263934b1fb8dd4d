"""FedCR, client side (Zhang et al., ICML 2023; formulas from haozzh/FedCR, distributed_training_utils.py, Nets_VIB.py).

Server side: strategies/averaging/fedcr.py. Down: weights without the head, and a Gaussian of each class. Up: the same,
of this client, and its class counts. The head stays. Axes: N rows, B batch, C classes, D width, S draws.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import softplus

from client_app.batches import Batch, ClientError
from client_app.blocks.averaging import LocalSettings, local
from client_app.client import Client
from client_app.methods.fedavg import FedAvgClient
from florilegium import seeds
from florilegium.config.fields import section, setting
from florilegium.learning.averaging import named, without
from florilegium.protocol.payloads import Weights

MEANS, DEVIATIONS, COUNTS, SPREAD = "gaussians.means", "gaussians.deviations", "gaussians.counts", "spread"
GAUSSIANS = "gaussians"  # the first name of all three
HEAD = "classifier."
SMALLEST = 1e-6  # standard deviation
MEASURED = 256  # rows encoded at once


@section
class FedCRClientSettings(LocalSettings):
    """FedAvg's client settings, and the information bottleneck."""

    bottleneck: float = setting(
        1e-3,
        "beta: weight of the divergence from the Gaussian of a row's class; 0.0001 in the released script",
        low=0,
        high=1e4,
    )
    draws: int = setting(15, "draws of z for a row, over which the task's loss is the mean", low=1, high=10_000)


class FedCRClient(FedAvgClient):
    """Sees a row as a Gaussian, and holds it near what all clients together see of the row's class."""

    Settings = FedCRClientSettings
    settings: FedCRClientSettings

    def personal(self, model: nn.Module) -> set[str]:
        """The names of the head's tensors."""
        return {name for name in model.state_dict() if name.startswith(HEAD)}

    def train(self, client: Client, down: Weights) -> Weights:
        s, spread, keeps = self.settings, self.spread(client), self.personal(client.model)
        beside = named(SPREAD, dict(spread.named_parameters()))
        if not down.tensors:
            return local(client, s, down, beside=beside, keeps=keeps)
        prior_CD = self.prior(client, down.tensors)
        random = torch.Generator().manual_seed(client.seed("draws"))

        def draws(z_BD: Tensor) -> Tensor:  # mu + sigma epsilon
            epsilon_SBD = torch.randn(s.draws, *z_BD.shape, generator=random).to(z_BD)
            return z_BD + deviations(spread, z_BD) * epsilon_SBD

        def bottleneck(z_BD: Tensor, batch: Batch) -> dict[str, Tensor]:  # beta KL(prior of y || q(z | x))
            prior_BD = Normal(prior_CD.mean[batch.labels], prior_CD.stddev[batch.labels])
            kl_BD = kl_divergence(prior_BD, Normal(z_BD, deviations(spread, z_BD)))
            return {"bottleneck": s.bottleneck * kl_BD.sum(-1).mean()}

        start = replace(down, tensors=without(down.tensors, GAUSSIANS))
        terms = bottleneck if s.bottleneck else None
        up = local(client, s, start, terms, draws=draws, beside=beside, keeps=keeps)
        return replace(up, tensors=up.tensors | self.experts(client, spread))

    @staticmethod
    def spread(client: Client) -> nn.Linear:
        """The linear map from z to what its standard deviations are made of, as the seed starts it."""
        with seeds.scoped(client.conf.seed, "model", "spread"):
            return nn.Linear(client.width, client.width).to(client.device)

    @staticmethod
    def prior(client: Client, tensors: dict[str, Tensor]) -> Normal:
        """The Gaussian of each class, [C, D]. ClientError when the server sent none that fits."""
        shape = (client.classes, client.width)
        if any(name not in tensors or tensors[name].shape != shape for name in (MEANS, DEVIATIONS)):
            raise ClientError(f"the server sent no Gaussians of {client.classes} classes, {client.width} wide")
        if tensors[DEVIATIONS].min() <= 0:
            raise ClientError("the server sent a Gaussian without a positive deviation")
        return Normal(tensors[MEANS].to(client.device), tensors[DEVIATIONS].to(client.device))

    @staticmethod
    @torch.no_grad()
    def experts(client: Client, spread: nn.Linear) -> dict[str, Tensor]:
        """The product of the Gaussians of the client's own rows of each class, without a prior, and their number.

        A class of nobody has mean 0 and deviation 1, as in the released code.
        """
        rows, shape = client.data.train, (client.classes, client.width)
        precision_CD, weighted_CD = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        for chosen in torch.arange(len(rows)).split(MEASURED):
            z_ND = client.encoded_rows(rows, chosen)
            inverse_ND = deviations(spread, z_ND.to(client.device)).cpu().double() ** -2
            precision_CD.index_add_(0, rows.labels[chosen], inverse_ND)
            weighted_CD.index_add_(0, rows.labels[chosen], inverse_ND * z_ND)
        counts_C = torch.bincount(rows.labels, minlength=client.classes)
        there_C1 = counts_C[:, None] > 0
        means_CD = torch.where(there_C1, weighted_CD / precision_CD.clamp_min(1e-12), 0.0)
        deviations_CD = torch.where(there_C1, precision_CD.clamp_min(1e-12) ** -0.5, 1.0)
        return {MEANS: means_CD.float(), DEVIATIONS: deviations_CD.float(), COUNTS: counts_C.float()}


def deviations(spread: nn.Linear, z_BD: Tensor) -> Tensor:
    """sigma [B, D] = softplus of a linear map of z, at least 1e-6."""
    return softplus(spread(z_BD)).clamp_min(SMALLEST)
