"""The captioner (eq 2 of arXiv 2510.12254): a BLIP directory that says in words what a synthesized image shows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from florilegium.config.diffusion import CaptionSettings


class Captioner:
    """`caption(images)`: BlipForConditionalGeneration with its processor, which brings images to its own size."""

    def __init__(self, model: str, settings: CaptionSettings | None = None, device: str = "cpu") -> None:
        from transformers import BlipForConditionalGeneration, BlipProcessor

        self.settings, self.device = settings or CaptionSettings(), device
        self.processor = BlipProcessor.from_pretrained(model)
        self.model = BlipForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval().to(device)

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
