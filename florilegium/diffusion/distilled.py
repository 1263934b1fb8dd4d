"""A distilled generator: adapters with which one call of the decoder a step says what guidance needs two for.

They are a folder (or hub id) with LoRA weights as diffusers reads them (`load_lora_weights`). `distilled.json` beside
them says for which guidance W they are: acting by (w - 1) / (W - 1) they draw at guidance w. Without that file, such as
for LCM-LoRA (arXiv 2311.05556), they always act fully and guidance is off. tools/distill_unet.py makes such folders.

What they change is added to the weights while images are drawn, and only then. So fine-tuning, frozen features and what
a run saves are those of the decoder itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FACTS = "distilled.json"


class Distilled:
    """What the adapters at `place` change of a pipeline's decoder. ValueError where they do not fit it."""

    def __init__(self, pipe: Any, part: str, place: str) -> None:
        self.full = full_guidance(place)
        self.changes = changes(pipe, part, place)

    def scale(self, guidance: float) -> float | None:
        """How strongly the adapters act at this guidance; None: they were not made for so much of it."""
        if self.full is None:
            return 1.0
        scale = (max(guidance, 1.0) - 1) / (self.full - 1)
        return scale if scale <= 1 + 1e-6 else None

    @contextmanager
    def applied(self, decoder: nn.Module, scale: float) -> Iterator[None]:
        """Within, the decoder's weights have the change; afterwards they are those of before, bit for bit."""
        weights = plain_names(decoder)
        held = {name: weights[name].data for name in self.changes}
        for name, change in self.changes.items():
            weights[name].data = held[name] + (scale * change).to(held[name])
        try:
            yield
        finally:
            for name, weight in held.items():
                weights[name].data = weight


def full_guidance(place: str) -> float | None:
    """The guidance at which the adapters act fully, by the file beside them. ValueError where it cannot be read."""
    file = Path(place, FACTS)
    if not file.is_file():
        return None
    try:
        guidance = float(json.loads(file.read_text())["guidance"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"diffusion.distilled: {file} does not say the guidance as a number") from error
    if guidance <= 1:
        raise ValueError(f"diffusion.distilled: {file} says guidance {guidance}; it must be above 1")
    return guidance


def plain_names(decoder: nn.Module) -> dict[str, nn.Parameter]:
    """The decoder's weights by their own names, also where a layer is wrapped: in LoRA layers, or in inserted ones."""
    names = {name: name.replace(".base_layer.", ".").replace(".last.", ".") for name, _ in decoder.named_parameters()}
    return {names[name]: weight for name, weight in decoder.named_parameters()}


def changes(pipe: Any, part: str, place: str) -> dict[str, Tensor]:
    """What the adapters add to each weight of the pipeline's decoder; the pipeline is afterwards as before."""
    if not hasattr(pipe, "load_lora_weights"):
        raise ValueError(f"diffusion.distilled: a {type(pipe).__name__} takes no LoRA weights")
    decoder = getattr(pipe, part)
    before = {name: weight.detach().clone() for name, weight in decoder.named_parameters()}
    try:
        pipe.load_lora_weights(place)
    except Exception as error:  # a file that is missing, of another format or of other shapes: each has its own class
        why = str(error).strip().split("\n")[0][:200]
        raise ValueError(f"diffusion.distilled: {place} does not fit the model: {why}") from error
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    found = {}
    for name, weight in getattr(pipe, part).named_parameters():
        if not torch.equal(weight, before[name]):
            found[name] = weight.detach() - before[name]
            weight.data.copy_(before[name])
    if not found:
        raise ValueError(f"diffusion.distilled: {place} changes nothing of the model")
    return found
