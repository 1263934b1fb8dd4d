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
from florilegium.diffusion.networks import Network, Texts
from florilegium.diffusion.tuned import TunedGenerator


def open_pipeline(model: str, device: str, dtype: torch.dtype) -> GlidePipeline:
    """A pipeline directory or hub id, frozen, its weights in `dtype`; channels-last convolutions on a CPU alone."""
    pipe = GlidePipeline.from_pretrained(model, torch_dtype=dtype)
    for part in (pipe.text_encoder, pipe.unet, pipe.upsampler_text_encoder, pipe.upsampler):
        if part is not None:
            part.requires_grad_(False).eval()
    pipe.to(device, dtype)
    if torch.device(device).type == "cpu":
        for part in (pipe.unet, pipe.upsampler):
            if part is not None:
                part.to(memory_format=torch.channels_last)
    return pipe


class GlideView:
    """How a frozen GLIDE sees images and reads texts: its latents are the pixels themselves."""

    network = Network

    @staticmethod
    def fetched(hub_id: str) -> Path:
        """The local directory of a pipeline of the hub, fetched if it is not there."""
        return Path(GlidePipeline.download(hub_id))

    @staticmethod
    def open(place: str, device: str, dtype: torch.dtype) -> Any:
        """The pipeline, without the upsampler."""
        pipe = open_pipeline(place, device, dtype)
        pipe.upsampler = pipe.upsampler_text_encoder = None
        return pipe

    @staticmethod
    def posterior(pipe: Any, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pixels in [-1, 1], which are certain."""
        return pixels, None

    @staticmethod
    def scaled(pipe: Any, latents: Tensor) -> Tensor:
        """Pixels as they are."""
        return latents

    @staticmethod
    def noisy(pipe: Any, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """x_t of pixels."""
        kept = pipe.scheduler.alphas_cumprod[timestep].to(latents)
        return kept.sqrt() * latents + (1 - kept).sqrt() * noise

    @staticmethod
    def texts(pipe: Any, prompts: list[str], size: int | None = None) -> Texts:
        """Tokens of all positions, padding included; the U-Net finds the text as a whole in them."""
        return Texts(pipe.encode(prompts))

    @staticmethod
    def pooled(pipe: Any, prompts: list[str]) -> Tensor:
        """[U, W] of the last position, which GLIDE adds to the time embedding."""
        return pipe.encode(prompts)[:, -1]


class GlideGenerator(TunedGenerator):
    """A `GlidePipeline`: `steps` ancestral steps (DDIM with scheduler=ddim), then the upsampler unless it is off."""

    def opened(self) -> Any:
        return open_pipeline(self.model, self.device, self.dtype)

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

    def latents(self, pixels: Tensor) -> Tensor:
        return pixels

    def adapters(self, folder: Path, decoder: Any, layers: dict[str, Tensor]) -> None:
        """For `pipe.unet.load_lora_adapter`; diffusers has no GLIDE, and so no `load_lora_weights` of one."""
        decoder.save_lora_adapter(folder)

    def whole(self, decoder: nn.Module) -> Any:
        return GlidePipeline(**{**self.pipe.components, "unet": decoder})
