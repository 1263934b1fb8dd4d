"""Models of full size with random weights, in the hub's layout: what `bench/gpu.py` measures, without a hub.

Shapes are the published ones; vocabularies are those of the tiny models, because random weights read nothing anyway.
`small` makes all of them tiny, to try the benchmark on a CPU.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from florilegium.contract.tiny_models import tokenizer, write_captioner, write_clip
from florilegium.diffusion.glide.conversion import BASE, UPSAMPLER, GlideShape
from florilegium.diffusion.glide.pipeline import GlidePipeline
from florilegium.diffusion.glide.tokenizer import END, from_vocabulary

SCHEDULE = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1)
SMALL = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)


def speller(length: int = 77) -> Any:
    made = tokenizer()
    made.model_max_length = length
    return made


def text_encoder(small: bool, kind: str = "CLIPTextModel", **shape: int) -> Any:
    """A CLIP text encoder of this shape."""
    import transformers

    spelling = speller()
    if small:
        shape = {**shape, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPTextConfig(
        vocab_size=len(spelling),
        max_position_embeddings=77,
        projection_dim=shape["hidden_size"],
        bos_token_id=spelling.bos_token_id,
        eos_token_id=spelling.eos_token_id,
        pad_token_id=spelling.pad_token_id,
        **shape,
    )
    return getattr(transformers, kind)(config)


def autoencoder(small: bool, side: int, scale: float) -> Any:
    from diffusers import AutoencoderKL

    width = (8, 8, 8, 8) if small else (128, 256, 512, 512)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=width,
        layers_per_block=2,
        norm_num_groups=8 if small else 32,
        scaling_factor=scale,
        sample_size=side,
    )


def write_sd15(folder: Path, small: bool = False) -> Path:
    """Stable Diffusion 1.5: U-Net of 860 M weights, VAE of 84 M, text encoder of 12 layers."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    width = {"block_out_channels": (32, 32, 32, 32), "sample_size": 16} if small else {"sample_size": 64}
    return saved(
        StableDiffusionPipeline(
            autoencoder(small, 512, 0.18215),
            text_encoder(small, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
            speller(),
            UNet2DConditionModel(cross_attention_dim=32 if small else 768, attention_head_dim=8, **width),
            DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False),
            None,
            None,
            requires_safety_checker=False,
        ),
        folder,
    )


def write_sdxl(folder: Path, small: bool = False) -> Path:
    """Stable Diffusion XL: U-Net of 2.6 G weights, text encoders of widths 768 and 1,280, 1,024 pixels."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    from florilegium.diffusion.sizes import USUAL

    config = dict(USUAL["stable-diffusion-xl"][2])
    if small:
        config |= {"sample_size": 8, "block_out_channels": [32, 32, 32], "transformer_layers_per_block": 1}
        config |= {"cross_attention_dim": 64, "attention_head_dim": 8}
        config |= {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32 + 6 * 4}
    with torch.device("cpu"):
        scheduler = EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading")
    second = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20)
    return saved(
        StableDiffusionXLPipeline(
            autoencoder(small, 1024, 0.13025),
            text_encoder(small, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
            text_encoder(small, "CLIPTextModelWithProjection", **second),
            speller(),
            speller(),
            UNet2DConditionModel(**config),
            scheduler,
            add_watermarker=False,
        ),
        folder,
    )


def write_glide(folder: Path, small: bool = False) -> Path:
    """GLIDE: the published base model of 64 pixels and its upsampler to 256."""
    base, larger = BASE, UPSAMPLER
    if small:
        base = GlideShape(
            size=16, channels=32, multipliers=(1, 1, 1), blocks=1, attended=(1, 2), head=32, positions=24, width=32,
            layers=1, heads=2, vocabulary=400,
        )  # fmt: skip
        larger = replace(base, size=32, inputs=6, schedule="linear")
    symbols = [*(chr(n) for n in range(0x21, 0x7F)), "\u0120", *(f"<{n}>" for n in range(base.vocabulary))]
    names = [*symbols[: base.vocabulary - 1], END]
    return saved(
        GlidePipeline(
            tokenizer=from_vocabulary({symbol: n for n, symbol in enumerate(names)}, [], base.positions),
            text_encoder=base.text_encoder(),
            unet=base.unet(),
            scheduler=base.scheduler(),
            upsampler=larger.unet(),
            upsampler_text_encoder=larger.text_encoder(),
            upsampler_scheduler=larger.scheduler(),
        ),
        folder,
    )


def saved(pipe: Any, folder: Path) -> Path:
    """The pipeline in float16, as a hub has it."""
    pipe.to(dtype=torch.float16)
    pipe.save_pretrained(folder)
    return folder


def write_blip(folder: Path, small: bool = False) -> Path:
    """BLIP of base size: 384 pixels, twelve layers each, 225 M weights."""
    if small:
        return write_captioner(folder)
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"a picture of the red blue cat dog tree house".split()]
    reads = BertTokenizer({word: i for i, word in enumerate(words)})
    ids = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {"vocab_size": 30524, "num_attention_heads": 12, "max_position_embeddings": 512, **ids}
    vision = {"image_size": 384, "patch_size": 16}
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 384, "width": 384}), reads).save_pretrained(folder)
    return folder


def write_open_clip(folder: Path, small: bool = False) -> Path:
    """CLIP ViT-B/32."""
    if small:
        return write_clip(folder)
    import open_clip
    from safetensors.torch import save_file

    spelling = speller()
    spelling.save_pretrained(folder)
    config: dict[str, Any] = {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
        "text_cfg": {
            "context_length": 77, "vocab_size": len(spelling), "hf_tokenizer_name": ".", "width": 512, "heads": 8,
            "layers": 12,
        },
    }  # fmt: skip
    seen = {"size": [224, 224], "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3, "fill_color": 0}
    seen |= {"interpolation": "bicubic", "resize_mode": "shortest"}
    model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": seen}))
    return folder


def write_backbones(folder: Path, small: bool = False) -> dict[str, str]:
    """{architecture: directory}: ViT-B/32, BEiT-B/16 and ResNet-18 at 224 pixels, BERT, DistilBERT and RoBERTa."""
    import transformers

    side = 32 if small else 224
    sizes: dict[str, Any] = SMALL if small else {}
    beit = {"use_shared_relative_position_bias": True, "image_size": side, "patch_size": 16}
    basic = {"layer_type": "basic", "embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
    distil = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32} if small else {}
    configs = {
        "vit": transformers.ViTConfig(image_size=side, patch_size=32 if not small else 16, **sizes),
        "beit": transformers.BeitConfig(**beit, **sizes),
        "resnet": transformers.ResNetConfig(**basic),
        "bert": transformers.BertConfig(**sizes),
        "distilbert": transformers.DistilBertConfig(**distil),
        "roberta": transformers.RobertaConfig(**sizes, max_position_embeddings=514, pad_token_id=0),
    }
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"a picture of the thing that is used for".split()]
    for kind, config in configs.items():
        transformers.AutoModel.from_config(config).save_pretrained(folder / kind)
        if kind in ("vit", "beit", "resnet"):
            transformers.ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder / kind)
        else:
            reads = transformers.BertTokenizer({word: i for i, word in enumerate(words)}, model_max_length=512)
            reads.save_pretrained(folder / kind)
    return {kind: str(folder / kind) for kind in configs}
