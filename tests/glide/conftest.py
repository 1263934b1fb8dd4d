"""Two tiny random GLIDE networks with the numbers that the official code computed from them, in float32."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from florilegium.diffusion.glide.conversion import GlideShape, modules
from florilegium.diffusion.glide.pipeline import GlidePipeline, pooled_by_itself
from florilegium.diffusion.glide.tokenizer import from_vocabulary

HERE = Path(__file__).parent / "reference"
FACTS = json.loads((HERE / "config.json").read_text())


def shape_of(name: str) -> GlideShape:
    """A tiny shape, its fields in our words."""
    given = dict(FACTS[name]["shape"])
    words = {"mults": "multipliers", "ctx": "positions", "vocab": "vocabulary"}
    given = {words.get(key, key): tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return GlideShape(**given)


@dataclass
class Reference:
    """A tiny network: its converted modules, the official weights and the official numbers."""

    shape: GlideShape
    weights: dict[str, Tensor]
    numbers: dict[str, Tensor]
    unet: Any
    text: Any
    traces: dict[str, Any]


def reference(name: str) -> Reference:
    shape, weights = shape_of(name), load_file(HERE / f"{name}_weights.safetensors")
    unet, text = modules(weights, shape)
    pooled_by_itself(unet, text)
    numbers = load_file(HERE / f"{name}_numbers.safetensors")
    return Reference(shape, weights, numbers, unet, text, FACTS[name]["traces"])


@pytest.fixture(scope="session")
def base() -> Reference:
    return reference("base")


@pytest.fixture(scope="session")
def upsampler() -> Reference:
    return reference("upsampler")


def tiny_tokenizer(positions: int = 12, size: int = 101) -> Any:
    """A byte-pair vocabulary of `size` entries: printable characters, a few merges, the end token."""
    symbols = [chr(n) for n in range(ord("a"), ord("z") + 1)] + list("Ġ0123456789.,!?-'")
    merges = [("Ġ", "a"), ("r", "e"), ("re", "d"), ("Ġ", "red"), ("c", "a"), ("ca", "t"), ("Ġ", "cat")]
    symbols += ["".join(pair) for pair in merges]
    symbols += [f"<{n}>" for n in range(size - len(symbols) - 1)]
    vocabulary = {symbol: n for n, symbol in enumerate([*symbols, "<|endoftext|>"])}
    return from_vocabulary(vocabulary, merges, positions)


@pytest.fixture
def pipeline(base: Reference, upsampler: Reference) -> GlidePipeline:
    """Both tiny networks as a pipeline: 16 pixels, then 32."""
    torch.manual_seed(0)
    fresh_base, fresh_up = modules(base.weights, base.shape), modules(upsampler.weights, upsampler.shape)
    return GlidePipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=fresh_base[1],
        unet=fresh_base[0],
        scheduler=base.shape.scheduler(),
        upsampler=fresh_up[0],
        upsampler_text_encoder=fresh_up[1],
        upsampler_scheduler=upsampler.shape.scheduler(),
    )
