"""Image bodies: ResNet (pooled output), ViT (first token), BEiT (its pooler: the mean of the patch tokens, normed)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from florilegium.models.bodies import Body
from florilegium.models.pretrained import placed, prepare_training, preprocessing, taken_training

KINDS = {"resnet": "ResNet", "vit": "ViT", "beit": "Beit"}
NORMS = ("batch", "group")


class ImageBody(Body):
    """float [B, 3, S, S] in [-1, 1] -> [B, H]; resizes to the model's own input size.

    `given` holds input_size, pretrained, mean and std, and otherwise keys of the transformers config class. A ResNet's
    stem halves twice, so at 32 x 32 it should see 64 x 64 (input_size). Its `norm` is batch or group: statistics of a
    batch are a client's own, and their average is nobody's where labels are skewed (Hsieh et al. 2020, section 5).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: str, given: dict[str, Any]) -> None:
        import transformers  # here: settings are checked without it

        super().__init__()
        kind, given = KINDS[architecture], dict(given)
        self.architecture = architecture
        own = preprocessing(given["pretrained"]) if given.get("pretrained") else {}  # as it was trained
        self.size = int(given.pop("input_size", None) or own.get("size") or 224)
        mean, std = (given.pop(key, None) or own.get(key) or [0.5] * 3 for key in ("mean", "std"))
        pretrained, norm = given.pop("pretrained", None), given.pop("norm", "batch")
        if norm not in NORMS:
            raise ValueError(f"norm {norm!r} is none of {', '.join(NORMS)}")
        config_class, model_class = getattr(transformers, f"{kind}Config"), getattr(transformers, f"{kind}Model")
        extra = {"add_pooling_layer": False} if architecture == "vit" else {}
        if pretrained:
            how = taken_training(given)
            self.net = pretrained_net(model_class, pretrained, how, {**extra, **given})
        else:
            if architecture != "resnet":
                given["image_size"] = self.size
            self.net = model_class(known(config_class, given), **extra)
        if norm == "group":
            grouped(self.net)
        config = self.net.config
        self.hidden = int(config.hidden_sizes[-1] if architecture == "resnet" else config.hidden_size)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def given(self, x_B3SS: Tensor) -> Tensor:
        """Images as the net wants them: normalised, at its own size."""
        x = ((x_B3SS + 1) / 2 - self.mean) / self.std
        if x.shape[-1] != self.size:
            x = interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        return x

    @property
    def channels(self) -> list[int]:
        """The channels of each of `maps`."""
        return list(self.net.config.hidden_sizes) if self.architecture == "resnet" else [self.hidden]

    def maps(self, x_B3SS: Tensor) -> list[Tensor]:
        """Maps [B, H, h, h], the finest first: of each stage of a ResNet, or the last patch tokens of a transformer."""
        x = self.given(x_B3SS)
        if self.architecture == "resnet":
            return list(self.net(x, output_hidden_states=True).hidden_states[1:])
        tokens_BPH = self.net(x).last_hidden_state[:, 1:]
        side = round(tokens_BPH.shape[1] ** 0.5)
        return [tokens_BPH.transpose(1, 2).unflatten(-1, (side, side))]

    def forward(self, x_B3SS: Tensor) -> Tensor:
        out = self.net(self.given(x_B3SS))
        return out.last_hidden_state[:, 0] if self.architecture == "vit" else out.pooler_output.flatten(1)


def grouped(model: nn.Module, most: int = 32) -> None:
    """Put a group norm in the place of every batch norm; of at most `most` groups, which divide the channels."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            groups = next(g for g in range(min(most, channels), 0, -1) if channels % g == 0)
            setattr(model, name, nn.GroupNorm(groups, channels, eps=child.eps))
        else:
            grouped(child, most)


def known(config_class: type, given: dict[str, Any]) -> Any:
    """A config, after a check that every key is one of the class's (transformers keeps unknown ones silently)."""
    default = config_class().to_dict()
    if unknown := [key for key in given if key not in default]:
        raise ValueError(f"{config_class.__name__} has no key {unknown[0]!r}")
    return config_class(**given)


def pretrained_net(model_class: Any, name: str, how: tuple[str, int], given: dict[str, Any]) -> Any:
    """The net of an asset, a directory or a hub id, in float32 whatever its file holds; `how` is (training, rank).

    AssetError, OSError; ValueError for a training that cannot be.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    net = model_class.from_pretrained(placed(name), dtype=torch.float32, **given)
    prepare_training(net, *how)
    return net
