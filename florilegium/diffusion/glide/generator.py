"""GLIDE behind the verbs of every generator: pixels in the place of latents, its own sampler.

Where it parts from Stable Diffusion, in fine-tuning: the noise channels learn; the variance
channels learn too with `tuning.variational`, else sample with scheduler=ddim afterwards, which does not use them. A
representation that is added to the tokens (merge=add) reaches the pooled state as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from florilegium.diffusion.glide.pipeline import GlidePipeline
from florilegium.diffusion.tuned import TunedGenerator


def open_pipeline(model: str, device: str) -> GlidePipeline:
    """A pipeline directory or hub id in float32, frozen, convolutions in channels-last order."""
    pipe = GlidePipeline.from_pretrained(model)
    for part in (pipe.text_encoder, pipe.unet, pipe.upsampler_text_encoder, pipe.upsampler):
        if part is not None:
            part.requires_grad_(False).eval()
    pipe.to(device, torch.float32)
    for part in (pipe.unet, pipe.upsampler):
        if part is not None:
            part.to(memory_format=torch.channels_last)
    return pipe


class GlideView:
    """How a frozen GLIDE sees images and reads texts: its latents are the pixels themselves."""

    @staticmethod
    def fetched(hub_id: str) -> Path:
        """The local directory of a pipeline of the hub, fetched if it is not there."""
        return Path(GlidePipeline.download(hub_id))

    @staticmethod
    def open(place: str, device: str) -> Any:
        """The pipeline, without the upsampler."""
        pipe = open_pipeline(place, device)
        pipe.upsampler = pipe.upsampler_text_encoder = None
        return pipe

    @staticmethod
    def posterior(pipe: Any, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pixels in [-1, 1], which are certain."""
        return pixels, None

    @staticmethod
    def scale(pipe: Any) -> float:
        return 1.0

    @staticmethod
    def tokens(pipe: Any, prompts: list[str]) -> Tensor:
        """[U, T, W] of all positions, padding included."""
        return pipe.encode(prompts)

    @staticmethod
    def pooled(pipe: Any, prompts: list[str]) -> Tensor:
        """[U, W] of the last position, which GLIDE adds to the time embedding."""
        return pipe.encode(prompts)[:, -1]


class GlideGenerator(TunedGenerator):
    """A `GlidePipeline`: `steps` ancestral steps (DDIM with scheduler=ddim), then the upsampler unless it is off."""

    view = GlideView

    def opened(self) -> Any:
        return open_pipeline(self.model, self.device)

    @property
    def side(self) -> int:
        up = self.pipe.upsampler if self.settings.upsample else None
        return self.native if up is None else int(up.config.sample_size)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        side = int(self.pipe.unet.config.sample_size)
        return 3, side, side

    def drawn(
        self, prompts: list[str], noise: list[torch.Generator], guidance: float, latents: Tensor | None = None
    ) -> Tensor:
        s = self.settings
        return self.pipe(
            prompts,
            generator=noise,
            num_inference_steps=s.steps,
            guidance_scale=guidance,
            sampler="ddim" if s.scheduler == "ddim" else "ancestral",
            upsample=s.upsample,
            upsample_steps=s.upsample_steps,
            output_type="pt",
            latents=latents,
        ).images

    def embedded(self, texts: list[str]) -> Tensor:
        return self.pipe.encode(texts)

    def latents(self, pixels: Tensor) -> Tensor:
        return pixels

    def whole(self, decoder: nn.Module) -> Any:
        return GlidePipeline(**{**self.pipe.components, "unet": decoder})
