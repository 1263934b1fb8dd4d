"""Stable Diffusion 1.x and 2.x: one code path for the mini model and for every full-size `StableDiffusionPipeline`.

What a model's own files say is used: scale and shift of the latents, kind of prediction, length of a text.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from florilegium.diffusion.networks import Network, Texts
from florilegium.diffusion.tuned import TunedGenerator

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "lcm": "LCMScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}

# captions are cut to the tokenizer's length on purpose; diffusers would print each cut
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()


class StableView:
    """How a frozen Stable Diffusion sees images and reads texts."""

    network: ClassVar[type[Network]] = Network
    pipeline: ClassVar[Any] = StableDiffusionPipeline
    without: ClassVar[dict[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}  # parts not read

    @classmethod
    def fetched(cls, hub_id: str) -> Path:
        """The local directory of a pipeline of the hub, fetched if it is not there."""
        return Path(cls.pipeline.download(hub_id, **{k: v for k, v in cls.without.items() if v is None}))

    @classmethod
    def whole(cls, place: str, device: str, dtype: torch.dtype) -> Any:
        """A pipeline directory or hub id, frozen, its weights in `dtype`."""
        return cls.read(place, device, dtype)

    @classmethod
    def read(cls, place: str, device: str, dtype: torch.dtype, **given: Any) -> Any:
        """`whole`, with parts that are given in the place of those of the directory.

        Convolutions are in channels-last order on a CPU alone: there they are 1.7 times faster, on a GPU slower.
        """
        pipe = cls.pipeline.from_pretrained(place, torch_dtype=dtype, **{**cls.without, **given})
        pipe.set_progress_bar_config(disable=True)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        pipe.to(device, dtype)
        if torch.device(device).type == "cpu":
            for name in (cls.network.part, "vae"):
                getattr(pipe, name).to(memory_format=torch.channels_last)
        return pipe

    @classmethod
    def open(cls, place: str, device: str, dtype: torch.dtype) -> Any:
        """The pipeline, without the VAE's decoder."""
        pipe = cls.whole(place, device, dtype)
        pipe.vae.decoder = None
        return pipe

    @staticmethod
    def sampler(name: str, pipe: Any) -> Any:
        """The scheduler of `diffusion.scheduler` for this pipeline."""
        return getattr(diffusers, SCHEDULERS[name]).from_config(pipe.scheduler.config)

    @staticmethod
    def posterior(pipe: Any, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and deviation of the latents of pixels in [-1, 1], not scaled."""
        seen = pipe.vae.encode(pixels).latent_dist
        return seen.mean, seen.std

    @staticmethod
    def scaled(pipe: Any, latents: Tensor) -> Tensor:
        """Latents as the decoder knows them, by what the VAE's own configuration says."""
        config = pipe.vae.config
        if (mean := config.get("latents_mean")) is not None:
            mean, deviation = (torch.tensor(x).view(1, -1, 1, 1).to(latents) for x in (mean, config["latents_std"]))
            return (latents - mean) * config.scaling_factor / deviation
        return (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor

    @staticmethod
    def noisy(pipe: Any, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """x_t of scaled latents."""
        kept = pipe.scheduler.alphas_cumprod[timestep].to(latents)
        return kept.sqrt() * latents + (1 - kept).sqrt() * noise

    @staticmethod
    def texts(pipe: Any, prompts: list[str], size: int | None = None) -> Texts:
        """What the decoder gets of prompts; `size` is the true side of the images in pixels, None: the native one."""
        return Texts(pipe.encode_prompt(prompts, pipe.device, 1, False)[0])

    @staticmethod
    def pooled(pipe: Any, prompts: list[str]) -> Tensor:
        """[U, W]: what stands at the end of the text."""
        tokens = pipe.tokenizer(
            prompts,
            padding="max_length",
            max_length=pipe.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return pipe.text_encoder(tokens.to(pipe.device)).pooler_output


class StableGenerator(TunedGenerator):
    """A pipeline of the Stable Diffusion family: its decoder denoises latents of a VAE. `view` says which one."""

    def opened(self) -> Any:
        pipe = self.view.whole(self.model, self.device, self.dtype)
        if self.settings.scheduler:
            pipe.scheduler = self.view.sampler(self.settings.scheduler, pipe)
        return pipe

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        size = self.decoder.config.sample_size
        high, wide = (size, size) if isinstance(size, int) else size
        return int(self.decoder.config.in_channels), int(high), int(wide)

    def drawn(
        self, prompts: list[str], noise: list[torch.Generator], guidance: float, latents: Tensor | None = None
    ) -> Tensor:
        if latents is None:
            latents = torch.stack([torch.randn(self.noise_shape, generator=draw) for draw in noise])
        return self.pipe(
            prompts,
            generator=noise,  # for samplers that draw in every step
            latents=latents.to(self.device, self.dtype),  # drawn in float32, so a dtype does not change the noise
            num_inference_steps=self.settings.steps,
            guidance_scale=guidance,
            output_type="pt",
        ).images

    def latents(self, pixels: Tensor) -> Tensor:
        """The mode of the posterior, so nothing is drawn."""
        mean, _ = self.view.posterior(self.pipe, pixels.to(self.dtype))
        return self.view.scaled(self.pipe, mean.float())

    def whole(self, decoder: nn.Module) -> Any:
        vae = copy.deepcopy(self.pipe.vae).to(memory_format=torch.contiguous_format)
        parts = {**self.pipe.components, self.view.network.part: decoder, "vae": vae}
        kept = ("requires_safety_checker", "force_zeros_for_empty_prompt")
        how = {**self.view.without, **{key: self.pipe.config[key] for key in kept if key in self.pipe.config}}
        return self.view.pipeline(**{**how, **parts})
