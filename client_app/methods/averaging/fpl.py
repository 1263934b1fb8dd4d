"""FPL, client side (Huang et al., CVPR 2023; formulas from WenkeHuang/RethinkFL, models/fpl.py).

Server side: strategies/averaging/fpl.py. Down: weights, cluster prototypes and their classes. Up: weights, the client's
class means and counts. Axes: B batch, C classes, G cluster prototypes of all classes, D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from client_app.batches import Batch, ClientError
from client_app.blocks.averaging import LocalSettings, Terms, local
from client_app.blocks.prototypes import prototypes
from client_app.client import Client
from client_app.methods.fedavg import FedAvgClient
from florilegium.config.fields import section, setting
from florilegium.learning.averaging import without
from florilegium.protocol.payloads import Weights

FPL_PART, CLUSTERS, CLASSES, MEANS, COUNTS = "fpl", "fpl.clusters", "fpl.classes", "fpl.means", "fpl.counts"


@section
class FPLClientSettings(LocalSettings):
    """FedAvg's client settings, and the two terms of the prototypes."""

    temperature: float = setting(0.02, "tau: temperature of the contrast with cluster prototypes", low=1e-3, high=1e3)
    contrast: float = setting(1.0, "weight of the contrast with cluster prototypes; 1 in the paper", low=0, high=1e4)
    consistency: float = setting(
        1.0, "weight of the distance to the unbiased prototype of the class; 1 in the paper", low=0, high=1e4
    )


class FPLClient(FedAvgClient):
    """Local epochs that draw a row to the prototypes of its class in all domains, and to their mean."""

    Settings = FPLClientSettings
    settings: FPLClientSettings

    def train(self, client: Client, down: Weights) -> Weights:
        start = replace(down, tensors=without(down.tensors, FPL_PART))
        up = local(client, self.settings, start, self.terms(client, down.tensors) if CLUSTERS in down.tensors else None)
        if not down.tensors:
            return up
        own = prototypes(client, {})
        means_CD, counts_C = torch.zeros(client.classes, client.width), torch.zeros(client.classes)
        means_CD[own.classes], counts_C[own.classes] = own.means, own.counts.float()
        return replace(up, tensors=up.tensors | {MEANS: means_CD, COUNTS: counts_C})

    def terms(self, client: Client, tensors: dict[str, Tensor]) -> Terms:
        """z [B, D] -> the cluster prototypes' contrastive loss and the unbiased prototypes' consistency."""
        s, clusters_GD, of_G = self.settings, tensors[CLUSTERS].to(client.device), tensors[CLASSES].to(client.device)
        if clusters_GD.shape != (len(of_G), client.width) or of_G.dtype != torch.int64 or of_G.max() >= client.classes:
            raise ClientError("the server's cluster prototypes and their classes do not fit the model")
        counts_C = of_G.bincount(minlength=client.classes)
        sums_CD = clusters_GD.new_zeros(client.classes, client.width).index_add_(0, of_G, clusters_GD)
        unbiased_CD = sums_CD / counts_C.clamp_min(1)[:, None]  # the mean of a class's cluster prototypes

        def hierarchical(z_BD: Tensor, batch: Batch) -> dict[str, Tensor]:
            known_B = counts_C[batch.labels] > 0  # a class without a prototype adds nothing
            return {
                "contrast": s.contrast * (cluster_contrast(z_BD, batch.labels, clusters_GD, of_G, s) * known_B).mean(),
                "consistency": s.consistency * ((z_BD - unbiased_CD[batch.labels]).square().mean(-1) * known_B).mean(),
            }

        return hierarchical


def cluster_contrast(
    z_BD: Tensor, labels_B: Tensor, clusters_GD: Tensor, of_G: Tensor, settings: FPLClientSettings
) -> Tensor:
    """[B]: -log of the share that the prototypes of the row's class have of all, by exp(cosine / tau); 0 without."""
    cosines_BG = normalize(z_BD, dim=-1) @ normalize(clusters_GD, dim=-1).T / settings.temperature
    mine_BG = labels_B[:, None] == of_G[None]
    mine_B = cosines_BG.masked_fill(~mine_BG, -1e9).logsumexp(-1)
    return torch.where(mine_BG.any(-1), cosines_BG.logsumexp(-1) - mine_B, torch.zeros_like(mine_B))
