"""Guidance, client half: the terms a frozen diffusion model adds to any local objective. Server: strategies/guided.py.

The server's guide (shared projection, anchors) comes once and is kept by version; what the frozen model sees in the
client's own rows is taken once, through a cache on disk. Nothing of it is sent but, where `allow_upload` says so, the
client's labelled images. Axes: B batch, N rows, Q features of a row, D width, W text width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from client_app.client import Batch, Client, ClientError
from florilegium import pixels
from florilegium.data.datasets import open_dataset
from florilegium.diffusion.cache import FeatureCache
from florilegium.diffusion.features import FeatureExtractor
from florilegium.diffusion.projection import Projection
from florilegium.guidance import GuidanceSettings, Questions, class_prompts, opened, questions
from florilegium.wire import Examples, Guide, Nothing, Report

GUIDE = "guide"  # the name under which the client keeps it


@lru_cache(maxsize=2)
def extractor_of(diffusion: str) -> FeatureExtractor:
    """The frozen model of these settings (YAML), once in a process; its weights are read when they are first needed."""
    return opened(OmegaConf.create(diffusion))


@dataclass
class Guides:
    """The guides of a client's training, spoken to as one."""

    each: Sequence[Any] = ()
    own: Sight | None = None

    @property
    def supervised(self) -> bool:
        """Whether labels may reach the encoder."""
        return all(guide.supervised for guide in self.each)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained beside the model's; they travel as "guidance.<name>"."""
        return {name: p for guide in self.each for name, p in guide.parameters.items()}

    def terms(self, z_BD: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Named scalar terms of the objective."""
        return {name: term for guide in self.each for name, term in guide.terms(z_BD, batch).items()}

    def metrics(self) -> dict[str, float]:
        """What the cache had to do for this training."""
        return self.own.counted() if self.own is not None else {}


@dataclass
class Sight:
    """What the frozen model sees in a client's own rows, as the server's guide has it looked at."""

    client: Client
    settings: GuidanceSettings
    tensors: Mapping[str, Tensor]
    version: str
    extractor: FeatureExtractor = field(init=False)
    cache: FeatureCache = field(init=False)

    def __post_init__(self) -> None:
        conf = self.client.conf
        self.extractor = extractor_of(OmegaConf.to_yaml(conf.diffusion, resolve=True))
        self.cache = FeatureCache(self.settings.cache or Path(self.client.memory.folder.parents[2], "features"))
        self.before = self.extractor.passes

    @cached_property
    def rows(self) -> Tensor:
        """The client's ids, ascending; `at` finds a row by them."""
        return self.client.data.train.ids.sort().values

    def at(self, ids_B: Tensor) -> Tensor:
        """The rows of these ids, in the order of `rows`."""
        return torch.searchsorted(self.rows, ids_B)

    @property
    def order(self) -> Tensor:
        """The client's rows in the order of `rows`."""
        return self.client.data.train.ids.argsort()

    @cached_property
    def projection(self) -> Projection:
        return Projection.of(under("pca", self.tensors))

    @cached_property
    def questions(self) -> Questions:
        """What FedDifRC asks about each row, in the order of `rows`."""
        s, data = self.settings, self.client.data.train
        prompts = class_prompts(open_dataset(self.client.conf.data).classes, s)
        return questions(prompts, data.labels[self.order], self.rows, s.feddifrc, s.noise_seed)

    def features(self, condition: Tensor | None = None) -> Tensor:
        """float16 [N, Q, D]: H, F+ and F- of each row. From the server where it extracts; else through the cache.

        With `condition` [N, W] of the moment they are not worth caching. ClientError when the server's are others'.
        """
        if self.settings.feddifrc.location == "server":
            if not torch.equal(self.tensors["ids"], self.rows):
                raise ClientError("the features from the server are not those of this client's rows")
            return self.tensors["features"]
        asked, images = self.questions, self.client.data.train.images[self.order]
        given = (images, self.rows, asked.prompts, asked.which_NQ, self.projection, self.settings.noise_seed)
        if condition is not None:
            return self.extractor.conditional(*given, condition=condition).half()
        return self.cache.features(self.extractor, *given)

    def standard(self, features: Tensor) -> Tensor:
        """Features as float32, less the calibration images' mean (and by their deviation) where the guide has them."""
        features = features.float()
        if "centre" in self.tensors:
            features = features - self.tensors["centre"]
        return features / self.tensors["scale"] if "scale" in self.tensors else features

    def levels(self) -> Tensor:
        """float32 [N, D]: SemanticFL's V of each row (source private_local), taken once for each guide."""
        kept = self.client.memory.kept("levels")
        if kept is not None and kept[1]["version"] == self.version and torch.equal(kept[0]["ids"], self.rows):
            return kept[0]["levels"]
        from florilegium.diffusion.anchors import representations

        images = self.client.data.train.images[self.order]
        s, weights = self.settings, {name: a.item() for name, a in under("amda", self.tensors).items()}
        found = representations(self.extractor, images, self.rows, s.semanticfl.anchors.timestep, s.noise_seed, weights,
                                Projection.of(under("levels", self.tensors)))
        self.client.memory.keep("levels", {"ids": self.rows, "levels": found}, {"version": self.version})
        return found

    def counted(self) -> dict[str, float]:
        """Rows found and computed, and rows of the U-Net, since this sight was opened."""
        return {"cache/hits": float(self.cache.hits), "cache/misses": float(self.cache.misses),
                "cache/passes": float(self.extractor.passes - self.before)}


def under(first: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named `<first>.<name>`, by name."""
    return {name.removeprefix(f"{first}."): value for name, value in tensors.items() if name.startswith(f"{first}.")}


# -- the server's words ------------------------------------------------------------------------------------------------


def represent(half: Any, client: Client, down: Guide | Nothing) -> Report | Examples:
    """The `represent` phase of every half that takes guidance: keep a guide and look once, or give the own rows away.

    ClientError where nothing allows an upload, or the guide does not fit this client.
    """
    s: GuidanceSettings = half.settings.guidance
    if isinstance(down, Nothing):
        if not s.uploads:
            raise ClientError("no image leaves this client: guidance neither extracts nor makes anchors at the server")
        rows = client.data.train
        order = rows.ids.argsort()
        return Examples(rows.ids[order], rows.labels[order], tuple(pixels.encode(rows.images[order], "png")))
    check(client, s, down)
    tensors = {**down.tensors, "visual": down.visual, "text": down.text, "ids": down.ids, "features": down.features}
    client.memory.keep(GUIDE, tensors, {"version": down.version})
    sight = Sight(client, s, tensors, down.version)
    if s.feddifrc_on and s.feddifrc.condition == "none":
        sight.features()
    if s.semanticfl_on and s.semanticfl.source == "private_local":
        sight.levels()
    return Report(sight.counted(), client.examples)


def crossing(settings: Any) -> tuple[tuple[type, ...], tuple[type, ...]]:
    """What these settings of a half let come down and go up in `represent` (florilegium/phases.py)."""
    s: GuidanceSettings = settings.guidance
    if s.name == "none":
        return (), ()
    return ((Guide, Nothing), (Report, Examples)) if s.uploads else ((Guide,), (Report,))


represent.crossing = crossing  # type: ignore[attr-defined]


def check(client: Client, s: GuidanceSettings, guide: Guide) -> None:
    """ClientError for a guide that this client's rows and model cannot use."""
    if s.feddifrc_on:
        try:
            width = Projection.of(under("pca", guide.tensors)).width
        except ValueError as error:
            raise ClientError(f"the guide's projection: {error}") from error
        if width != client.width:
            raise ClientError(f"the guide projects to {width}, this client's representations are {client.width} wide")
        if s.feddifrc.location == "server" and len(guide.ids) != client.examples:
            raise ClientError(f"the guide has features of {len(guide.ids)} rows, this client has {client.examples}")
    if s.semanticfl_on and guide.visual.numel() and guide.visual.shape[-1] != client.width:
        raise ClientError(f"anchors are {guide.visual.shape[-1]} wide, representations {client.width}")


def of(client: Client, s: GuidanceSettings) -> Guides:
    """The guides of this client's training. ClientError when guidance is on but no guide was ever kept."""
    if s.name == "none":
        return Guides()
    from client_app.methods.feddifrc import FedDifRCGuide
    from client_app.methods.semanticfl import SemanticFLGuide

    kept = client.memory.kept(GUIDE)
    if kept is None:
        raise ClientError(f"guidance is {s.name}, but no guide was kept; the server sends it again")
    sight = Sight(client, s, kept[0], str(kept[1]["version"]))
    each: list[Any] = []
    if s.feddifrc_on:
        each.append(FedDifRCGuide(s.feddifrc, client, sight))
    if s.semanticfl_on:
        each.append(SemanticFLGuide(s.semanticfl, client, sight))
    return Guides(each, sight)
