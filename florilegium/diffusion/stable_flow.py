"""Stable Diffusion 3 (arXiv 2403.03206): flow matching by a transformer, two or three text encoders.

Features are those of its blocks at image positions. The third encoder (T5) is optional, as in the pipeline itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from florilegium.diffusion.networks import JointTransformer, Texts
from florilegium.diffusion.stable import StableView

OPTIONAL = ("text_encoder_3", "tokenizer_3")


class FlowView(StableView):
    """How a frozen Stable Diffusion 3 sees images and reads texts."""

    network = JointTransformer
    pipeline = StableDiffusion3Pipeline
    without = {}

    @classmethod
    def whole(cls, place: str, device: str, dtype: torch.dtype) -> Any:
        """As its base. A directory may have no third encoder, which saves 9 GB: its part of the text is zeros then."""
        left_out = [name for name in OPTIONAL if Path(place).is_dir() and not Path(place, name).is_dir()]
        return cls.read(place, device, dtype, **dict.fromkeys(left_out))

    @staticmethod
    def sampler(name: str, pipe: Any) -> Any:
        """ValueError: those that the settings name are for diffusion models."""
        raise ValueError(
            f"diffusion.scheduler: {name} does not fit a model with flow matching; "
            "diffusion.scheduler=null keeps its own"
        )

    @staticmethod
    def noisy(pipe: Any, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """x_s with s = t / 1000."""
        s = timestep / pipe.scheduler.config.num_train_timesteps
        return (1 - s) * latents + s * noise

    @staticmethod
    def texts(pipe: Any, prompts: list[str], size: int | None = None) -> Texts:
        tokens, _, pooled, _ = pipe.encode_prompt(
            prompts, prompts, prompts, device=pipe.device, do_classifier_free_guidance=False
        )
        return Texts(tokens, pooled)

    @staticmethod
    def pooled(pipe: Any, prompts: list[str]) -> Tensor:
        """[U, P] of both CLIP encoders."""
        found = pipe.encode_prompt(prompts, prompts, prompts, device=pipe.device, do_classifier_free_guidance=False)
        return found[2]
