"""FedRCL, client side (arXiv 2401.04928; formulas from skynbe/FedRCL, rcl_client.py, utils/loss.py).

Server side: FedAvg's, strategies/fedavg.py. Down and up: weights. Axes: B batch, D width of z, H width of a level.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from client_app.batches import Batch
from client_app.blocks.averaging import LocalSettings, local
from client_app.client import Client
from client_app.methods.fedavg import FedAvgClient
from florilegium.config.fields import section, setting
from florilegium.protocol.payloads import Weights

LEVEL = re.compile(r"(?:^|\.)(?:embedder|stages\.\d+|layers?\.\d+)$")  # of a body: its stem, stages or layers
NONE = -1e9  # in the place of a similarity that there is not


@section
class FedRCLClientSettings(LocalSettings):
    """FedAvg's client settings, and the contrast of the rows of a batch."""

    contrast: float = setting(1.0, "weight of the supervised contrast", low=0, high=1e4)
    penalty: float = setting(1.0, "weight of the penalty on rows of a class that lie too close", low=0, high=1e4)
    temperature: float = setting(0.05, "tau: temperature of both", low=1e-3, high=1e3)
    negatives: int = setting(2, "nearest rows of other classes that count", low=1, high=100_000)
    threshold: float = setting(0.7, "lambda: cosine from which rows of a class are too close", low=-1, high=1)


class FedRCLClient(FedAvgClient):
    """Draws the farthest row of its class to each row at every level of the body, and holds close ones apart."""

    Settings = FedRCLClientSettings
    settings: FedRCLClientSettings

    def train(self, client: Client, down: Weights) -> Weights:
        s = self.settings
        if not down.tensors or not s.contrast + s.penalty:
            return local(client, s, down)
        with levels(client.classifier) as seen:

            def relaxed(z_BD: Tensor, batch: Batch) -> dict[str, Tensor]:
                similar = [cosines(h) for h in (*seen.values(), z_BD)]
                contrasts = [contrast(c, batch.labels, s.temperature, s.negatives) for c in similar]
                penalties = [penalty(c, batch.labels, s.temperature, s.threshold) for c in similar]
                return {
                    "contrast": s.contrast * torch.stack(contrasts).mean(),
                    "penalty": s.penalty * torch.stack(penalties).mean(),
                }

            return local(client, s, down, relaxed)


@contextmanager
def levels(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inside, the outputs of the last forward pass that learns at the body's levels, by name: stem, stages, layers."""
    seen: dict[str, Tensor] = {}
    found = [name for name, _ in model.named_modules() if LEVEL.search(name)]
    outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]

    def keep(name: str) -> object:
        def hook(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            if torch.is_grad_enabled():  # a guide's copy of the model has these hooks, too, and learns nothing
                seen[name] = output if isinstance(output, Tensor) else output[0]

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in outer]  # type: ignore[arg-type]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def cosines(h: Tensor) -> Tensor:
    """float32 [B, B] of vectors [B, H], of the means of pictures [B, H, S, S], or of the first tokens of texts
    [B, T, H], whatever type a body computes in."""
    vectors = h.mean((2, 3), dtype=torch.float32) if h.dim() == 4 else h[:, 0] if h.dim() == 3 else h
    unit_BH = normalize(vectors.float(), dim=-1)
    return unit_BH @ unit_BH.T


def contrast(cosines_BB: Tensor, labels_B: Tensor, temperature: float, negatives: int) -> Tensor:
    """-log of the share of the farthest row of the class beside the nearest rows of others; batch mean."""
    same_BB = labels_B[:, None] == labels_B[None]
    near_B1 = cosines_BB.masked_fill(~same_BB, 2.0).min(1, keepdim=True).values
    others_BB = cosines_BB.masked_fill(same_BB, NONE)
    far_BK = others_BB.topk(min(negatives, len(labels_B)), dim=1).values
    return share_lost(near_B1, far_BK, temperature)


def penalty(cosines_BB: Tensor, labels_B: Tensor, temperature: float, threshold: float) -> Tensor:
    """-log of the share of the row itself beside the farthest other row of its class, which counts from `threshold` on
    (below it, and without another row, -1 stands for it); batch mean."""
    other_BB = (labels_B[:, None] == labels_B[None]) & ~torch.eye(
        len(labels_B), dtype=torch.bool, device=labels_B.device
    )
    least_B1 = cosines_BB.masked_fill(~other_BB, 2.0).min(1, keepdim=True).values
    close_B1 = torch.where((least_B1 >= threshold) & (least_B1 <= 1.5), least_B1, torch.full_like(least_B1, -1.0))
    return share_lost(cosines_BB.diagonal()[:, None], close_B1, temperature)


def share_lost(near_B1: Tensor, far_BK: Tensor, temperature: float) -> Tensor:
    """-log(exp(n / tau) / (exp(n / tau) + sum exp(f / tau))), batch mean."""
    both = torch.cat([near_B1, far_BK], 1) / temperature
    return (both.logsumexp(1) - both[:, 0]).mean()
