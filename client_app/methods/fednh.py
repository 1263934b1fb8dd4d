"""FedNH, client side (arXiv 2212.02758, Algorithm 1). Server side: strategies/fednh.py.

Down: encoder, scale and class prototypes W. Up: encoder, scale, and the sums and counts of the client's own classes.
Axes: N samples, B batch, C classes, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from client_app.batches import ClientError
from client_app.blocks.averaging import LocalSettings, local
from client_app.client import Client
from client_app.methods.fedavg import FedAvgClient
from florilegium.config.fields import section, setting
from florilegium.learning.averaging import prototype_head, without
from florilegium.protocol.payloads import Weights

SCALE, PROTOTYPES, SUMS, COUNTS = "fednh.scale", "fednh.prototypes", "fednh.sums", "fednh.counts"
MEASURED = 256  # rows encoded at once


@section
class FedNHClientSettings(LocalSettings):
    """FedAvg's client settings, and the scale of the head, whose prototypes are not trained."""

    scale: float = setting(20.0, "s: factor of the cosines at the start; clients learn it", low=1e-3, high=1e4)


class FedNHClient(FedAvgClient):
    """Learns an encoder for a fixed head of class prototypes, then says where its classes lie."""

    Settings = FedNHClientSettings
    settings: FedNHClientSettings

    def train(self, client: Client, down: Weights) -> Weights:
        if client.conf.clients.representation != "layer_norm":
            raise ClientError(
                "fednh's prototypes need representations of one length: clients.representation=layer_norm"
            )
        scale = nn.Parameter(torch.tensor(self.settings.scale, device=client.device))
        if not down.tensors:
            return local(client, self.settings, down, beside={SCALE: scale})
        if PROTOTYPES not in down.tensors:
            raise ClientError("the server sent no prototypes")
        w_CD = down.tensors[PROTOTYPES].to(client.device)
        encoder = {name: value for name, value in down.tensors.items() if name != PROTOTYPES}
        start = Weights(encoder | prototype_head(w_CD, encoder[SCALE]))

        def head(z_BD: Tensor) -> Tensor:  # s cos(z, w_c), W is given
            return scale * normalize(z_BD, dim=-1) @ w_CD.T

        up = local(client, self.settings, start, head=head, beside={SCALE: scale})
        client.model.load_state_dict(prototype_head(w_CD, scale.detach()), strict=False)  # as evaluation will see it
        sums_CD, counts_C = self.class_sums(client)
        return Weights(without(up.tensors, "classifier") | {SUMS: sums_CD, COUNTS: counts_C}, up.examples, up.metrics)

    @staticmethod
    def class_sums(client: Client) -> tuple[Tensor, Tensor]:
        """n_c mu_c [C, D] and n_c [C], with mu_c the normalised mean of the normalised z of class c."""
        rows, sums_CD = client.data.train, torch.zeros(client.classes, client.width)
        for chosen in torch.arange(len(rows)).split(MEASURED):
            z_ND = client.encoded_rows(rows, chosen)
            sums_CD.index_add_(0, rows.labels[chosen], normalize(z_ND, dim=-1))
        counts_C = torch.bincount(rows.labels, minlength=client.classes).float()
        return normalize(sums_CD, dim=-1) * counts_C[:, None], counts_C
