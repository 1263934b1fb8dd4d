"""GLIDE as a diffusers pipeline: a base model of small images and an upsampler, each with a text encoder of its own.

Axes: N images, T positions, W text width, S image side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor, nn
from torch.nn.functional import interpolate

import florilegium.diffusion.glide.text_encoder  # noqa: F401  (diffusers opens parts only of imported modules)
from florilegium.diffusion.glide import sampling
from florilegium.diffusion.glide.tokenizer import tokenize

SAMPLERS = ("ancestral", "ddim")


def fill_pooled(positions: int, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Forward pre-hook: the state of the last text position joins the time embedding.

    Stock U-Nets want it as `class_labels`; with this hook a decoder is called as any other, `unet(x, t, states)`.
    """
    if kwargs.get("class_labels") is None and len(args) < 4:
        states = args[2] if len(args) > 2 else kwargs["encoder_hidden_states"]
        kwargs = kwargs | {"class_labels": states[:, positions - 1]}
    return args, kwargs


def pooled_by_itself(unet: Any, text_encoder: Any) -> None:
    """Give a U-Net the hook `fill_pooled`, once."""
    if unet is not None and not getattr(unet, "pools_by_itself", False):
        unet.register_forward_pre_hook(partial(fill_pooled, text_encoder.config.positions), with_kwargs=True)
        unet.pools_by_itself = True


class GlidePipeline(DiffusionPipeline):
    """Text to images of `unet.config.sample_size` pixels, and of the upsampler's size where there is an upsampler.

    `scheduler` and `upsampler_scheduler` hold the training schedules of 1,000 steps; sampling keeps some of them.
    """

    _optional_components = ["upsampler", "upsampler_text_encoder", "upsampler_scheduler"]
    model_cpu_offload_seq = "text_encoder->unet->upsampler_text_encoder->upsampler"

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        unet: Any,
        scheduler: Any,
        upsampler: Any = None,
        upsampler_text_encoder: Any = None,
        upsampler_scheduler: Any = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            unet=unet,
            scheduler=scheduler,
            upsampler=upsampler,
            upsampler_text_encoder=upsampler_text_encoder,
            upsampler_scheduler=upsampler_scheduler,
        )
        pooled_by_itself(unet, text_encoder)
        pooled_by_itself(upsampler, upsampler_text_encoder)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], encoder: Any = None) -> Tensor:
        """States [N, T, W] of texts by the base model's text encoder, or by `encoder`."""
        encoder = encoder or self.text_encoder
        tokens_NT, mask_NT = tokenize(self.tokenizer, texts)
        return encoder(tokens_NT.to(encoder.device), mask_NT.to(encoder.device))

    @torch.no_grad()
    def __call__(  # noqa: PLR0913  (a pipeline's options)
        self,
        prompt: str | Sequence[str],
        generator: Sequence[torch.Generator] | torch.Generator | None = None,
        num_inference_steps: int | str = 100,
        guidance_scale: float = 3.0,
        sampler: str = "ancestral",
        upsample: bool = True,
        upsample_steps: str = "fast27",
        upsample_temperature: float = 0.997,
        output_type: str = "pil",
        callback: Callable[[int, int], None] | None = None,
        latents: Tensor | None = None,
    ) -> ImagePipelineOutput:
        """Images of the prompts; image n depends on prompt n, generator n and the weights, not on its batch.

        `latents` [N, 3, S, S] are taken in the place of the base noise.

        Base noise, then each step's noise, then the upsampler's noise come from the image's own generator, on the CPU.
        `output_type` pt gives float [N, 3, S, S] in [0, 1]. ValueError where prompts and generators differ in number.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
        draws = self._generators(generator, len(texts))
        x = self._small(texts, draws, str(num_inference_steps), guidance_scale, sampler, callback, latents)
        if upsample and self.upsampler is not None:
            x = self._upsampled(texts, x, draws, upsample_steps, upsample_temperature)
        images = ((x + 1) * 127.5).round().clamp(0, 255) / 255
        if output_type == "pt":
            return ImagePipelineOutput(images=images)
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        return ImagePipelineOutput(images=arrays if output_type == "np" else self.numpy_to_pil(arrays))

    @staticmethod
    def _generators(given: Any, count: int) -> list[torch.Generator]:
        if given is None:
            return [torch.Generator().manual_seed(torch.seed() % 2**63) for _ in range(count)]
        found = [given] if isinstance(given, torch.Generator) else list(given)
        if len(found) != count:
            raise ValueError(f"{count} prompts but {len(found)} generators")
        return found

    def _noise(self, draws: Sequence[torch.Generator], side: int) -> Tensor:
        return torch.stack([torch.randn(3, side, side, generator=draw) for draw in draws]).to(self.unet.device)

    def _small(
        self,
        texts: list[str],
        draws: list[torch.Generator],
        spacing: str,
        guidance: float,
        sampler: str,
        callback: Any,
        latents: Tensor | None = None,
    ) -> Tensor:
        """float [N, 3, S, S] in [-1, 1] of the base model."""
        side, count = self.unet.config.sample_size, len(texts)
        given = sampling.steps(self.scheduler.config, spacing)
        text_NTW, off = self.encode(texts), guidance <= 1
        both = text_NTW if off else torch.cat([text_NTW, self.encode([""]).expand_as(text_NTW)])

        def network(x: Tensor, timestep: int) -> Tensor:
            if off:
                return said_by(self.unet, x, timestep, both)
            text, empty = said_by(self.unet, torch.cat([x, x]), timestep, both).split(count)
            return sampling.guided(text, empty, guidance)

        x = self._noise(draws, side) if latents is None else latents.to(self.unet.device)
        walk = (
            sampling.ancestral(network, x, given, lambda: self._noise(draws, side))
            if sampler == "ancestral"
            else sampling.ddim(network, x, given)
        )
        return self._last(walk, x, len(given), callback)

    def _upsampled(
        self, texts: list[str], small: Tensor, draws: list[torch.Generator], spacing: str, temperature: float
    ) -> Tensor:
        """The upsampler's images [N, 3, S, S]: DDIM without guidance beside the enlarged small image."""
        side = self.upsampler.config.sample_size
        text_NTW = self.encode(texts, self.upsampler_text_encoder)
        low = enlarged(small, side)
        network = lambda x, t: said_by(self.upsampler, torch.cat([x, low], 1), t, text_NTW)  # noqa: E731
        x = self._noise(draws, side) * temperature
        given = sampling.steps(self.upsampler_scheduler.config, spacing)
        return self._last(sampling.ddim(network, x, given), x, len(given), None)

    @staticmethod
    def _last(walk: Iterator[tuple[Tensor, Tensor]], x: Tensor, count: int, callback: Any) -> Tensor:
        for n, (at, _) in enumerate(walk, 1):
            x = at
            if callback:
                callback(n, count)
        return x


def said_by(unet: Any, x: Tensor, timestep: int, text_NTW: Tensor) -> Tensor:
    """What a U-Net says, in float32; it is asked in the dtype of its weights."""
    return unet(x.to(unet.dtype), timestep, text_NTW.to(unet.dtype)).sample.float()


def enlarged(small: Tensor, side: int) -> Tensor:
    """Images in [-1, 1], put on the grid of 8 bits and enlarged to side x side, as the upsampler was trained."""
    grid = ((small + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
    return interpolate(grid, (side, side), mode="bilinear", align_corners=False)
