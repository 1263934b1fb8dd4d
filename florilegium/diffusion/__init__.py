"""The text-to-image model of the server: one small protocol, and the one place that chooses a backend.

This module is light: diffusers is imported only when `load` builds a Stable Diffusion backend.
Axes: N samples, H height, W width, D representation width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from florilegium.checks import between, one_of
from florilegium.diffusion.captions import CaptionSettings
from florilegium.diffusion.tuning import TuneSettings, TuneTexts

Progress = Callable[[int, int], None]  # (done, total)

BACKENDS = ("stable",)
SCHEDULERS = ("ddim", "ddpm", "dpm", "euler", "euler_ancestral", "pndm", "unipc")


@dataclass
class DiffusionSettings:
    """conf/diffusion: the generator and the models that describe and judge its images."""

    backend: str = "stable"
    model: str = "mini-sd"
    captioner: str = "mini-captioner"
    clip: str = "mini-clip"
    device: str = "cpu"
    dtype: str = "float32"
    guidance: float = 3.0
    steps: int = 20
    scheduler: str | None = None
    batch: int = 64
    size: int | None = None
    captions: CaptionSettings = field(default_factory=CaptionSettings)

    def __post_init__(self) -> None:
        one_of("backend", self.backend, BACKENDS)
        one_of("device", self.device.split(":")[0], ("cpu", "cuda", "mps", "auto"))
        one_of("dtype", self.dtype, ("float32", "bfloat16"))
        one_of("scheduler", self.scheduler, (None, *SCHEDULERS))
        between("guidance", self.guidance, 0, 100)
        between("steps", self.steps, 1, 1000)
        between("batch", self.batch, 1, 100_000)
        between("size", self.size or 1, 1, 4096)


class Generator(Protocol):
    """What a method may ask of a text-to-image model; another backend (GLIDE) has these five verbs too."""

    def synthesize(
        self, prompts: Sequence[str], seeds: Sequence[int], guidance: float | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """uint8 [N, 3, H, W]; image n depends on prompt n, seed n and the weights alone, not on its batch.

        `guidance` None is the settings'.
        """

    def finetune(
        self, images: Tensor, texts: TuneTexts, representations: Tensor | None, settings: TuneSettings, *,
        rounds: tuple[int, int], seed: int, progress: Progress | None = None,
    ) -> dict[str, float]:
        """Train the decoder on uint8 [N, 3, H, W], texts and representations [N, D]; `rounds` is (this one, all)."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able values from which `restore` goes on exactly."""

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Put back what `state` gave."""

    def save(self, directory: str | Path) -> None:
        """Write the tuned model in its ecosystem's own format."""


def load(settings: DiffusionSettings, model: str) -> Generator:
    """The backend of `settings` around `model`, a directory or hub id."""
    from florilegium.diffusion.stable import StableGenerator

    return StableGenerator(model, settings)


def device_of(name: str) -> str:
    """`auto` is a CUDA device where there is one."""
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
