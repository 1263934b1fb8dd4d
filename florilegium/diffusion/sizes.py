"""How large a decoder is and what one call of it costs, without its weights: it is built on the meta device.

A directory says it by its config.json. Of the usual models of a hub the configurations are here, for plans without
a network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch.utils.flop_counter import FlopCounterMode

from florilegium.diffusion.glide.conversion import BASE, UPSAMPLER
from florilegium.diffusion.load import backend
from florilegium.diffusion.networks import JointTransformer, Network, Texts, XLNetwork

_TWO: dict[str, Any] = {"sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]}
SD_VAE: dict[str, Any] = {  # of every Stable Diffusion, but for its latent channels
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
}
#: part of a hub id -> (network, class, configuration, weights of the frozen parts)
USUAL: dict[str, tuple[type[Network], str, dict[str, Any], float]] = {
    "stable-diffusion-xl": (
        XLNetwork,
        "UNet2DConditionModel",
        {
            "sample_size": 128,
            "cross_attention_dim": 2048,
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "use_linear_projection": True,
        },
        0.9e9,
    ),
    "stable-diffusion-3-medium": (
        JointTransformer,
        "SD3Transformer2DModel",
        {
            "sample_size": 128,
            "num_layers": 24,
            "num_attention_heads": 24,
            "attention_head_dim": 64,
            "caption_projection_dim": 1536,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
        },
        5.7e9,
    ),
    "stable-diffusion-2-1": (Network, "UNet2DConditionModel", _TWO | {"use_linear_projection": True}, 0.42e9),
    "stable-diffusion-v1-5": (
        Network,
        "UNet2DConditionModel",
        {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        0.21e9,
    ),
}


@dataclass(frozen=True)
class DecoderSize:
    """`weights` of the decoder, `frozen` of the other parts, `flops` of one call for one image, sides in pixels.

    `encoding`: operations of the VAE's encoder for one image of `native` pixels; `upsampling`: of one call of a second
    model that enlarges the image. 0: there is none.
    """

    name: str
    weights: int
    frozen: float
    flops: float
    latent: int
    native: int
    encoding: float = 0.0
    upsampling: float = 0.0


def decoder_size(model: str) -> DecoderSize | None:
    """Of a pipeline directory, or of a usual hub id; None where nothing is known. ValueError as `load.backend`."""
    if Path(model).is_dir():
        return _of_directory(Path(model))
    if "glide" in model.lower():
        made = sized("GLIDE", Network(_on_meta(BASE.unet)), 12e6 + 0.4e9, 1)
        return replace(made, upsampling=sized("", Network(_on_meta(UPSAMPLER.unet)), 0, 1).flops)
    for name, (network, cls, config, frozen) in USUAL.items():
        if name in model.lower():
            made = _on_meta(lambda cls=cls, config=config: getattr(diffusers, cls)(**config))
            return with_encoding(sized(name, network(made), frozen, 8), SD_VAE)
    return None


def _of_directory(place: Path) -> DecoderSize:
    known = backend(str(place))
    network = known.loaded_view().network
    config = json.loads((place / network.part / "config.json").read_text())
    decoder = _on_meta(lambda: getattr(diffusers, config["_class_name"]).from_config(config))
    folders = [path for path in place.iterdir() if path.is_dir() and path.name != network.part]
    frozen = sum(_weights(file) for folder in folders for file in folder.glob("*.safetensors"))
    vae = place / "vae" / "config.json"
    scale = 2 ** (len(json.loads(vae.read_text())["block_out_channels"]) - 1) if vae.is_file() else 1
    made = sized(place.name, network(decoder), frozen, scale)
    if vae.is_file():
        return with_encoding(made, json.loads(vae.read_text()))
    if (second := place / "upsampler" / "config.json").is_file():
        config = json.loads(second.read_text())
        upsampler = _on_meta(lambda: getattr(diffusers, config["_class_name"]).from_config(config))
        return replace(made, upsampling=sized("", network(upsampler), 0, 1).flops)
    return made


def with_encoding(size: DecoderSize, vae: dict[str, Any]) -> DecoderSize:
    """The same with the operations of this VAE's encoder; one of another class than AutoencoderKL stays uncounted."""
    if vae.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        return size
    made = _on_meta(lambda: diffusers.AutoencoderKL.from_config(vae))
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        made.encode(torch.zeros(1, made.config.in_channels, size.native, size.native))
    return replace(size, encoding=float(counter.get_total_flops()))


def _weights(file: Path) -> int:
    """How many numbers a safetensors file holds, by its header."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return sum(torch.Size(opened.get_slice(key).get_shape()).numel() for key in opened.keys())  # noqa: SIM118


def _on_meta(make: Any) -> Any:
    with torch.device("meta"):
        return make()


def sized(name: str, network: Network, frozen: float, scale: int) -> DecoderSize:
    """Counts the weights, and the operations of one call, by the shapes alone."""
    decoder = network.decoder
    size = decoder.config.sample_size
    side = int(size if isinstance(size, int) else size[0])
    config = dict(decoder.config)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        pooled = config.get("pooled_projection_dim")
        if config.get("addition_embed_type") == "text_time":
            pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        texts = Texts(
            torch.zeros(1, 77, network.token_width),
            torch.zeros(1, pooled) if pooled else None,
            torch.zeros(1, 6) if isinstance(network, XLNetwork) else None,
        )
        extra = {"class_labels": torch.zeros(1, network.token_width)} if config.get("class_embed_type") else {}
        noisy = torch.zeros(1, config["in_channels"], side, side)
        if extra:
            decoder(noisy, torch.zeros(1), texts.tokens, **extra)
        else:
            network(noisy, torch.zeros(1), texts)
    weights = sum(p.numel() for p in decoder.parameters())
    return DecoderSize(name, weights, frozen, float(counter.get_total_flops()), side, side * scale)
