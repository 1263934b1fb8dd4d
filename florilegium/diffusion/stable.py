"""Stable Diffusion: one code path for the mini model and for every full-size `StableDiffusionPipeline`.

Weights are held in float32 (the fine-tuning needs them); `dtype: bfloat16` runs the networks under autocast.
Axes: N samples, T tokens, W token width, U distinct texts, D representation width.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from florilegium.diffusion import pipeline
from florilegium.diffusion.generator import DiffusionSettings, device_of
from florilegium.diffusion.tuning import TuneData, Tuner, TuneSettings, TuneTexts
from florilegium.protocol.pixels import scaled


class StableGenerator:
    """Synthesis with the moving average of the decoder, fine-tuning of the decoder alone."""

    def __init__(self, model: str, settings: DiffusionSettings) -> None:
        self.model, self.settings, self.device = str(model), settings, device_of(settings.device)
        self._open()

    def _open(self) -> None:
        self.pipe = pipeline.open_pipeline(self.model, self.device, self.settings.scheduler)
        self.tuner = Tuner(self.pipe.unet, pipeline.training_scheduler(self.pipe), self._autocast)

    def _autocast(self) -> Any:
        if self.settings.dtype == "float32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, getattr(torch, self.settings.dtype))

    @property
    def native(self) -> int:
        """Pixels on a side that the model was made for."""
        size = self.pipe.unet.config.sample_size
        return (size if isinstance(size, int) else size[0]) * self.pipe.vae_scale_factor

    # -- synthesis (eq 2) --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def synthesize(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        guidance: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """uint8 [N, 3, H, W], on the CPU. Image n's noise is that of `torch.Generator().manual_seed(seeds[n])`."""
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
        s, images = self.settings, []
        guidance = s.guidance if guidance is None else guidance
        with self.tuner.averaged(), self._autocast():
            for start in range(0, len(prompts), s.batch):
                part = slice(start, start + s.batch)
                images.append(self._batch(list(prompts[part]), list(seeds[part]), guidance))
                if progress:
                    progress(min(start + s.batch, len(prompts)), len(prompts))
        return torch.cat(images) if images else torch.zeros(0, 3, *2 * [s.size or self.native], dtype=torch.uint8)

    def _batch(self, prompts: list[str], seeds: list[int], guidance: float) -> Tensor:
        s = self.settings
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]  # on the CPU: the same for every device
        images = self.pipe(
            prompts, generator=noise, num_inference_steps=s.steps, guidance_scale=guidance, output_type="pt"
        ).images.float()
        if s.size and s.size != images.shape[-1]:
            images = interpolate(images, (s.size, s.size), mode="bicubic", antialias=True, align_corners=False)
        return (images * 255).round().clamp(0, 255).to(torch.uint8).cpu().contiguous()

    # -- fine-tuning (eqs 11-12) -------------------------------------------------------------------------------------

    def finetune(
        self,
        images: Tensor,
        texts: TuneTexts,
        representations: Tensor | None,
        settings: TuneSettings,
        *,
        rounds: tuple[int, int],
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """Train decoder and projection on uint8 [N, 3, H, W]; `rounds` (this, all) places it on the cosine.

        Returns t2i/loss (mean of this call), t2i/omitted (share of samples whose representation was omitted, eq 12)
        and t2i/steps (all so far). ValueError where lengths differ or the settings do not continue earlier ones.
        """
        parts = {"images": images, "label texts": texts.label, "full texts": texts.full}
        if representations is not None:
            parts["representations"] = representations
        if len({len(part) for part in parts.values()}) > 1:
            raise ValueError("finetune got " + ", ".join(f"{len(part)} {name}" for name, part in parts.items()))
        if not len(images):
            return {}
        data = self._encode(images, texts, representations)
        return self.tuner.fit(data, settings, rounds, seed, progress)

    @torch.no_grad()
    def _encode(self, images: Tensor, texts: TuneTexts, representations: Tensor | None) -> TuneData:
        """The frozen parts see every image and every distinct text once."""
        distinct = list(dict.fromkeys(["", *texts.label, *texts.full]))
        row = {text: u for u, text in enumerate(distinct)}
        with self._autocast():
            latents = torch.cat([self._latents(chunk) for chunk in images.split(self.settings.batch)])
            table = torch.cat(
                [
                    self.pipe.encode_prompt(distinct[i : i + 256], self.device, 1, False)[0]
                    for i in range(0, len(distinct), 256)
                ]
            )
        label, full = (torch.tensor([row[text] for text in said]) for said in (texts.label, texts.full))
        reps = None if representations is None else representations.float()
        return TuneData(latents.float(), table.float(), label, full, reps)

    def _latents(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] of any size -> latents of the native size; the posterior's mode, so nothing is drawn."""
        pixels = scaled(images.to(self.device))
        if pixels.shape[-1] != self.native:
            pixels = interpolate(pixels, (self.native,) * 2, mode="bicubic", antialias=True, align_corners=False)
        pixels = pixels.clamp(-1, 1).contiguous(memory_format=torch.channels_last)
        return self.pipe.vae.encode(pixels).latent_dist.mode() * self.pipe.vae.config.scaling_factor

    # -- checkpoint and export ---------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Decoder, projection, Adam, average and step; nothing of the frozen parts."""
        return self.tuner.state()

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Go on from `state`; a model that was tuned meanwhile is read again from its directory first."""
        if self.tuner.step:
            self._open()
        self.tuner.restore(tensors, meta)

    def save(self, directory: str | Path) -> None:
        """A directory for `DiffusionPipeline.from_pretrained`: the averaged decoder, adapters merged into it."""
        directory = Path(directory)
        partial = directory.with_name(f".{directory.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with self.tuner.averaged():
            unet = copy.deepcopy(self.pipe.unet)
        if self.tuner.rank:
            unet.fuse_lora()
            unet.unload_lora()
        vae = copy.deepcopy(self.pipe.vae)
        for module in (unet, vae):  # safetensors wants the plain memory order
            module.to(memory_format=torch.contiguous_format)
        pipeline.write_pipeline({**self.pipe.components, "unet": unet, "vae": vae}, partial)
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)
