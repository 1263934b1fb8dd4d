"""FedDAT, server side (arXiv 2308.12305), and a T2I model that takes its adapters (arXiv 2510.12254, Table VII).

Client side: client_app/methods/modules/feddat.py. Down and up: the shared adapters, with the T2I model or without it.
Where the adapters stand in the T2I model is our choice: docs/methods/modules.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from florilegium import seeds
from florilegium.config.diffusion import TuneSettings
from florilegium.config.fields import section, setting
from florilegium.diffusion.inserted import PARTS
from florilegium.diffusion.tuning import TuneTexts
from florilegium.federation.federation import Federation
from florilegium.learning.averaging import named, part
from strategies.blocks.rounds import Rounds
from strategies.blocks.synthesis import draw_classes
from strategies.modules.averaged_modules import SHARING, AveragedModules, AveragedModulesSettings


@section
class T2IAdapterSettings:
    """Whether the server's T2I model takes the clients' adapters, and how it learns to use them."""

    source: str = setting(
        "none",
        "none: no T2I model | averaged: the adapters of each round | fresh: those of the start, which no client "
        "trained (a control)",
        choices=("none", "averaged", "fresh"),
    )
    samples: int = setting(240, "N: synthetic samples of a round", low=1, high=1_000_000)
    class_sampling: str = setting(
        "stratified",
        "how the classes of the samples are drawn: stratified (equally many of each) | uniform",
        choices=("stratified", "uniform"),
    )
    sample_guidance: float | None = setting(
        None, "classifier-free guidance of synthetic samples; null takes diffusion.guidance", low=0, high=100
    )
    t2i: TuneSettings = setting(
        help="how the maps around the adapters are tuned, eq. 12; the decoder is frozen, so lora changes nothing",
        factory=TuneSettings,
    )


@section
class FedDATSettings(AveragedModulesSettings):
    """Who averages with whom, and what the T2I model takes."""

    t2i_adapter: T2IAdapterSettings = setting(
        help="the server's T2I model (arXiv 2510.12254, Table VII)", factory=T2IAdapterSettings
    )


class FedDAT(Rounds):
    """The mean of the shared adapters; where settings say so, a T2I model learns to use them on its own samples."""

    Settings = FedDATSettings

    def __init__(self, settings: FedDATSettings, resources: Any = None) -> None:
        super().__init__(settings, resources)
        self.shared = AveragedModules(settings, resources)
        if settings.t2i_adapter.source != "none":
            self.generator = resources.generator()
        self.fresh: dict[str, Tensor] = {}  # the adapters of the start, where these are taken

    def begin(self, federation: Federation) -> dict[str, float]:
        self.shared.take(federation)
        self.keep_fresh()
        return self.round(0, federation)  # the clients' first training

    def keep_fresh(self) -> None:
        """Remember the adapters of the start, where the T2I model takes these."""
        if self.settings.t2i_adapter.source == "fresh":
            self.fresh = dict(self.shared.weights)

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        told = self.shared.round(r, federation)
        self.weights = self.shared.weights
        return told | self.tune(r) if self.generator is not None and r else told

    def tune(self, r: int) -> dict[str, float]:
        """The model's own samples under their prompts teach the maps around the adapters; the rest is frozen."""
        s, classes, seed = self.settings.t2i_adapter, self.resources.classes, self.resources.seed
        drawn_N = draw_classes(len(classes), s.samples, s.class_sampling, seed, r)
        prompts = [classes.prompt(c) for c in drawn_N.tolist()]
        noise = [seeds.seed_of(seed, "synthesis", r, n) for n in range(s.samples)]
        images = self.generator.synthesize(prompts, noise, s.sample_guidance)
        # after the samples: workers know a tuned decoder by its number of steps
        self.generator.insert(
            chains(self.fresh or self.shared.weights, self.settings.sharing), seeds.seed_of(seed, "insert")
        )
        return self.generator.finetune(
            images,
            TuneTexts(label=prompts, full=prompts),
            None,
            replace(s.t2i, text="label", lora=None),
            rounds=(r, self.num_rounds),
            seed=seeds.seed_of(seed, "t2i", r),
        )

    def judged_model(self) -> None:
        """No global model: each client is judged with its own, adapters included."""
        return None

    # -- checkpoint --------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if self.generator is None:
            return self.shared.state()
        tensors, meta = self.generator.state()
        parts = {"modules": self.shared.weights, "fresh": self.fresh, "generator": tensors}
        return {n: v for name, values in parts.items() for n, v in named(name, values).items()}, {"generator": meta}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        if self.generator is None:
            self.shared.restore(tensors, meta)
        else:
            self.shared.weights, self.fresh = part(tensors, "modules"), part(tensors, "fresh")
            self.generator.restore(part(tensors, "generator"), meta["generator"])
        self.weights = self.shared.weights


def chains(weights: Mapping[str, Tensor], sharing: str) -> list[list[dict[str, Tensor]]]:
    """The adapters of each group of clients, the first layer's first; `weights` has them as `<group>.<place>.<part>`.

    Groups that average with each other have the same adapter at the same place, so one whose adapters are all in
    another's is left out.
    """
    places: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, value in weights.items():
        group, _, rest = name.partition(".")
        place = next(rest.removesuffix(f".{p}") for p in PARTS if rest.endswith(f".{p}"))
        places.setdefault(group, {}).setdefault(place, {})[rest.removeprefix(f"{place}.")] = value
    held = {g: {(p, tuple(v["down.weight"].shape)) for p, v in layers.items()} for g, layers in places.items()}
    kept: list[str] = []
    for group in sorted(places, key=lambda g: (-len(held[g]), g)):
        peers = [g for g in kept if SHARING[sharing](g) == SHARING[sharing](group)]
        if not any(held[group] <= held[g] for g in peers):
            kept.append(group)
    return [[places[g][p] for p in sorted(places[g], key=in_order)] for g in sorted(kept)]


def in_order(place: str) -> list[tuple[int, str]]:
    """A key by which layer 2 comes before layer 10."""
    return [(int(x), "") if x.isdigit() else (-1, x) for x in re.split(r"[.]", place)]
