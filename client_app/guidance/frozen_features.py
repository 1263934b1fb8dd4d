"""Features that the frozen diffusion model computes of a client's own rows, once, with a cache on disk.

Axes: N rows, Q features of a row, D width, W text width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from client_app.batches import ClientError
from client_app.client import Client
from florilegium import seeds
from florilegium.config.diffusion import DiffusionSettings
from florilegium.config.instances import from_text, to_text
from florilegium.data.datasets import classes_of
from florilegium.data.stored_images import picked
from florilegium.diffusion.cache import FeatureCache
from florilegium.diffusion.features import FeatureExtractor
from florilegium.diffusion.projection import Projection
from florilegium.methods.guidance.anchors import representations
from florilegium.methods.guidance.prompts import Questions, class_prompts, opened, questions
from florilegium.methods.guidance.settings import GuidanceSettings

GUIDE = "guide"  # the name under which the client keeps it


@lru_cache(maxsize=2)
def extractor_of(diffusion: str) -> FeatureExtractor:
    """The frozen model of these settings (as text), once in a process; it reads its weights when first asked."""
    return opened(from_text(DiffusionSettings, diffusion))


@dataclass
class FrozenFeatures:
    """The frozen model's features of a client's own rows, with the settings of the server's guide."""

    client: Client
    settings: GuidanceSettings
    tensors: Mapping[str, Tensor]
    version: str
    extractor: FeatureExtractor = field(init=False)
    cache: FeatureCache = field(init=False)

    def __post_init__(self) -> None:
        conf = self.client.conf
        self.extractor = extractor_of(to_text(conf.diffusion))
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
        prompts = class_prompts(classes_of(self.client.conf.data), s)
        return questions(prompts, data.labels[self.order], self.rows, s.feddifrc, s.noise_seed)

    def features(self, condition: Tensor | None = None) -> Tensor:
        """float16 [N, Q, D]: H, F+ and F- of each row. They come from the server if it computes them, else from the
        cache.

        With a `condition` [N, W] they are not cached. ClientError when the server's features are for other rows.
        """
        if self.settings.feddifrc.location == "server":
            if not torch.equal(self.tensors["ids"], self.rows):
                raise ClientError("the features from the server are not those of this client's rows")
            return self.tensors["features"]
        asked, images = self.questions, picked(self.client.data.train.images, self.order)
        given = (images, self.rows, asked.prompts, asked.which_NQ, self.projection, self.settings.noise_seed)
        if condition is not None:
            return self.extractor.conditional(*given, condition=condition).half()
        return self.cache.features(self.extractor, *given)

    @cached_property
    def dense_extractor(self) -> FeatureExtractor:
        """The frozen model, whose features are maps of `feddifrc.grid` places."""
        return self.extractor.on_grid(self.settings.feddifrc.grid)

    def maps(self) -> Tensor:
        """float16 [N, D, G, G]: H of each row at every place, under the prompt of H, through the cache."""
        s, images = self.settings.feddifrc, picked(self.client.data.train.images, self.order)
        prompt_N1 = torch.zeros(len(self.rows), 1, dtype=torch.int64)
        given = (images, self.rows, [s.noise_prompt], prompt_N1, self.projection, self.settings.noise_seed)
        return self.cache.features(self.dense_extractor, *given)[:, 0].unflatten(-1, (-1, s.grid, s.grid))

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
        images = picked(self.client.data.train.images, self.order)
        s, weights = self.settings, {name: a.item() for name, a in under("amda", self.tensors).items()}
        found = representations(
            self.extractor,
            images,
            self.rows,
            s.semanticfl.anchors.timestep,
            s.noise_seed,
            weights,
            Projection.of(under("levels", self.tensors)),
        )
        self.client.memory.keep("levels", {"ids": self.rows, "levels": found}, {"version": self.version})
        return found

    @property
    def _dense_passes(self) -> int:
        """Rows of the U-Net for `maps`; without making its extractor."""
        return self.dense_extractor.passes if "dense_extractor" in self.__dict__ else 0

    def counted(self) -> dict[str, float]:
        """Rows found and computed, and rows of the U-Net, since this object was opened."""
        return {
            "cache/hits": float(self.cache.hits),
            "cache/misses": float(self.cache.misses),
            "cache/passes": float(self.extractor.passes - self.before + self._dense_passes),
        }


def under(first: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named `<first>.<name>`, by name."""
    return {name.removeprefix(f"{first}."): value for name, value in tensors.items() if name.startswith(f"{first}.")}


def orthogonal(width: int, onto: int) -> Tensor:
    """[D, W] with orthonormal rows (or columns, where W < D); seed 0, the same everywhere."""
    drawn = torch.randn(max(width, onto), min(width, onto), generator=seeds.generator(0, "orthogonal", width, onto))
    q = torch.linalg.qr(drawn).Q
    return q if width >= onto else q.T.contiguous()
