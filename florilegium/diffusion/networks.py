"""How each kind of decoder is asked: what it is called with, where its features are, where a representation can join.

A decoder is the trained part of a text-to-image model: a U-Net, or a transformer. Its texts are `Texts`.
Axes: N or B samples, U texts, T tokens, W token width, P width of a text as a whole, Q positions, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Texts:
    """What a decoder gets of U texts."""

    tokens: Tensor  # [U, T, W]
    pooled: Tensor | None = None  # [U, P]: a text as a whole
    sizes: Tensor | None = None  # [U, 6]: true height, width, top, left, drawn height, width (SDXL)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Any) -> Texts:
        return self._each(lambda x: x[rows])

    def to(self, *where: Any) -> Texts:
        """On a device, or of a dtype; the sizes stay float32, for they are numbers up to thousands."""
        return self._each(
            lambda x: x.to(*where), sizes=None if self.sizes is None else self.sizes.to(self.tokens.device)
        )

    def expand(self, count: int) -> Texts:
        """One text for `count` samples."""
        return self._each(lambda x: x.expand(count, *x.shape[1:]))

    def with_tokens(self, tokens: Tensor) -> Texts:
        return replace(self, tokens=tokens)

    def _each(self, change: Any, **other: Any) -> Texts:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: None if x is None else change(x) for name, x in given.items()}
        return Texts(**changed | other)

    @staticmethod
    def joined(parts: Sequence[Texts]) -> Texts:
        """All texts of the parts, in order."""
        found = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Texts)}
        joined: dict[str, Any] = {name: None if xs[0] is None else torch.cat(xs) for name, xs in found.items()}
        return Texts(**joined)


class Network:
    """A U-Net of Stable Diffusion 1.x or 2.x, or of GLIDE, around the module `decoder`."""

    part = "unet"  # its name in the pipeline
    time_module = "time_embedding"  # its output is added to every position
    layer = "up"  # what a layer is called

    def __init__(self, decoder: nn.Module) -> None:
        self.decoder: Any = decoder

    def __call__(self, noisy_B: Tensor, time_B: Any, texts_B: Texts) -> Tensor:
        """What the decoder says of noisy latents at these times under these texts."""
        return self.decoder(noisy_B, time_B, texts_B.tokens, **self.conditions(texts_B)).sample

    def conditions(self, texts: Texts) -> dict[str, Any]:
        """What it gets beside the tokens."""
        return {}

    @property
    def token_width(self) -> int:
        return int(self.decoder.config.cross_attention_dim)

    @property
    def time_width(self) -> int:
        return int(self.decoder.time_embedding.linear_2.out_features)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The layers that features are taken of, the first one first."""
        return list(self.decoder.up_blocks)

    @staticmethod
    def depth(config: Mapping[str, Any]) -> int:
        """How many of these a decoder with this config.json has."""
        return len(config["up_block_types"])

    @staticmethod
    def map_of(output: Any) -> Tensor:
        """[N, Q, C] of what a layer gave."""
        return output.permute(0, 2, 3, 1).flatten(1, 2)

    def adapter_places(self) -> list[str]:
        """Names of the maps behind which adapters can stand, the first block's first: the last linear map of each
        transformer layer of the blocks; where they have attention alone (GLIDE), the last map of that."""
        inside = {id(module) for block in self.blocks for module in block.modules()}
        names = [n for n, m in self.decoder.named_modules() if isinstance(m, nn.Linear) and id(m) in inside]
        return [n for n in names if n.endswith("ff.net.2")] or [n for n in names if n.endswith("to_out.0")]

    def adapted(self) -> list[str]:
        """Names of the linear layers that LoRA adapts: attention, and where the decoder has them the ways by which a
        text enters it (GLIDE's added keys and values)."""
        there = {n.rpartition(".")[2] for n, m in self.decoder.named_modules() if isinstance(m, nn.Linear)}
        return [*ATTENTION, *(name for name in ("add_k_proj", "add_v_proj") if name in there)]

    @property
    def text_parts(self) -> list[str]:
        """Names of the decoder's modules that belong to its text encoder, which is frozen: GLIDE's `transformer_proj`,
        the projection of a text as a whole."""
        return ["class_embedding"] if isinstance(getattr(self.decoder, "class_embedding", None), nn.Linear) else []


class XLNetwork(Network):
    """The U-Net of Stable Diffusion XL: the text as a whole and the sizes join the time embedding."""

    def conditions(self, texts: Texts) -> dict[str, Any]:
        return {"added_cond_kwargs": {"text_embeds": texts.pooled, "time_ids": texts.sizes}}


class JointTransformer(Network):
    """The transformer of Stable Diffusion 3: image and text positions attend to each other in every block."""

    part = "transformer"
    time_module = "time_text_embed"
    layer = "block"

    def __call__(self, noisy_B: Tensor, time_B: Any, texts_B: Texts) -> Tensor:
        time_B = torch.as_tensor(time_B, device=noisy_B.device).expand(len(noisy_B))
        return self.decoder(noisy_B, texts_B.tokens, texts_B.pooled, time_B).sample

    @property
    def token_width(self) -> int:
        return int(self.decoder.config.joint_attention_dim)

    @property
    def time_width(self) -> int:
        return int(self.decoder.inner_dim)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.decoder.transformer_blocks)

    @staticmethod
    def depth(config: Mapping[str, Any]) -> int:
        return int(config["num_layers"])

    @staticmethod
    def map_of(output: Any) -> Tensor:
        return output[1]  # (text positions, image positions)

    def adapted(self) -> list[str]:
        """As diffusers adapts this transformer: the attention of both streams."""
        return [*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
