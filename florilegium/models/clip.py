"""The two towers of a CLIP (an open_clip directory) as bodies: encoders that were trained on pairs before.

`given` has `path`: null is the embedded mini CLIP. Texts must be read by its own tokenizer (`clients.tokenizer`).
Axes: B batch, S image side, T tokens, H width.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from florilegium import assets
from florilegium.models.bodies import Body
from florilegium.models.tokens import Vocabulary, open_clip_name


@lru_cache(maxsize=2)
def opened(path: str | None) -> Any:  # a CLIP of open_clip: whichever of its classes
    """The whole CLIP, read once in a process; towers are copies of its parts. ValueError when there is none."""
    import open_clip

    place = path or str(assets.path("models", "mini-clip"))
    if Path(place).is_absolute() and not (Path(place) / "open_clip_config.json").is_file():
        raise ValueError(f"{place} is no directory of an open_clip model")
    return open_clip.create_model(open_clip_name(place), precision="fp32").eval()


class ClipImage(Body):
    """float [B, 3, S, S] in [-1, 1] -> [B, H]; resizes to the model's own input size."""

    pretrained = True
    mean: Tensor
    std: Tensor

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        import open_clip

        clip = opened(given.get("path"))
        how = open_clip.get_model_preprocess_cfg(clip)
        self.net: Any = copy.deepcopy(clip.visual)
        self.hidden = int(self.net.output_dim)
        size = how["size"]
        self.size = int(size if isinstance(size, int) else size[0])
        self.register_buffer("mean", torch.tensor(how["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(how["std"]).view(1, 3, 1, 1), persistent=False)

    def forward(self, x_B3SS: Tensor) -> Tensor:
        x = ((x_B3SS + 1) / 2 - self.mean) / self.std
        if x.shape[-1] != self.size:
            x = interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        return self.net(x)


class ClipText(Body):
    """int64 token ids [B, T] of a `Vocabulary` -> [B, H], the output at the text's end."""

    pretrained = True

    def __init__(self, given: dict[str, Any], vocabulary: Vocabulary) -> None:
        super().__init__()
        clip = copy.deepcopy(opened(given.get("path")))
        if not hasattr(clip, "token_embedding"):
            raise ValueError(
                f"{type(clip).__name__} of open_clip has a text tower of another kind; use transformers' form"
            )
        self.embedding, self.positions, self.net = clip.token_embedding, clip.positional_embedding, clip.transformer
        self.norm, self.project = clip.ln_final, clip.text_projection
        self.register_buffer("mask", clip.attn_mask, persistent=False)
        self.end = self.embedding.num_embeddings - 1  # the highest id
        self.length, self.hidden = len(self.positions), int(self.project.shape[-1])
        if vocabulary.size != self.embedding.num_embeddings + 1:  # ids there are one higher, 0 is padding
            raise ValueError(
                f"this CLIP knows {self.embedding.num_embeddings} tokens, clients.tokenizer {vocabulary.size - 1}"
            )

    def forward(self, ids_BT: Tensor) -> Tensor:
        ids = pad(ids_BT, (0, max(0, self.length - ids_BT.shape[1])))[:, : self.length] - 1
        ids = ids.where(ids >= 0, self.end)  # padding, as CLIP pads
        ids = torch.cat([ids[:, :-1], torch.full_like(ids[:, -1:], self.end)], 1)  # a text that was cut has its end
        x_BTH = self.norm(self.net(self.embedding(ids) + self.positions, attn_mask=self.mask))
        return x_BTH[torch.arange(len(ids)), ids.argmax(-1)] @ self.project
