"""Features of an image by a frozen diffusion model: the maps of its decoder after one call at noise level t.

Guidance shows these to clients (arXiv 2507.06482, arXiv 2603.19337); nothing here is ever trained.
One VAE encoding and one noisy latent serve all prompts of an image, a prompt is encoded once, and the call ends with
the last wanted block. Axes: N images, Q prompts of an image, R rows (image, prompt), E noise draws, P positions,
C channels, T tokens, W token width, D feature width; h w latent sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from florilegium import seeds
from florilegium.config.diffusion import DiffusionSettings
from florilegium.data.stored_images import StoredImages
from florilegium.diffusion.generator import Progress, device_of, enough_memory
from florilegium.diffusion.load import backend, directory, weights_hash
from florilegium.diffusion.networks import Network, Texts
from florilegium.diffusion.projection import Projection
from florilegium.protocol.pixels import scaled

FORMAT = 2  # raised whenever the same settings would give other features
FEWEST_IMAGES = 256  # that a PCA is fitted on, even where fewer have tokens enough
PROMPTS_AT_ONCE = 256


class _LastBlock(Exception):
    """The last requested block has run; the rest of the decoder need not run."""


class FeatureExtractor:
    """Features of a pipeline's directory or hub id. The pipeline is read when first needed, not before.

    `version` tells everything that changes features but the images, ids, prompts, seed and projection; `passes` counts
    the decoder's rows. ValueError for a layer that the decoder does not have.
    """

    def __init__(self, place: str, settings: DiffusionSettings) -> None:
        self.folder, self.settings, self.features = directory(str(place)), settings, settings.features
        self.device, self.name, self.passes = device_of(settings.device), self.folder.name, 0
        self.grid: int | None = None  # side of the maps that features are (`on_grid`); None: they are pooled
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        self.view = backend(
            str(self.folder), settings.backend
        ).loaded_view()  # how its backend sees images and reads texts
        network = self.view.network
        self.blocks = network.depth(json.loads((self.folder / network.part / "config.json").read_text()))
        if self.features.layers[-1] > self.blocks:
            raise ValueError(
                f"diffusion.features.layers: layer {self.features.layers[-1]}, but the decoder of "
                f"{self.name} has {self.blocks} blocks"
            )

    @cached_property
    def version(self) -> str:
        """A hash of the weights and of what changes features."""
        f = self.features
        told = [
            FORMAT,
            weights_hash(self.folder),
            self.settings.dtype,
            f.timestep,
            list(f.layers),
            f.pool,
            f.size,
            f.posterior,
            f.ensemble,
            f.pca,
            f.batch if f.pca == "per_batch" else None,
            *([] if self.grid is None else [self.grid]),
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]

    @cached_property
    def pipe(self) -> Any:
        """The frozen pipeline, without the VAE's decoder."""
        return self.view.open(str(self.folder), self.device, self.dtype)

    @cached_property
    def network(self) -> Network:
        """The frozen decoder."""
        return self.view.network(getattr(self.pipe, self.view.network.part))

    @property
    def layers(self) -> list[str]:
        """The layers' names in all that is given back, e.g. up2, or block12 of a transformer."""
        return [f"{self.view.network.layer}{layer}" for layer in self.features.layers]

    @property
    def native(self) -> int:
        """Pixels on a side that the VAE sees."""
        size = self.network.decoder.config.sample_size
        scale = getattr(self.pipe, "vae_scale_factor", 1)
        return self.features.size or (size if isinstance(size, int) else size[0]) * scale

    def width(self, projection: Projection) -> int:
        """D of the features under this projection; D * G * G of those on a grid."""
        width = sum(self.features.dims) if self.features.pca == "per_batch" else projection.width
        return width * (self.grid or 1) ** 2

    def on_grid(self, side: int) -> FeatureExtractor:
        """The same frozen model, whose features are not pooled: maps [D, G, G] as one row, G = `side` places."""
        _ = self.pipe  # read once for both
        other = copy(self)
        other.__dict__.pop("version", None)
        other.grid, other.passes = side, 0
        return other

    # -- features under prompts (arXiv 2507.06482) ---------------------------------------------------------------------

    @torch.no_grad()
    def conditional(
        self,
        images: Tensor | StoredImages,
        ids: Tensor,
        prompts: Sequence[str],
        which_NQ: Tensor,
        projection: Projection,
        seed: int,
        progress: Progress | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """float32 [N, Q, D]: what the decoder sees in uint8 image n [3, S, S] under the prompt `prompts[which[n, q]]`.

        Noise depends on (seed, id, draw) alone. `condition` [N, W] is added to every token of the image's prompts.
        ValueError where lengths differ or a prompt's number is out of range.
        """
        count, many = which_NQ.shape
        rows_R2 = torch.stack([torch.arange(count).repeat(many), which_NQ.T.reshape(-1)], 1)  # all n of q = 0 first
        found = self.pairs(images, ids, prompts, rows_R2, projection, seed, progress, condition)
        return found.reshape(many, count, -1).transpose(0, 1).contiguous()

    @torch.no_grad()
    def pairs(
        self,
        images: Tensor | StoredImages,
        ids: Tensor,
        prompts: Sequence[str],
        rows_R2: Tensor,
        projection: Projection,
        seed: int,
        progress: Progress | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """float32 [R, D] for rows (number of the image, number of the prompt), as `conditional`."""
        self._check(images, ids, prompts, rows_R2, condition)
        f, done = self.features, 0
        projection = projection.to(self.device)
        texts_U = self._text(prompts)
        found = torch.zeros(len(rows_R2), self.width(projection))
        for first in range(0, len(images), f.batch):
            here = ((rows_R2[:, 0] >= first) & (rows_R2[:, 0] < first + f.batch)).nonzero().flatten()
            if not len(here):
                continue
            part = slice(first, first + f.batch)
            noisy_ENCHW = self._noisy(self._latents(images[part], ids[part], seed), ids[part], f.timestep, seed)
            for rows in here.split(f.batch):
                n, said = rows_R2[rows].T
                texts_R = texts_U[said]
                if condition is not None:
                    tokens = texts_R.tokens
                    texts_R = texts_R.with_tokens(tokens + condition[n].to(tokens)[:, None])
                maps = self._maps(noisy_ENCHW[:, n - first], f.timestep, texts_R)
                found[rows] = self._projected(maps, projection, seed).cpu()
                done += len(rows)
                if progress:
                    progress(done, len(rows_R2))
        return found

    @torch.no_grad()
    def fit(
        self, images: Tensor | StoredImages, ids: Tensor, seed: int, progress: Progress | None = None
    ) -> Projection:
        """The axes of these images' maps under the empty prompt: shuffled images until there are tokens enough."""
        if not len(images):
            raise ValueError("a projection cannot be fitted on no image")
        f, held, seen = self.features, 0, 0
        tokens: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        order = torch.randperm(len(images), generator=seeds.generator(seed, "calibration"))
        blank_1 = self._text([""])
        for chosen in order.split(f.batch):
            if held >= f.calibration and seen >= FEWEST_IMAGES:
                break
            noisy = self._noisy(self._latents(images[chosen], ids[chosen], seed), ids[chosen], f.timestep, seed)
            maps = self._maps(noisy, f.timestep, blank_1.expand(len(chosen)))
            for name, map_BPC in maps.items():
                tokens[name].append(map_BPC.flatten(0, 1).cpu())
            seen, held = seen + len(chosen), held + min(len(parts[-1]) for parts in tokens.values())
            if progress:
                progress(min(held, f.calibration), f.calibration)
        return Projection.fitted(
            {
                name: _some(torch.cat(parts), f.calibration, seeds.generator(seed, "tokens", name))
                for name, parts in tokens.items()
            },
            f.dims,
            seed,
        )

    # -- levels and texts (arXiv 2603.19337) ---------------------------------------------------------------------------

    @torch.no_grad()
    def levels(
        self, images: Tensor | StoredImages, ids: Tensor, timestep: int, seed: int, progress: Progress | None = None
    ) -> dict[str, Tensor]:
        """Under the empty prompt: each layer's mean over positions, `up2` [N, C], and `vae`, the latent as 8 x 8."""
        found: dict[str, list[Tensor]] = {name: [] for name in (*self.layers, "vae")}
        blank_1 = self._text([""])
        for part, here in zip(images.split(self.features.batch), ids.split(self.features.batch), strict=True):
            latents = self._latents(part, here, seed)
            maps = self._maps(self._noisy(latents, here, timestep, seed), timestep, blank_1.expand(len(part)))
            for name, map_BPC in maps.items():
                found[name].append(map_BPC.mean(1).cpu())
            found["vae"].append(adaptive_avg_pool2d(latents, 8).flatten(1).cpu())
            if progress:
                progress(sum(map(len, found["vae"])), len(images))
        return {name: torch.cat(parts) for name, parts in found.items()}

    @torch.no_grad()
    def text(self, prompts: Sequence[str], pooled: bool = True) -> Tensor:
        """The pipeline's text encoder: [U, W], what stands at the end of the text, or all tokens [U, T, W]."""
        if not pooled:
            return self._text(prompts).tokens.cpu()
        return self.view.pooled(self.pipe, list(prompts)).float().cpu()

    # -- the model -----------------------------------------------------------------------------------------------------

    def _text(self, prompts: Sequence[str]) -> Texts:
        """Each prompt once, in float32."""
        parts = [list(prompts[i : i + PROMPTS_AT_ONCE]) for i in range(0, len(prompts), PROMPTS_AT_ONCE)]
        return Texts.joined([self.view.texts(self.pipe, part) for part in parts]).to(torch.float32)

    def _latents(self, images: Tensor, ids: Tensor, seed: int) -> Tensor:
        """x0 of uint8 [N, 3, S, S], white +1 and black -1: scaled latents [N, C, h, w] in float32."""
        pixels = scaled(images.to(self.device))
        if pixels.shape[-1] != self.native:
            pixels = interpolate(pixels, (self.native,) * 2, mode="bilinear", antialias=True, align_corners=False)
        with self._memory():
            mean, deviation = self.view.posterior(self.pipe, self._laid_out(pixels))
        latents = mean.float()
        if self.features.posterior == "sample" and deviation is not None:
            latents = latents + deviation.float() * _drawn(latents, ids, seed, "posterior")
        return self.view.scaled(self.pipe, latents)

    def _memory(self) -> AbstractContextManager[None]:
        """MemoryError, one line, where the GPU has too little memory for a batch."""
        return enough_memory(f"diffusion.features.batch ({self.features.batch})")

    def _laid_out(self, x: Tensor) -> Tensor:
        """In the dtype of the weights, and on a CPU in the memory order that its convolutions like."""
        x = x.to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x

    def _noisy(self, latents: Tensor, ids: Tensor, timestep: int, seed: int) -> Tensor:
        """x_t of each draw: [N, C, h, w] -> [E, N, C, h, w]."""
        noise = torch.stack([_drawn(latents, ids, seed, "noise", e) for e in range(self.features.ensemble)])
        return self.view.noisy(self.pipe, latents, noise, timestep)

    def _maps(self, noisy_ENCHW: Tensor, timestep: int, texts_N: Texts) -> dict[str, Tensor]:
        """Each layer's map [N, P, C], the mean over the draws."""
        draws = [self._called(noisy, timestep, texts_N) for noisy in noisy_ENCHW]
        if len(draws) == 1:
            return draws[0]
        return {name: torch.stack([maps[name] for maps in draws]).mean(0) for name in draws[0]}

    def _called(self, noisy_NCHW: Tensor, timestep: int, texts_N: Texts) -> dict[str, Tensor]:
        """One call of the decoder up to the last requested block."""
        maps: dict[str, Tensor] = {}
        blocks = self.network.blocks
        wanted = {name: blocks[layer - 1] for name, layer in zip(self.layers, self.features.layers, strict=True)}

        def hook(name: str) -> Any:
            def keep(module: Any, inputs: Any, output: Any) -> None:
                maps[name] = self.network.map_of(output).float()
                if len(maps) == len(wanted):
                    raise _LastBlock

            return keep

        handles = [block.register_forward_hook(hook(name)) for name, block in wanted.items()]
        try:
            with self._memory():
                self.network(self._laid_out(noisy_NCHW), timestep, texts_N.to(self.dtype))
        except _LastBlock:
            pass
        finally:
            for handle in handles:
                handle.remove()
        self.passes += len(noisy_NCHW)
        return maps

    def _projected(self, maps: dict[str, Tensor], projection: Projection, seed: int) -> Tensor:
        """[N, D] by the shared axes, or by axes of this batch alone (the released form)."""
        if self.features.pca == "per_batch":
            tokens = {name: map_BPC.flatten(0, 1).cpu() for name, map_BPC in maps.items()}
            projection = Projection.fitted(tokens, self.features.dims, seed).to(self.device)
        if self.grid is not None:
            return projection.on_grid(maps, self.grid).flatten(1)
        return projection(maps, self.features.pool)

    @staticmethod
    def _check(
        images: Tensor | StoredImages, ids: Tensor, prompts: Sequence[str], rows_R2: Tensor, condition: Tensor | None
    ) -> None:
        if len(images) != len(ids) or (condition is not None and len(condition) != len(images)):
            raise ValueError(
                f"{len(images)} images, {len(ids)} ids"
                + ("" if condition is None else f", {len(condition)} conditions")
            )
        for axis, what, there in ((0, "image", len(images)), (1, "prompt", len(prompts))):
            numbers = rows_R2[:, axis]
            if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < there:
                raise ValueError(f"{what} {int(numbers.max())} is asked for, but there are {there}")


def _drawn(like: Tensor, ids: Tensor, seed: int, *names: object) -> Tensor:
    """Normal noise in the shape of `like`, each row from its own id; drawn on the CPU, the same for every device."""
    rows = [torch.randn(like.shape[1:], generator=seeds.generator(seed, *names, i)) for i in ids.tolist()]
    return torch.stack(rows).to(like)


def _some(tokens_RC: Tensor, most: int, random: torch.Generator) -> Tensor:
    """At most so many of the tokens."""
    return tokens_RC if len(tokens_RC) <= most else tokens_RC[torch.randperm(len(tokens_RC), generator=random)[:most]]
