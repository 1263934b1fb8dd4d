"""The published GLIDE checkpoints as diffusers modules: every weight renamed, some split head by head.

Axes of attention weights: H heads, h channels of a head, c channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from florilegium.diffusion.glide.pipeline import GlidePipeline
from florilegium.diffusion.glide.text_encoder import GlideTextEncoder
from florilegium.diffusion.glide.tokenizer import read_vocabulary

RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
LAYER = {
    "attn.c_proj": "self_attn.out_proj",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "mlp.c_fc": "linear1",
    "mlp.c_proj": "linear2",
}
COPIED = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "transformer_proj": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@dataclass(frozen=True)
class GlideShape:
    """The shape of one network with its text encoder; the default is the published base model."""

    size: int = 64  # pixels on a side
    channels: int = 192  # width of the first level
    multipliers: tuple[int, ...] = (1, 2, 3, 4)  # width of each level, in `channels`; the first is 1
    blocks: int = 3  # residual blocks of a level going down; one more going up
    attended: tuple[int, ...] = (1, 2, 3)  # levels with attention, 0 = full resolution
    head: int = 64  # channels of an attention head
    groups: int = 32  # of every group normalisation
    inputs: int = 3  # channels; 6: the noisy image, then the enlarged small one
    dropout: float = 0.1
    positions: int = 128
    width: int = 512  # of the text encoder
    layers: int = 16
    heads: int = 8
    vocabulary: int = 50257
    schedule: str = "squaredcos_cap_v2"  # of the betas, 1,000 steps

    def unet(self) -> UNet2DConditionModel:
        """The stock U-Net of this shape, with fresh weights."""
        down = ["SimpleCrossAttnDownBlock2D" if n in self.attended else "ResnetDownsampleBlock2D" for n in self.levels]
        up = ["SimpleCrossAttnUpBlock2D" if n in self.attended else "ResnetUpsampleBlock2D" for n in self.levels]
        return UNet2DConditionModel(
            sample_size=self.size,
            in_channels=self.inputs,
            out_channels=6,
            block_out_channels=tuple(self.channels * m for m in self.multipliers),
            layers_per_block=self.blocks,
            down_block_types=tuple(down),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=tuple(reversed(up)),
            attention_head_dim=self.head,
            cross_attention_dim=self.width,
            only_cross_attention=False,
            resnet_time_scale_shift="scale_shift",
            act_fn="silu",
            norm_num_groups=self.groups,
            norm_eps=1e-5,
            flip_sin_to_cos=True,
            freq_shift=0,
            dropout=self.dropout,
            class_embed_type="simple_projection",
            projection_class_embeddings_input_dim=self.width,
        )

    def text_encoder(self) -> GlideTextEncoder:
        """A fresh text encoder of this shape."""
        return GlideTextEncoder(self.vocabulary, self.positions, self.width, self.layers, self.heads)

    def scheduler(self) -> DDPMScheduler:
        """The training schedule."""
        return DDPMScheduler(
            1000,
            beta_start=1e-4,
            beta_end=0.02,
            beta_schedule=self.schedule,
            variance_type="learned_range",
            clip_sample=True,
        )

    @property
    def levels(self) -> range:
        return range(len(self.multipliers))


BASE = GlideShape()
UPSAMPLER = GlideShape(
    size=256, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, attended=(3, 4, 5), inputs=6, schedule="linear"
)


def places(shape: GlideShape) -> Iterator[tuple[str, str, str]]:
    """(official module, kind, our module) of all blocks of the U-Net; kind is residual or attention."""
    number, last = 1, len(shape.multipliers) - 1
    for level in shape.levels:
        for r in range(shape.blocks):
            yield f"input_blocks.{number}.0", "residual", f"down_blocks.{level}.resnets.{r}"
            if level in shape.attended:
                yield f"input_blocks.{number}.1", "attention", f"down_blocks.{level}.attentions.{r}"
            number += 1
        if level != last:
            yield f"input_blocks.{number}.0", "residual", f"down_blocks.{level}.downsamplers.0"
            number += 1
    for at, kind, name in (
        (0, "residual", "resnets.0"),
        (1, "attention", "attentions.0"),
        (2, "residual", "resnets.1"),
    ):
        yield f"middle_block.{at}", kind, f"mid_block.{name}"
    number = 0
    for up, level in enumerate(reversed(shape.levels)):
        for r in range(shape.blocks + 1):
            yield f"output_blocks.{number}.0", "residual", f"up_blocks.{up}.resnets.{r}"
            if level in shape.attended:
                yield f"output_blocks.{number}.1", "attention", f"up_blocks.{up}.attentions.{r}"
            if r == shape.blocks and level:
                at = 2 if level in shape.attended else 1
                yield f"output_blocks.{number}.{at}", "residual", f"up_blocks.{up}.upsamplers.0"
            number += 1


def converted(state: Mapping[str, Tensor], shape: GlideShape) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(weights of the U-Net, weights of the text encoder) of an official state dict. ValueError names a key that
    belongs nowhere."""
    blocks = {official: (kind, ours) for official, kind, ours in places(shape)}
    unet: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    for key, value in state.items():
        module, _, last = key.rpartition(".")
        if module in COPIED:
            unet[f"{COPIED[module]}.{last}"] = value
        elif found := next((block for block in _prefixes(key) if block in blocks), None):
            kind, ours = blocks[found]
            part = module.removeprefix(f"{found}.")
            rename = _residual if kind == "residual" else _attention
            unet |= {f"{ours}.{name}": tensor for name, tensor in rename(part, last, value, shape.head, key)}
        else:
            text |= dict(_text(key, module, last, value, shape.heads))
    return unet, text


def _prefixes(key: str) -> Iterator[str]:
    parts = key.split(".")
    yield from (".".join(parts[:n]) for n in (3, 2))


def _residual(part: str, last: str, value: Tensor, head: int, key: str) -> Iterator[tuple[str, Tensor]]:
    if part not in RESIDUAL:
        raise ValueError(f"{key} belongs to no part of a residual block")
    yield f"{RESIDUAL[part]}.{last}", value


def _attention(part: str, last: str, value: Tensor, head: int, key: str) -> Iterator[tuple[str, Tensor]]:
    """q, k and v stand head by head: [H, 3, h, c]; the text's k and v likewise: [H, 2, h, c]."""
    names = {"qkv": ("to_q", "to_k", "to_v"), "encoder_kv": ("add_k_proj", "add_v_proj")}.get(part)
    value = value.squeeze(-1) if value.dim() == 3 else value
    if names is not None:
        apart = value.reshape(-1, len(names), head, *value.shape[1:])
        for n, name in enumerate(names):
            yield f"{name}.{last}", apart[:, n].reshape(-1, *value.shape[1:]).clone()
    elif part in ("norm", "proj_out"):
        yield f"{'group_norm' if part == 'norm' else 'to_out.0'}.{last}", value
    else:
        raise ValueError(f"{key} belongs to no part of an attention block")


def _text(key: str, module: str, last: str, value: Tensor, heads: int) -> Iterator[tuple[str, Tensor]]:
    if key in ("positional_embedding", "padding_embedding", "token_embedding.weight"):
        yield key, value
    elif module == "final_ln":
        yield f"encoder.norm.{last}", value
    elif module.startswith("transformer.resblocks."):
        number, _, part = module.removeprefix("transformer.resblocks.").partition(".")
        ours = f"encoder.layers.{number}"
        if part == "attn.c_qkv":
            size = value.shape[0] // 3 // heads
            apart = value.reshape(heads, 3, size, *value.shape[1:])
            yield f"{ours}.self_attn.in_proj_{last}", torch.cat([apart[:, n].flatten(0, 1) for n in range(3)])
        elif part in LAYER:
            yield f"{ours}.{LAYER[part]}.{last}", value
        else:
            raise ValueError(f"{key} belongs to no part of a text layer")
    else:
        raise ValueError(f"{key} belongs to no part of GLIDE")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """A published state dict; nothing but tensors is unpickled. ValueError, in one line, for anything else."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"no checkpoint {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a stranger's file in the hands of a reader: anything may be raised
        line = (str(error).strip().splitlines() or [""])[0][:160]
        raise ValueError(f"{path} is no checkpoint of tensors: {type(error).__name__} {line}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors")
    return state


def modules(state: Mapping[str, Tensor], shape: GlideShape) -> tuple[UNet2DConditionModel, GlideTextEncoder]:
    """U-Net and text encoder of an official state dict. ValueError names the first key that is missing, left or of
    another shape."""
    if "input_blocks.0.0.weight" in state:  # an inpainting variant has more input channels and is otherwise equal
        shape = replace(shape, inputs=state["input_blocks.0.0.weight"].shape[1])
    unet_state, text_state = converted(state, shape)
    unet, text = shape.unet(), shape.text_encoder()
    for module, weights in ((unet, unet_state), (text, text_state)):
        _load(module, weights)
    return unet.eval(), text.eval()


def _load(module: nn.Module, weights: dict[str, Tensor]) -> None:
    wanted = module.state_dict()
    for name in [*wanted, *weights]:
        have = tuple(weights[name].shape) if name in weights else "missing"
        need = tuple(wanted[name].shape) if name in wanted else "nothing"
        if have != need:
            raise ValueError(f"{type(module).__name__}: {name} is {have} in the checkpoint, needed {need}")
    module.load_state_dict(weights)


def convert(
    base: str | Path,
    upsampler: str | Path | None,
    vocabulary: str | Path,
    directory: str | Path,
    shapes: tuple[GlideShape, GlideShape] = (BASE, UPSAMPLER),
) -> GlidePipeline:
    """Write a pipeline directory from the published files. ValueError, in one line, for files that do not fit."""
    tokenizer = read_vocabulary(vocabulary, shapes[0].positions)
    if len(tokenizer) != shapes[0].vocabulary:
        raise ValueError(f"the vocabulary has {len(tokenizer)} entries, the model {shapes[0].vocabulary}")
    parts: dict[str, Any] = {"tokenizer": tokenizer, "scheduler": shapes[0].scheduler()}
    parts["unet"], parts["text_encoder"] = modules(read_checkpoint(base), shapes[0])
    if upsampler is not None:
        parts["upsampler"], parts["upsampler_text_encoder"] = modules(read_checkpoint(upsampler), shapes[1])
        parts["upsampler_scheduler"] = shapes[1].scheduler()
    whole = GlidePipeline(**parts)
    whole.save_pretrained(directory)
    return whole
