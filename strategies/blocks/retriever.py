"""The server's own dual encoder: trained on public pairs, taught by the clients' features, judged by retrieval.

Axes: N pairs, B batch, D width, S image side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_

from florilegium import seeds
from florilegium.config.fields import section, setting
from florilegium.models.build import build_pair
from florilegium.models.embeddings import image_features, text_features
from florilegium.models.pair import DualEncoder
from florilegium.protocol import pixels


@section
class RetrieverSettings:
    """How the server's encoders look and learn. "Our choice" marks values for the embedded data's small scale."""

    architecture: str = setting(
        "clip+clip",
        "image+text, the bodies of the two encoders, with their sizes in clients.architectures; the paper has "
        "ResNet-101 and BERT",
    )
    epochs: int = setting(1, "supervised passes over the public pairs in a round; 1 in the paper", low=0, high=100_000)
    kd_epochs: int = setting(1, "distillation passes in a round; 1 in the paper", low=0, high=100_000)
    learning_rate: float = setting(1.0e-3, "learning rate; the paper has 2e-4 with AdamP", low=0, high=10)
    weight_decay: float = setting(0.01, "weight decay", low=0, high=10)
    batch: int = setting(64, "public pairs in a batch; 128 in the paper", low=2, high=100_000)
    clip: float = setting(2.0, "norm that gradients are clipped to, as in the paper", low=1e-6, high=1e6)
    keep_pretrained: bool = setting(
        True, "true: a body that was trained before (clip) stays as it is, and its projection learns (our choice)"
    )
    schedule: str = setting(
        "cosine",
        "learning rate over the rounds of a run: cosine (the paper) | constant",
        choices=("cosine", "constant"),
    )


class Retriever:
    """A DualEncoder and what the server does with it. The optimiser is made anew for each stage of a round."""

    def __init__(self, settings: RetrieverSettings, resources: Any) -> None:
        self.settings, self.seed = settings, resources.seed
        with seeds.scoped(resources.seed, "model", "server"):
            self.model: DualEncoder = build_pair(resources.conf.clients, settings.architecture)
        for body in (self.model.image.body, self.model.text.body):
            body.requires_grad_(not (settings.keep_pretrained and getattr(body, "pretrained", False)))

    def features(self, images: Tensor, texts: tuple[str, ...]) -> dict[str, Tensor]:
        """Unit features [N, D] of both sides, in evaluation mode: no augmentation, one order."""
        return {
            "image": image_features(self.model.image, images, self.model.device),
            "text": text_features(self.model.text, texts, self.model.vocabulary, self.model.device),
        }

    def supervise(
        self,
        images: Tensor,
        texts: tuple[str, ...],
        groups_N: Tensor,
        rounds: tuple[int, int],
        epochs: int | None = None,
    ) -> dict[str, float]:
        """Contrastive passes over the pairs (None: the settings' number); pairs of one group match."""

        def loss(rows: Tensor) -> dict[str, Tensor]:
            image_BD, text_BD = self.model(*self.inputs(images, texts, rows))
            return {"retrieval": self.model.loss(image_BD, text_BD, groups_N[rows].to(self.model.device))}

        return self.passes(loss, len(images), self.settings.epochs if epochs is None else epochs, rounds, "supervise")

    def distill(
        self,
        images: Tensor,
        texts: tuple[str, ...],
        targets: Mapping[str, Tensor],
        weight: float,
        rounds: tuple[int, int],
    ) -> dict[str, float]:
        """weight * MSE(own feature, target [N, D]) of each side that has a target."""

        def loss(rows: Tensor) -> dict[str, Tensor]:
            own = dict(zip(("image", "text"), self.model(*self.inputs(images, texts, rows)), strict=True))
            return {
                f"kd_{side}": weight * mse_loss(own[side], target[rows].to(self.model.device))
                for side, target in targets.items()
            }

        epochs = self.settings.kd_epochs if targets and weight else 0
        return self.passes(loss, len(images), epochs, rounds, "distill")

    def inputs(self, images: Tensor, texts: tuple[str, ...], rows: Tensor) -> tuple[Tensor, Tensor]:
        """float images [B, 3, S, S] in [-1, 1] and token ids [B, T] of these rows."""
        tokens = self.model.vocabulary([texts[n] for n in rows.tolist()])
        return pixels.scaled(images[rows]).to(self.model.device), tokens.to(self.model.device)

    def passes(
        self,
        loss: Callable[[Tensor], dict[str, Tensor]],
        count: int,
        epochs: int,
        rounds: tuple[int, int],
        name: str,
        beside: Iterable[Tensor] = (),
    ) -> dict[str, float]:
        """Minimise the sum of the terms of `loss(rows)` over `count` rows; the mean of each as server/<term>.

        `rounds` is (this one, all of them), for the schedule; `name` tells this stage's shuffling from another's;
        `beside` are parameters that learn with the model's.
        """
        s, steps = self.settings, 0
        totals: dict[str, float] = {}
        now = s.learning_rate * (annealed(rounds) if s.schedule == "cosine" else 1.0)
        trained: list[Tensor] = [p for p in self.model.parameters() if p.requires_grad]
        trained += beside
        stepper = torch.optim.AdamW(trained, lr=now, weight_decay=s.weight_decay)
        self.model.train()
        for body in (self.model.image.body, self.model.text.body):
            if not any(p.requires_grad for p in body.parameters()):  # frozen: its batch norm stands still, too
                body.eval()
        with seeds.scoped(self.seed, "server", name, rounds[0]):
            for _ in range(epochs):
                for rows in torch.randperm(count).split(s.batch):
                    if len(rows) < 2:  # batch norm and a contrast need two
                        continue
                    terms = loss(rows)
                    stepper.zero_grad(set_to_none=True)
                    torch.stack(list(terms.values())).sum().backward()
                    clip_grad_norm_(trained, s.clip)
                    stepper.step()
                    steps += 1
                    for key, value in terms.items():
                        totals[key] = totals.get(key, 0.0) + value.item()
        return {f"server/{key}": value / steps for key, value in totals.items()}

    def state(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(dict(tensors))


def annealed(rounds: tuple[int, int]) -> float:
    """The share of the learning rate in round r of R: half a cosine, 1 in rounds 0 and 1, near 0 after the last."""
    r, last = rounds
    return 0.5 * (1 + math.cos(math.pi * min(max(r - 1, 0) / max(last, 1), 1)))
