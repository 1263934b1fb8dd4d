"""Stable Diffusion XL (arXiv 2307.01952): two text encoders, and a decoder that is told the sizes of the image.

A tuned image has its true size as the "original" one: the paper's micro-conditioning, which keeps a model that learns
from small images from drawing blurred ones. What is drawn has the native size.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from florilegium.diffusion.networks import Texts, XLNetwork
from florilegium.diffusion.stable import StableView


class XLView(StableView):
    """How a frozen Stable Diffusion XL sees images and reads texts."""

    network = XLNetwork
    pipeline = StableDiffusionXLPipeline
    without = {"add_watermarker": False}

    @staticmethod
    def texts(pipe: Any, prompts: list[str], size: int | None = None) -> Texts:
        """Tokens of both encoders side by side, the second one's text as a whole, and the sizes.

        The empty text is zeros where the model's configuration says so, as in its classifier-free guidance.
        """
        tokens, _, pooled, _ = pipe.encode_prompt(prompts, device=pipe.device, do_classifier_free_guidance=False)
        if pipe.config.force_zeros_for_empty_prompt:
            said = torch.tensor([bool(text) for text in prompts], device=tokens.device)
            tokens, pooled = tokens * said[:, None, None], pooled * said[:, None]
        native = int(pipe.default_sample_size * pipe.vae_scale_factor)
        sizes = torch.tensor([[size or native] * 2 + [0, 0] + [native] * 2], dtype=torch.float32, device=tokens.device)
        return Texts(tokens, pooled, sizes.expand(len(prompts), 6))

    @staticmethod
    def pooled(pipe: Any, prompts: list[str]) -> Tensor:
        """[U, P] of the second encoder."""
        return pipe.encode_prompt(prompts, device=pipe.device, do_classifier_free_guidance=False)[2]
