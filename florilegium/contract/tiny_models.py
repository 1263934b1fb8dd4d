"""Random-weight models of 16 x 16 images in the real directory formats: built in half a second, never downloaded.

For tests: ours, and those of packages that bring a method of their own. `build(folder)` writes sd/, captioner/, clip/
and judge/; `tiny_models()` keeps one such build for the whole process.
"""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from florilegium.config import composition
from florilegium.data.datasets import open_dataset

SIDE, WIDTH, TOKENS = 16, 16, 16
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,'-"
START, END = "<|startoftext|>", "<|endoftext|>"


def tokenizer():
    """A CLIPTokenizer that spells: one token a letter, another where it ends a word."""
    from transformers import CLIPTokenizer

    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), START, END]
    return CLIPTokenizer({word: i for i, word in enumerate(words)}, merges=[], model_max_length=TOKENS)


def text_encoder(width: int = WIDTH, layers: int = 1, kind: str = "CLIPTextModel"):
    """A text encoder of this class of transformers that reads the tokens of `tokenizer`."""
    import transformers

    spelling = tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(spelling),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=spelling.bos_token_id,
        eos_token_id=spelling.eos_token_id,
        pad_token_id=spelling.pad_token_id,
    )
    return getattr(transformers, kind)(config)


def autoencoder(channels: int = 4, **config: Any):
    """16 x 16 images <-> 8 x 8 latents of so many channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=SIDE,
        **config,
    )


def decoder(width: int = WIDTH, channels: tuple[int, ...] = (8, 16), **config: Any):
    """A U-Net over 8 x 8 latents whose texts have this width; a block for each channel, all but the deepest attend."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIDE // 2,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",) * (len(channels) - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(channels) - 1),
        cross_attention_dim=width,
        attention_head_dim=2,
        **config,
    )


def write_diffusion(folder: Path, prediction: str = "epsilon", channels: tuple[int, ...] = (8, 16)) -> Path:
    """A StableDiffusionPipeline: 16 x 16 images, 8 x 8 x 4 latents, fp16 files; a U-Net block for each channel."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    vae, unet = autoencoder(scaling_factor=1.0), decoder(channels=channels)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )
    pipe = StableDiffusionPipeline(
        vae, text_encoder(), tokenizer(), unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.to(dtype=torch.float16)
    pipe.save_pretrained(folder)
    return folder


def write_captioner(folder: Path) -> Path:
    """A BlipForConditionalGeneration with its BlipProcessor."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"a picture of the red blue cat dog tree house".split()]
    speller = BertTokenizer({word: i for i, word in enumerate(dict.fromkeys(words))})
    text = dict(
        vocab_size=len(speller),
        hidden_size=WIDTH,
        encoder_hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        projection_dim=WIDTH,
        bos_token_id=2,
        eos_token_id=3,
        sep_token_id=3,
        pad_token_id=0,
    )
    vision = dict(
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        projection_dim=WIDTH,
    )
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    pixels = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    BlipProcessor(pixels, speller).save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """An open_clip local directory: a small ViT and text tower, with its tokenizer."""
    import open_clip
    from safetensors.torch import save_file

    spelling = tokenizer()
    spelling.save_pretrained(folder)  # makes the folder too
    config = {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": SIDE, "layers": 1, "width": WIDTH, "head_width": 8, "patch_size": 8},
        "text_cfg": {
            "context_length": TOKENS,
            "vocab_size": len(spelling),
            "hf_tokenizer_name": ".",
            "width": WIDTH,
            "heads": 2,
            "layers": 1,
        },
    }
    preprocess = {
        "size": [SIDE, SIDE],
        "mode": "RGB",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
        "fill_color": 0,
    }
    model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(text)
    return folder


def write_judge(folder: Path, classes: int | list[str] = 3) -> Path:
    """A ResNetForImageClassification; `classes` is their number or their names."""
    from transformers import ResNetConfig, ResNetForImageClassification

    names = [f"class {c}" for c in range(classes)] if isinstance(classes, int) else list(classes)
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        id2label=dict(enumerate(names)),
        label2id={n: i for i, n in enumerate(names)},
    )
    ResNetForImageClassification(config).save_pretrained(folder)
    return folder


def build(folder: Path, classes: int | list[str] = 3) -> dict[str, Path]:
    """All four below `folder`, with the same weights every time: {"model", "captioner", "clip", "judge"}."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {
            "model": write_diffusion(folder / "sd"),
            "captioner": write_captioner(folder / "captioner"),
            "clip": write_clip(folder / "clip"),
            "judge": write_judge(folder / "judge", classes),
        }
    return made


@cache
def _built(classes: tuple[str, ...] | int) -> tuple[tempfile.TemporaryDirectory, dict[str, Path]]:
    kept = tempfile.TemporaryDirectory(prefix="florilegium-tiny-")
    return kept, build(Path(kept.name), classes if isinstance(classes, int) else list(classes))


def tiny_models(classes: int | tuple[str, ...] = 3) -> dict[str, Path]:
    """`build` in a directory of this process, once; removed when the process ends. Do not write into it."""
    return _built(classes)[1]


def toy_overrides() -> list[str]:
    """Hydra overrides that put models of milliseconds, made once in this process, in the place of those of data=toy."""
    classes = tuple(
        str(name) for name in open_dataset(composition.compose(["data=toy", "diffusion=mini"]).data).classes
    )
    made = tiny_models(classes)
    return [
        "diffusion=toy",
        f"+data.judge={made['judge']}",
        *(f"diffusion.{name}={made[name]}" for name in ("model", "captioner", "clip")),
    ]
