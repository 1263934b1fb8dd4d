"""Pipelines of full-size classes with few parameters and random weights, in the hub's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from florilegium.contract.tiny_models import TOKENS, tokenizer

SIDE = 16
SCHEDULE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)


def vae(channels: int = 4, **config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=SIDE,
        **config,
    )


def text_encoder(width: int, cls: type = CLIPTextModel, length: int = TOKENS) -> Any:
    spelling = tokenizer()
    return cls(
        CLIPTextConfig(
            vocab_size=len(spelling),
            hidden_size=width,
            projection_dim=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=length,
            bos_token_id=spelling.bos_token_id,
            eos_token_id=spelling.eos_token_id,
            pad_token_id=spelling.pad_token_id,
        )
    )


def unet(width: int, **config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=2,
        **config,
    )


def write_two(folder: Path) -> Path:
    """Stable Diffusion 2.1: velocities, linear projections, the second-last layer's text of another width."""
    spelling = tokenizer()
    decoder = unet(24, use_linear_projection=True)
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)
    StableDiffusionPipeline(
        vae(scaling_factor=0.18215),
        text_encoder(24),
        spelling,
        decoder,
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def write_xl(folder: Path) -> Path:
    """Stable Diffusion XL: encoders of widths 16 and 24, so tokens of 40; sizes in six sines of 4."""
    decoder = unet(
        40,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=24 + 6 * 4,
        use_linear_projection=True,
    )
    StableDiffusionXLPipeline(
        vae(scaling_factor=0.13025),
        text_encoder(16),
        text_encoder(24, CLIPTextModelWithProjection),
        tokenizer(),
        tokenizer(),
        decoder,
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
    decoder = SD3Transformer2DModel(
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
        transformer=decoder,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(8, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text_encoder(16, CLIPTextModelWithProjection),
        tokenizer=tokenizer(),
        text_encoder_2=text_encoder(24, CLIPTextModelWithProjection),
        tokenizer_2=tokenizer(),
        **(t5() if third else {"text_encoder_3": None, "tokenizer_3": None}),
    ).save_pretrained(folder)
    return folder


WRITERS = {"two": write_two, "xl": write_xl, "flow": write_flow}


def write(kind: str, folder: Path) -> str:
    """The directory of a tiny pipeline, its weights the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return str(WRITERS[kind](folder / f"tiny-{kind}"))
