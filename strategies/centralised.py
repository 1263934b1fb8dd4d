"""Centralised: the T2I model tuned on the pooled private data, the upper bound of Table II.

It breaks the federation's promise on purpose and only where the data are public anyway: the embedded data sets.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from florilegium import seeds
from florilegium.config.diffusion import TuneSettings
from florilegium.config.fields import section, setting
from florilegium.diffusion.tuning import TuneTexts
from florilegium.federation.federation import Federation
from strategies.blocks.rounds import Rounds


@section
class CentralisedSettings:
    """Settings of Centralised: as many samples a round as FedMMKT has, and the same tuning."""

    samples: int = setting(240, "private images that the T2I model is tuned on each round", low=1, high=1_000_000)
    t2i: TuneSettings = setting(help="how the T2I model is tuned, eqs. 11 and 12", factory=TuneSettings)


class Centralised(Rounds):
    """Each round tunes on `samples` real private training images and their texts."""

    Settings = CentralisedSettings
    asks_clients = False

    def __init__(self, settings: CentralisedSettings, resources: Any) -> None:
        super().__init__(settings, resources)
        self.classes, self.seed = resources.classes, resources.seed
        self.generator = resources.generator()

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        images, labels, texts = self.resources.pooled_private()
        order = torch.randperm(len(images), generator=seeds.generator(self.seed, "centralised", r))
        rows = order[: self.settings.samples]
        prompts = [self.classes.prompt(c) for c in labels[rows].tolist()]
        captions = [texts[i] for i in rows.tolist()]
        return self.generator.finetune(
            images[rows],
            TuneTexts.of(prompts, captions, self.settings.t2i.text),
            None,
            self.settings.t2i,
            rounds=(r, self.num_rounds),
            seed=seeds.seed_of(self.seed, "t2i", r),
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.generator.state()

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.generator.restore(tensors, meta)
