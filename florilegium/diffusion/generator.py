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

from florilegium.config.bounds import between, one_of
from florilegium.diffusion.captions import CaptionSettings
from florilegium.diffusion.tuning import TuneSettings, TuneTexts

Progress = Callable[[int, int], None]  # (done, total)

BACKENDS = ("auto", "stable", "glide")
SCHEDULERS = ("ddim", "ddpm", "dpm", "euler", "euler_ancestral", "pndm", "unipc")


@dataclass
class FeatureSettings:
    """conf.diffusion.features: what the frozen decoder's layers become when a method looks at an image."""

    timestep: int = 300  # t
    layers: list[int] = field(default_factory=lambda: [1, 2])  # up blocks from 1, as the paper counts; SD: [2, 3, 4]
    dims: list[int] = field(default_factory=lambda: [64, 64])  # PCA width of each layer; they sum to D
    pool: str = "l2norm"  # l2norm | gap | rms, over the positions of a layer
    size: int | None = None  # pixels on a side that the VAE sees; None: native
    posterior: str = "mean"  # mean | sample
    ensemble: int = 1  # noise draws whose maps are averaged
    calibration: int = 20_000  # tokens of a layer that its PCA is fitted on
    pca: str = "shared"  # shared | per_batch (the released form)
    batch: int = 64  # rows of one U-Net call

    def __post_init__(self) -> None:
        one_of("pool", self.pool, ("l2norm", "gap", "rms"))
        one_of("posterior", self.posterior, ("mean", "sample"))
        one_of("pca", self.pca, ("shared", "per_batch"))
        between("timestep", self.timestep, 0, 999)
        between("size", self.size or 8, 8, 4096)
        for key in ("ensemble", "calibration", "batch"):
            between(key, getattr(self, key), 1, 10_000_000)
        if not self.layers or sorted(set(self.layers)) != list(self.layers) or self.layers[0] < 1:
            raise ValueError(f"layers must be rising numbers from 1, got {list(self.layers)}")
        if len(self.dims) != len(self.layers) or min(self.dims) < 1:
            raise ValueError(f"dims must give one width for each layer of {list(self.layers)}, got {list(self.dims)}")


@dataclass
class DiffusionSettings:
    """conf/diffusion: the generator and the models that describe and judge its images."""

    backend: str = "auto"
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
    upsample: bool = True
    upsample_steps: str = "fast27"
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)

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
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        guidance: float | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """uint8 [N, 3, H, W]; image n depends on prompt n, seed n and the weights alone, not on its batch.

        `guidance` None is the settings'.
        """

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
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
