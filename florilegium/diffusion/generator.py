"""The text-to-image model of the server: one small protocol, and the one place that chooses a backend.

This module is light: diffusers is imported only when `load` builds a Stable Diffusion backend.
Axes: N samples, H height, W width, D representation width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from florilegium.config.diffusion import TuneSettings
from florilegium.diffusion.inserted import Chain
from florilegium.diffusion.tuning import Tuner, TuneTexts

Progress = Callable[[int, int], None]  # (done, total)


class Generator(Protocol):
    """What a method may ask of a text-to-image model; another backend (GLIDE) has these verbs too."""

    steps: Callable[..., dict[str, float]]  # where the steps of `finetune` run: `Tuner.fit`, or one with its arguments
    tuner: Tuner

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the noise that an image is made of."""

    def synthesize(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        guidance: float | None = None,
        progress: Progress | None = None,
        latents: Tensor | None = None,
        size: int | None = None,
    ) -> Tensor:
        """uint8 [N, 3, H, W]; image n depends on prompt n, seed n and the weights alone, not on its batch.

        `guidance` None is the settings'. `latents` [N, ...] of `noise_shape` are taken in the place of the first noise.
        `size` are pixels on a side; None: the settings'.
        """

    @property
    def side(self) -> int:
        """Pixels on a side of what is drawn, before the settings' size."""

    def finetune(
        self,
        images: Tensor,
        texts: TuneTexts,
        representations: Tensor | None,
        settings: TuneSettings,
        *,
        rounds: tuple[int, int],
        seed: int,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Train the decoder on uint8 [N, 3, H, W], texts and representations [N, D]; `rounds` is (this one, all)."""

    def insert(self, chains: Sequence[Chain], seed: int) -> None:
        """Put adapters of other models into the decoder, which stays frozen around them; again: other values."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able values from which `restore` goes on exactly."""

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Put back what `state` gave."""

    def save(self, directory: str | Path) -> None:
        """Write the tuned model in its ecosystem's own format."""


def device_of(name: str) -> str:
    """`auto` is a CUDA device where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def enough_memory(ways: str) -> Iterator[None]:
    """MemoryError, one line that names what to lower, where the GPU has too little memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"too little GPU memory: lower {ways}; `florilegium plan` estimates what is needed"
        ) from error


def ways_of(settings: TuneSettings) -> str:
    """What a user can lower where tuning has too little memory."""
    return f"tuning.batch ({settings.batch}), or set tuning.checkpointing=true or tuning.lora=16"
