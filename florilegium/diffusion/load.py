"""The one place that chooses the backend of a text-to-image model."""

from __future__ import annotations

from florilegium.diffusion.generator import DiffusionSettings, Generator
from florilegium.diffusion.stable import StableGenerator


def load(settings: DiffusionSettings, model: str) -> Generator:
    """The backend of `settings` around `model`, a directory or hub id."""
    return StableGenerator(model, settings)
