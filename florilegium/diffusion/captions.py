"""The captioner (eq 2 of arXiv 2510.12254): a BLIP directory that says in words what a synthesized image shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from florilegium.config.diffusion import CaptionSettings
from florilegium.config.errors import SettingsError

POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions")  # how configurations call them


def check_room(model: str, settings: CaptionSettings) -> None:
    """SettingsError where a captioner's directory says that it has too few positions for these captions.

    It reads small files alone and loads no library of models, so what they do not say is left to the `Captioner`.
    """
    config, spelling = Path(model, "config.json"), Path(model, "tokenizer.json")
    if not config.is_file() or (settings.prefix and not spelling.is_file()):
        return
    said = json.loads(config.read_text())
    opening = 1
    if settings.prefix:
        from tokenizers import Tokenizer

        opening = len(Tokenizer.from_file(str(spelling)).encode(settings.prefix).ids) - 1
    parts = [part for part in (said.get("text_config"), said.get("decoder"), said) if isinstance(part, Mapping)]
    _fits(next(filter(None, (_positions(part) for part in parts)), None), opening, settings, model)


def _positions(config: Any) -> int | None:
    """How many positions a configuration of a text model has; None where it sets no limit."""
    given = config if isinstance(config, Mapping) else {name: getattr(config, name, None) for name in POSITIONS}
    return next((int(most) for name in POSITIONS if (most := given.get(name))), None)


def _fits(positions: int | None, opening: int, settings: CaptionSettings, model: str) -> None:
    """SettingsError unless `opening` tokens and a longest caption after them have a position each; the caption's last
    token needs none, as nothing is read after it."""
    most = settings.max_tokens
    if positions is None or opening + most - 1 <= positions:
        return
    room = positions + 1 - opening
    if room < 1:
        raise SettingsError(
            f"diffusion.captions.prefix has {opening} tokens, but the captioner {model} has {positions} positions"
        )
    after = f"after the {opening} tokens of diffusion.captions.prefix " if settings.prefix else ""
    raise SettingsError(
        f"diffusion.captions.max_tokens is {most}, but {after}the captioner {model}, of {positions} positions, has "
        f"room for {room}"
    )


class Captioner:
    """`caption(images)`: BlipForConditionalGeneration with its processor, which brings images to its own size."""

    def __init__(self, model: str, settings: CaptionSettings | None = None, device: str = "cpu") -> None:
        from transformers import BlipForConditionalGeneration, BlipProcessor

        self.settings, self.device = settings or CaptionSettings(), device
        self.processor = BlipProcessor.from_pretrained(model)
        self.model = BlipForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval().to(device)
        _fits(_positions(self.model.config.get_text_config(decoder=True)), self._opening(), self.settings, model)

    def _opening(self) -> int:
        """How many tokens the model reads before the first that it says."""
        return len(self.processor.tokenizer(self.settings.prefix)["input_ids"]) - 1 if self.settings.prefix else 1

    @torch.no_grad()
    def __call__(self, images: Tensor, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """uint8 [N, 3, H, W] -> N captions."""
        captions: list[str] = []
        if not len(images):
            return captions
        for chunk in images.split(self.settings.batch):
            captions += self._chunk(chunk)
            if progress:
                progress(len(captions), len(images))
        return captions

    def _chunk(self, images: Tensor) -> list[str]:
        s = self.settings
        pixels = self.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        prompt = {}
        if s.prefix:
            encoded = self.processor.tokenizer([s.prefix] * len(images), return_tensors="pt")
            prompt = {k: encoded[k].to(self.device) for k in ("input_ids", "attention_mask")}
        tokens = self.model.generate(
            pixel_values=pixels.to(self.device),
            **prompt,
            do_sample=False,
            num_beams=s.beams,
            min_new_tokens=s.min_tokens or None,
            max_new_tokens=s.max_tokens,
            repetition_penalty=s.repetition_penalty,
        )
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [self._without_opening(" ".join(text.split())) for text in texts]

    def _without_opening(self, text: str) -> str:
        """The caption without its first words, which are equal in every caption and do not occur in real texts."""
        return text.removeprefix(self.settings.drop or "").strip() or text
