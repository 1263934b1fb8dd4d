"""Pipelines of full-size classes with few parameters and random weights, in the hub's layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from florilegium.contract.tiny_models import SIDE, autoencoder, decoder, text_encoder, tokenizer, write_diffusion
from florilegium.diffusion.glide.conversion import GlideShape
from florilegium.diffusion.glide.pipeline import GlidePipeline
from florilegium.diffusion.glide.tokenizer import END, from_vocabulary

PROJECTED = "CLIPTextModelWithProjection"
SCHEDULE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)


def write_two(folder: Path) -> Path:
    """Stable Diffusion 2.1: velocities, linear projections, the second-last layer's text of another width."""
    spelling = tokenizer()
    unet = decoder(24, use_linear_projection=True)
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)
    StableDiffusionPipeline(
        autoencoder(scaling_factor=0.18215),
        text_encoder(24, 2),
        spelling,
        unet,
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def write_xl(folder: Path) -> Path:
    """Stable Diffusion XL: encoders of widths 16 and 24, so tokens of 40; sizes in six sines of 4."""
    unet = decoder(
        40,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=24 + 6 * 4,
        use_linear_projection=True,
    )
    StableDiffusionXLPipeline(
        autoencoder(scaling_factor=0.13025),
        text_encoder(16, 2),
        text_encoder(24, 2, PROJECTED),
        tokenizer(),
        tokenizer(),
        unet,
        EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading"),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def t5() -> dict[str, Any]:
    """The third encoder and its tokenizer, of width 48."""
    config = T5Config(vocab_size=60, d_model=48, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((piece, -2.0) for piece in "\u2581abcdefghijklmnopqrstuvwxyz.,"),
    ]
    return {"text_encoder_3": T5EncoderModel(config), "tokenizer_3": T5Tokenizer(vocab=pieces, extra_ids=0)}


def write_flow(folder: Path, third: bool = True, blocks: int = 3) -> Path:
    """Stable Diffusion 3: latents of 8 channels, shift 3, blocks of width 16; tokens of 16 + 24, padded to 48."""
    transformer = SD3Transformer2DModel(
        sample_size=SIDE // 2,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=blocks,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=16,
        pooled_projection_dim=40,
        pos_embed_max_size=8,
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(8, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text_encoder(16, 2, PROJECTED),
        tokenizer=tokenizer(),
        text_encoder_2=text_encoder(24, 2, PROJECTED),
        tokenizer_2=tokenizer(),
        **(t5() if third else {"text_encoder_3": None, "tokenizer_3": None}),
    ).save_pretrained(folder)
    return folder


GLIDE = GlideShape(
    size=SIDE,
    channels=32,
    multipliers=(1, 1),
    blocks=1,
    attended=(1,),
    head=32,
    positions=12,
    width=16,
    layers=1,
    heads=2,
    vocabulary=80,
)


def write_glide(folder: Path) -> Path:
    """GLIDE: 16 pixels, enlarged to 32 by a second model; a vocabulary of letters."""
    letters = [*map(chr, range(ord("a"), ord("z") + 1)), *"\u01200123456789.,'-"]
    symbols = [*letters, *(f"<{n}>" for n in range(GLIDE.vocabulary - len(letters) - 1)), END]
    larger = replace(GLIDE, size=2 * SIDE, inputs=6, schedule="linear")
    GlidePipeline(
        tokenizer=from_vocabulary({symbol: n for n, symbol in enumerate(symbols)}, [], GLIDE.positions),
        text_encoder=GLIDE.text_encoder(),
        unet=GLIDE.unet(),
        scheduler=GLIDE.scheduler(),
        upsampler=larger.unet(),
        upsampler_text_encoder=larger.text_encoder(),
        upsampler_scheduler=larger.scheduler(),
    ).save_pretrained(folder)
    return folder


def write_one(folder: Path) -> Path:
    """Stable Diffusion 1.5: four blocks, as its features need."""
    return write_diffusion(folder, channels=(8, 8, 16, 16))


WRITERS = {"one": write_one, "two": write_two, "xl": write_xl, "flow": write_flow, "glide": write_glide}


def write(kind: str, folder: Path) -> str:
    """The directory of a tiny pipeline, its weights the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return str(WRITERS[kind](folder / f"tiny-{kind}"))
