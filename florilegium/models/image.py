"""Image bodies: ResNet (pooled output), ViT (first token), BEiT (its pooler: the mean of the patch tokens, normed)."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import interpolate

KINDS = {"resnet": "ResNet", "vit": "ViT", "beit": "Beit"}


class ImageBody(nn.Module):
    """float [B, 3, S, S] in [-1, 1] -> [B, H]; resizes to the model's own input size.

    `given` holds input_size, pretrained, mean and std, and otherwise keys of the transformers config class. A ResNet's
    stem halves twice, so at 32 x 32 it should see 64 x 64 (input_size).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: str, given: dict[str, Any]) -> None:
        super().__init__()
        kind, given = KINDS[architecture], dict(given)
        self.architecture, self.size = architecture, int(given.pop("input_size", 224))
        mean, std = given.pop("mean", [0.5] * 3), given.pop("std", [0.5] * 3)
        pretrained = given.pop("pretrained", None)
        config_class, model_class = getattr(transformers, f"{kind}Config"), getattr(transformers, f"{kind}Model")
        extra = {"add_pooling_layer": False} if architecture == "vit" else {}
        if pretrained:
            self.net = model_class.from_pretrained(pretrained, **extra, **given)
        else:
            if architecture != "resnet":
                given["image_size"] = self.size
            self.net = model_class(known(config_class, given), **extra)
        config = self.net.config
        self.hidden = int(config.hidden_sizes[-1] if architecture == "resnet" else config.hidden_size)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x_B3SS: Tensor) -> Tensor:
        x = ((x_B3SS + 1) / 2 - self.mean) / self.std
        if x.shape[-1] != self.size:
            x = interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        out = self.net(x)
        return out.last_hidden_state[:, 0] if self.architecture == "vit" else out.pooler_output.flatten(1)


def known(config_class: type, given: dict[str, Any]) -> Any:
    """A config, after a check that every key is one of the class's (transformers keeps unknown ones silently)."""
    default = config_class().to_dict()
    if unknown := [key for key in given if key not in default]:
        raise ValueError(f"{config_class.__name__} has no key {unknown[0]!r}")
    return config_class(**given)
