"""FedKTL, client side (arXiv 2403.15760; formulas from TsingZ0/FedKTL, clientktl.py).

Server side: strategies/prototypes/fedktl.py. Down: one synthetic sample a class and the latent vector it was made from.
Up: class means of unit vectors in the space of the classifier, which is C wide.
Axes: N samples, B batch, C classes, D width, V values of a latent vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize, one_hot

from client_app import evaluation
from client_app.batches import Batch
from client_app.blocks.averaging import Objective
from client_app.blocks.own_model import OwnModelSettings, train_objective
from client_app.blocks.prototypes import prototypes
from client_app.client import Client
from florilegium import seeds
from florilegium.config.fields import section, setting
from florilegium.protocol.payloads import LatentPairs, Nothing, Prototypes, Report


@section
class FedKTLClientSettings(OwnModelSettings):
    """The local training, the margin of its loss, and the weight of the transfer."""

    transfer: float = setting(
        100.0, "mu: weight of the distance to the latent vectors; 50 with StyleGAN, 100 with Stable Diffusion", low=0
    )
    margin: float = setting(0.5, "m: angle added to the label's, ArcFace", low=0, high=3.14)
    scale: float = setting(64.0, "s: factor of the cosines, ArcFace", low=1e-3, high=1e4)
    clip: float | None = setting(100.0, "norm that gradients are clipped to; null: no clipping", low=1e-6, high=1e6)


class FedKTLClient:
    """The same fixed classifier at all clients; a synthetic sample of each class teaches what the others know of it."""

    Settings = FedKTLClientSettings

    def __init__(self, settings: FedKTLClientSettings) -> None:
        self.settings = settings

    def train(self, client: Client, down: Nothing | LatentPairs) -> Prototypes:
        etf_CC = etf(client)
        project, objective = self.objective(client, etf_CC, down)
        figures = train_objective(client, self.settings, objective, dict(project.named_parameters()) if project else {})
        up = prototypes(client, figures, lambda z_ND: normalize(client.logits(z_ND), dim=-1))
        return replace(up, means=normalize(up.means, dim=-1))

    def objective(
        self, client: Client, etf_CC: Tensor, down: Nothing | LatentPairs
    ) -> tuple[nn.Linear | None, Objective]:
        """(the linear map from z to latent vectors that is trained beside the model, or None; batch -> loss terms)."""
        s, model = self.settings, client.classifier

        def own(batch: Batch) -> dict[str, Tensor]:  # L_A
            cosines_BC = normalize(model.head(model.encode(batch.inputs)), dim=-1) @ etf_CC
            return {"task": arcface(cosines_BC, batch.labels, s.margin, s.scale)}

        if isinstance(down, Nothing):
            return None, own
        inputs, latents_NV = client.inputs(down.samples), down.latents.to(client.device)
        with seeds.scoped(client.conf.seed, "model", "latents", latents_NV.shape[1]):
            project = nn.Linear(client.width, latents_NV.shape[1]).to(client.device)
        pieces = without_end(client, len(latents_NV), s.batch)

        def both(batch: Batch) -> dict[str, Tensor]:  # L_A + mu L_M
            chosen = next(pieces)
            seen_NV = project(model.encode(inputs[chosen].to(client.device)))
            return own(batch) | {"transfer": s.transfer * mse_loss(seen_NV, latents_NV[chosen])}

        return project, both

    def evaluate(self, client: Client) -> Report:
        etf_CC = etf(client).cpu()
        return evaluation.classified(client, lambda rows: normalize(evaluation.scores(client, rows), dim=-1) @ etf_CC)


def etf(client: Client) -> Tensor:
    """[C, C]: the fixed classifier, the same at all clients; column c is the direction of class c."""
    random = seeds.generator(client.conf.seed, "simplex", client.classes)
    return simplex(client.classes, random).to(client.device)


def simplex(classes: int, random: torch.Generator) -> Tensor:
    """A simplex equiangular tight frame: sqrt(C / (C - 1)) P (I - 1 1^T / C) with P orthogonal. Columns are unit
    vectors, and any two have the cosine -1 / (C - 1)."""
    orthogonal, _ = torch.linalg.qr(torch.rand(classes, classes, generator=random, dtype=torch.float64))
    centred = torch.eye(classes, dtype=torch.float64) - 1 / classes
    return (math.sqrt(classes / (classes - 1)) * orthogonal @ centred).float()


def arcface(cosines_BC: Tensor, labels_B: Tensor, margin: float, scale: float) -> Tensor:
    """Cross-entropy of scale * cosines, where the angle to the label's direction is larger by `margin`; batch mean."""
    angles_BC = cosines_BC.clamp(-1 + 1e-6, 1 - 1e-6).acos()  # at 1 the gradient would be infinite
    label_BC = one_hot(labels_B, cosines_BC.shape[1]).bool()
    return cross_entropy(scale * torch.where(label_BC, torch.cos(angles_BC + margin), cosines_BC), labels_B)


def without_end(client: Client, rows: int, size: int) -> Iterator[Tensor]:
    """Pieces of at most `size` of `rows` in random order, pass after pass."""
    for turn in count():
        random = torch.Generator().manual_seed(client.seed("transfer", turn))
        yield from torch.randperm(rows, generator=random).split(size)
