"""The captioner (eq 2 of arXiv 2510.12254): a model that says in words what a synthesized image shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from florilegium.config.diffusion import CaptionSettings
from florilegium.config.errors import SettingsError, first_line

BLIP, GIT, ENCODER_DECODER = KNOWN = ("blip", "git", "vision-encoder-decoder")  # as config.json names their type
KINDS = f"a captioner is of type {', '.join(KNOWN)}, or another of transformers that needs no text beside the picture"
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

        opening = 1 + len(Tokenizer.from_file(str(spelling)).encode(settings.prefix, add_special_tokens=False).ids)
    parts = [part for part in (said.get("text_config"), said.get("decoder"), said) if isinstance(part, Mapping)]
    _fits(next(filter(None, (_positions(part) for part in parts)), None), opening, settings, model)


def _processors(model: str, kind: str) -> tuple[Any, Any, Any]:
    """(of images, of texts, of both) as the checkpoint has them; an encoder-decoder has none of both."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    if kind == ENCODER_DECODER:
        return AutoImageProcessor.from_pretrained(model), AutoTokenizer.from_pretrained(model), None
    both = AutoProcessor.from_pretrained(model)
    return both.image_processor, both.tokenizer, both


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
    """`caption(images)` by BLIP, GIT or an encoder-decoder of transformers, which brings images to its own size.

    Any other model of `AutoModelForImageTextToText` is tried on one grey picture. SettingsError, with one line, for one
    that describes no picture by itself, and where prefix and caption are longer than its positions. OSError, ValueError
    for files that cannot be read.
    """

    def __init__(self, model: str, settings: CaptionSettings | None = None, device: str = "cpu") -> None:
        from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, AutoModelForImageTextToText

        self.settings, self.device = settings or CaptionSettings(), device
        config = AutoConfig.from_pretrained(model)
        self.kind = str(config.model_type)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise SettingsError(f"diffusion.captioner: {model} is a model of type {self.kind}; {KINDS}")
        self.images, self.tokenizer, self.processor = _processors(model, self.kind)
        self.model = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval().to(device)
        if (made := self.model.generation_config).pad_token_id is None:  # as `generate` does, with a warning each time
            ends = made.eos_token_id
            made.pad_token_id = ends[0] if isinstance(ends, list) else ends
        _fits(_positions(config.get_text_config(decoder=True)), len(self._opening()), self.settings, model)
        if self.kind not in KNOWN:
            self._try(model)

    def _try(self, model: str) -> None:
        try:
            self(torch.full((1, 3, 64, 64), 128, dtype=torch.uint8))
        except Exception as error:  # each model asks for what it lacks in a way of its own
            raise SettingsError(
                f"diffusion.captioner: {model}, of type {self.kind}, describes no picture by itself "
                f"({type(error).__name__}: {first_line(error)}); {KINDS}"
            ) from error

    def _opening(self) -> list[int]:
        """The tokens that the model reads before the first that it says."""
        begin = self.model.generation_config.decoder_start_token_id if self.kind == ENCODER_DECODER else None
        begin = self.tokenizer.bos_token_id if begin is None else begin
        begin = self.tokenizer.cls_token_id if begin is None else begin
        prefix = self.settings.prefix
        return [begin, *(self.tokenizer(prefix, add_special_tokens=False)["input_ids"] if prefix else [])]

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
        tokens = self.model.generate(
            **{name: part.to(self.device) for name, part in self._given(list(images)).items()},
            do_sample=False,
            num_beams=s.beams,
            min_new_tokens=s.min_tokens or None,
            max_new_tokens=s.max_tokens,
            repetition_penalty=s.repetition_penalty,
        )
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [self._without_opening(" ".join(text.split())) for text in texts]

    def _given(self, images: list[Tensor]) -> Mapping[str, Tensor]:
        """What the model gets: pixels, and with a prefix its tokens, under the name that this kind of model has."""
        if self.kind not in KNOWN:
            text = {"text": [self.settings.prefix] * len(images)} if self.settings.prefix else {}
            read = self.processor if text else self.images
            return dict(read(images=images, return_tensors="pt", **text))
        given = {"pixel_values": self.images(images=images, return_tensors="pt")["pixel_values"]}
        if not self.settings.prefix:
            return given
        ids = torch.tensor([self._opening()] * len(images))
        if self.kind == ENCODER_DECODER:
            return given | {"decoder_input_ids": ids}
        if self.kind == BLIP:  # it takes the last token away, which is the end of a text
            ids = torch.cat([ids, torch.full_like(ids[:, :1], self.tokenizer.sep_token_id)], 1)
        return given | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _without_opening(self, text: str) -> str:
        """The caption without its first words, which are equal in every caption and do not occur in real texts."""
        return text.removeprefix(self.settings.drop or "").strip() or text
