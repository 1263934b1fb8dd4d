"""A text-to-image model whose decoder is fine-tuned: what the backends share.

Weights are held in the dtype of the settings; those that are fine-tuned are held in float32 beside it.
Axes: N samples, U distinct texts, D representation width.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from florilegium.config.diffusion import DiffusionSettings, TuneSettings
from florilegium.diffusion import threads
from florilegium.diffusion.distilled import Distilled
from florilegium.diffusion.generator import device_of, enough_memory, ways_of
from florilegium.diffusion.inserted import Chain, removed
from florilegium.diffusion.networks import Texts
from florilegium.diffusion.noising import noising
from florilegium.diffusion.tuning import TuneData, Tuner, TuneTexts
from florilegium.protocol.pixels import scaled
from florilegium.runs import files

TEXTS_AT_ONCE = 256
SMALL = 20e6  # weights of a decoder that gains nothing by more than one CPU thread (measured with 4 million)


class TunedGenerator:
    """Synthesis with the moving average of the decoder, fine-tuning of the decoder alone.

    A backend says how its pipeline is opened, draws, reads texts and images, and is put together for saving; its
    `view` says the same of a frozen pipeline, for features.
    """

    def __init__(self, model: str, settings: DiffusionSettings, view: Any) -> None:
        self.view = view
        self.model, self.settings, self.device = str(model), settings, device_of(settings.device)
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        self.steps: Callable[..., dict[str, float]] = Tuner.fit  # where the steps of `finetune` run
        self._open()

    # -- what a backend says -----------------------------------------------------------------------------------------

    def opened(self) -> Any:
        """The pipeline, frozen, on the device and of the dtype; `scheduler` is its training schedule."""
        raise TypeError(f"{type(self).__name__} opens no pipeline")

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the noise that an image is made of."""
        raise TypeError(f"{type(self).__name__} says no shape of noise")

    def drawn(
        self, prompts: list[str], noise: list[torch.Generator], guidance: float, latents: Tensor | None = None
    ) -> Tensor:
        """float [N, 3, H, W] in [0, 1] of these prompts, image n from noise generator n, or from `latents` [N, ...] of
        `noise_shape` in the place of the first noise."""
        raise TypeError(f"{type(self).__name__} draws nothing")

    def latents(self, pixels: Tensor) -> Tensor:
        """What the decoder denoises, of pixels [N, 3, S, S] in [-1, 1] of the native size."""
        raise TypeError(f"{type(self).__name__} sees no image")

    def whole(self, decoder: nn.Module) -> Any:
        """A pipeline with this decoder, for saving."""
        raise TypeError(f"{type(self).__name__} cannot be saved")

    def adapters(self, folder: Path, decoder: Any, layers: dict[str, Tensor]) -> None:
        """Write LoRA layers as a file for `load_lora_weights` of this pipeline."""
        self.view.pipeline.save_lora_weights(folder, **{f"{self.view.network.part}_lora_layers": layers})

    @property
    def decoder(self) -> Any:
        """The part that is fine-tuned."""
        return getattr(self.pipe, self.view.network.part)

    @property
    def native(self) -> int:
        """Pixels on a side that the decoder was made for."""
        size = self.decoder.config.sample_size
        return int(size if isinstance(size, int) else size[0]) * int(getattr(self.pipe, "vae_scale_factor", 1))

    @property
    def side(self) -> int:
        """Pixels on a side of what is drawn."""
        return self.native

    # -- synthesis (eq 2 of arXiv 2510.12254) --------------------------------------------------------------------------

    def _open(self) -> None:
        self.pipe = self.opened()
        if self.settings.compile:
            self.decoder.compile(mode=self.settings.compile)
        place = self.settings.distilled
        self.distilled = Distilled(self.pipe, self.view.network.part, place) if place else None
        self.tuner = Tuner(self.view.network(self.decoder), noising(self.pipe.scheduler.config))
        small = self.device == "cpu" and sum(weight.numel() for weight in self.decoder.parameters()) < SMALL
        self.threads = self.settings.threads or (1 if small else None)

    @torch.no_grad()
    def synthesize(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        guidance: float | None = None,
        progress: Callable[[int, int], None] | None = None,
        latents: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """uint8 [N, 3, H, W], on the CPU, of `size` pixels on a side (None: the settings').

        Image n's noise is that of `torch.Generator().manual_seed(seeds[n])`; `latents` [N, ...] of `noise_shape` are
        taken in the place of the first noise. ValueError where lengths differ.
        """
        if len(prompts) != len(seeds) or (latents is not None and len(latents) != len(prompts)):
            beside = "" if latents is None else f" and {len(latents)} latents"
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds{beside}")
        s, images = self.settings, []
        size = size or s.size
        wanted = s.guidance if guidance is None else guidance
        memory = enough_memory(f"diffusion.batch ({s.batch})")
        with self.tuner.averaged(), self._asked_once(wanted) as guidance, memory:

            def draw(hand: TunedGenerator, part: slice) -> Tensor:
                given = None if latents is None else latents[part].to(self.device)
                return hand._batch(list(prompts[part]), list(seeds[part]), guidance, given, size)

            parts = [slice(start, start + s.batch) for start in range(0, len(prompts), s.batch)]
            for drawn in threads.side_by_side(draw, self._hands(len(parts)), parts, self.threads):
                images.append(drawn)
                if progress:
                    progress(sum(map(len, images)), len(prompts))
        return torch.cat(images) if images else torch.zeros(0, 3, *2 * [size or self.side], dtype=torch.uint8)

    @contextmanager
    def _asked_once(self, guidance: float) -> Iterator[float]:
        """Within, the decoder says the guided answer itself, where it is distilled for that; what guidance is left."""
        scale = self.distilled.scale(guidance) if self.distilled else None
        if self.distilled is None or scale is None:
            yield guidance
            return
        with self.distilled.applied(self.decoder, scale):
            yield 1.0

    def _hands(self, batches: int) -> list[TunedGenerator]:
        """This generator, or on a CPU as many views of it as can draw side by side. They share the nets alone: a
        scheduler counts the steps, and a tokenizer keeps the padding. A compiled decoder draws one batch at a time."""
        many = 1 if self.device != "cpu" or self.settings.compile else min(batches, threads.room(self.threads))
        if many < 2:
            return [self]
        hands = [copy.copy(self) for _ in range(many)]
        for hand in hands:
            hand.pipe = copy.copy(self.pipe)
            for name, part in self.pipe.components.items():
                if not isinstance(part, nn.Module):
                    setattr(hand.pipe, name, copy.deepcopy(part))
        return hands

    @torch.no_grad()
    def _batch(
        self, prompts: list[str], seeds: list[int], guidance: float, latents: Tensor | None, size: int | None
    ) -> Tensor:
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]  # on the CPU: the same for every device
        images = self.drawn(prompts, noise, guidance, latents).float()
        if size and size != images.shape[-1]:
            images = interpolate(images, (size, size), mode="bicubic", antialias=True, align_corners=False)
        return (images * 255).round().clamp(0, 255).to(torch.uint8).cpu().contiguous()

    # -- fine-tuning (eqs 11-12 of arXiv 2510.12254) ------------------------------------------------------------------

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
        with enough_memory(ways_of(settings)), threads.limited(self.threads):
            data = self._encode(images, texts, representations)
            return self.steps(self.tuner, data, settings, rounds, seed, progress)

    @torch.no_grad()
    def _encode(self, images: Tensor, texts: TuneTexts, representations: Tensor | None) -> TuneData:
        """The frozen parts see every image and every distinct text once."""
        distinct = list(dict.fromkeys(["", *texts.label, *texts.full]))
        row = {text: u for u, text in enumerate(distinct)}
        latents = torch.cat([self._latents(chunk) for chunk in images.split(self.settings.batch)])
        table = Texts.joined(
            [
                self.view.texts(self.pipe, distinct[i : i + TEXTS_AT_ONCE], images.shape[-1])
                for i in range(0, len(distinct), TEXTS_AT_ONCE)
            ]
        )
        label, full = (torch.tensor([row[text] for text in said]) for said in (texts.label, texts.full))
        reps = None if representations is None else representations.float()
        return TuneData(latents.float(), table.to(torch.float32), label, full, reps)

    def _latents(self, images: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] of any size -> latents of the native size."""
        pixels = scaled(images.to(self.device))
        if pixels.shape[-1] != self.native:
            pixels = interpolate(pixels, (self.native,) * 2, mode="bicubic", antialias=True, align_corners=False)
        return self.latents(pixels.clamp(-1, 1))

    def insert(self, chains: Sequence[Chain], seed: int) -> None:
        """Put adapters of other models into the decoder (inserted.py); again: other values of the same shapes."""
        self.tuner.insert(chains, seed)

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
        """A directory for `from_pretrained`: the averaged decoder, LoRA layers merged into it. They also lie in lora/.

        Adapters of other models cannot be merged. They lie in inserted.safetensors, which diffusers does not read.
        """
        directory = Path(directory)
        partial = directory.with_name(f".{directory.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with self.tuner.averaged():
            decoder = removed(copy.deepcopy(self.decoder))
        if self.tuner.rank:
            self.adapters(partial / "lora", decoder, self.tuner.adapter_layers())
            decoder.fuse_lora()
            decoder.unload_lora()
        decoder.to(memory_format=torch.contiguous_format)  # safetensors wants the plain memory order
        self.whole(decoder).save_pretrained(partial)
        if self.tuner.chains:
            files.save(partial / "inserted.safetensors", self.tuner.inserted_layers(), {})
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)
