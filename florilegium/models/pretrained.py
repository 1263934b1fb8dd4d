"""Bodies around any pre-trained encoder of transformers: image or text backbones, timm nets, towers of pair models.

A checkpoint brings what it was trained with: input size, mean and deviation, interpolation, tokenizer, longest text.
Axes: B batch, S image side, T tokens, H width.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from florilegium import hub
from florilegium.assets import located
from florilegium.models.bodies import Body
from florilegium.models.frozen import omit_frozen

TRAININGS = ("full", "frozen", "lora")
FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
TOWER_PARTS = {  # what of a pair model the other tower needs alone
    "image": ("text_model", "text_projection", "text_embed_dim"),
    "text": ("vision_model", "visual_projection", "vision_embed_dim"),
}
POOLING = "1_Pooling/config.json"  # how sentence-transformers say what they make of the tokens
POOLINGS = {"cls_token": "first", "mean_tokens": "mean", "lasttoken": "last"}
# positions of these begin after the padding id, so a text is shorter than the table
OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "xmod", "data2vec-text"})


def placed(name: str, modality: str | None = None) -> str:
    """Where a checkpoint lies, or its hub id, which a library may open now. AssetError; of an image ValueError."""
    place = image_place(name) if modality == "image" else located(name, bare=True)
    hub.open_or_offline(place)
    return place


@lru_cache(maxsize=16)
def configuration(name: str) -> Any:
    """The transformers configuration of a directory or hub id. OSError, ValueError, AssetError."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(placed(name))


def image_place(name: str) -> str:
    """Where an image encoder lies; a plain name that timm lists, e.g. resnet10t, is the hub id of its usual weights.

    AssetError; ValueError for a timm net that has no weights, or none of the tag behind its dot.
    """
    place = located(name, bare=True)
    if place != name or "/" in name or find_spec("timm") is None:
        return place
    import timm

    if not timm.is_model(name.partition(".")[0]):
        return place
    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ValueError(f"pretrained {name}: {error}") from error
    if known is None or not known.hf_hub_id:
        raise ValueError(f"pretrained {name}: timm has no weights of it; `timm.list_pretrained()` names those it has")
    return str(known.hf_hub_id)


def preprocessing(name: str) -> dict[str, Any]:
    """{size, mean, std, filter} as the checkpoint's own image processor says; what it does not say is missing."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(placed(name, "image"))
    except (OSError, ValueError, KeyError, ImportError):
        return {}
    given: dict[str, Any] = {}
    if (timm := getattr(processor, "data_config", None)) is not None:
        given = {"size": timm["input_size"][-1], "mean": timm["mean"], "std": timm["std"]}
        return given | {"filter": timm.get("interpolation", "bilinear")}
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    for size in (crop, getattr(processor, "size", None)):
        side = (
            None if size is None else next((size[key] for key in ("height", "shortest_edge") if _has(size, key)), None)
        )
        if side and "size" not in given:
            given["size"] = int(side)
    if getattr(processor, "do_normalize", False):
        given |= {"mean": list(processor.image_mean), "std": list(processor.image_std)}
    else:
        given |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    return given | {"filter": FILTERS.get(int(getattr(processor, "resample", 2) or 2), "bilinear")}


def _has(size: Any, key: str) -> bool:
    try:
        return size[key] is not None
    except (KeyError, TypeError, AttributeError):
        return False


def longest_text(name: str, wanted: int, tokenizer: Any) -> int:
    """How many tokens of a text a checkpoint reads: at most `wanted`, what its tokenizer allows, and its positions."""
    config = configuration(name)
    config = getattr(config, "text_config", None) or config
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if positions and config.model_type in OFFSET_POSITIONS:
        positions -= int(getattr(config, "pad_token_id", None) or 0) + 1
    limits = [wanted, int(min(tokenizer.model_max_length, 1 << 30)), *([int(positions)] if positions else [])]
    return max(1, min(limits))


def encoder(name: str, modality: str, **given: Any) -> Any:
    """The net, or the tower of a pair model, in float32. ValueError, OSError, AssetError."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    net = AutoModel.from_pretrained(placed(name, modality), dtype=torch.float32, **given)
    if hasattr(net, "get_image_features") and hasattr(net, "get_text_features"):
        for part in TOWER_PARTS[modality]:
            if isinstance(getattr(net, part, None), nn.Module):
                setattr(net, part, None)
    elif getattr(net.config, "is_encoder_decoder", False) and hasattr(net, "get_encoder"):
        net = net.get_encoder()
    return net


def taken_training(given: dict[str, Any]) -> tuple[str, int]:
    """(training, rank) of a checkpoint's settings, taken out of them: full | frozen | lora, and LoRA's rank."""
    return str(given.pop("training", "full")), int(given.pop("rank", 8))


def prepare_training(net: Any, how: str, rank: int) -> None:
    """All weights train, none, or LoRA adapters on every linear layer; what does not train is in no state dict.
    ValueError for another word."""
    if how not in TRAININGS:
        raise ValueError(f"training {how!r} is none of {', '.join(TRAININGS)}")
    if how == "full":
        return
    net.requires_grad_(False)
    if how == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ValueError("training lora: the net has no linear layer to adapt; training=full or frozen")
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=linear), net)
    omit_frozen(net)


class AutoImage(Body):
    """float [B, 3, S, S] in [-1, 1] -> [B, H] by any image encoder; resizes to the checkpoint's own input size.

    `given`: pretrained; input_size, mean and std in the place of the checkpoint's own; training (full, frozen, lora)
    and rank; other keys go to the configuration. Pooling is the authors': a pair model's embedding; the first token
    where the net's pooler is a dense layer (ViT, DeiT) or where there is no pooler; else the net's pooled output.
    """

    pretrained = True
    mean: Tensor
    std: Tensor

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        given = dict(given)
        name = str(given.pop("pretrained"))
        own = preprocessing(name)
        self.size = int(given.pop("input_size", None) or own.get("size") or 224)
        self.filter = own.get("filter", "bilinear")
        mean, std = (given.pop(key, None) or own.get(key) or [0.5] * 3 for key in ("mean", "std"))
        how = taken_training(given)
        self.net = encoder(name, "image", **given)
        prepare_training(self.net, *how)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        with torch.no_grad():  # the one way to know the width of every kind of net
            self.hidden = int(self.eval()(torch.zeros(1, 3, self.size, self.size)).shape[-1])
        self.train()

    def forward(self, x_B3SS: Tensor) -> Tensor:
        x = (x_B3SS + 1) / 2
        if x.shape[-1] != self.size:
            x = interpolate(x, size=(self.size, self.size), mode=self.filter, align_corners=False, antialias=True)
        x = (x - self.mean) / self.std
        if hasattr(self.net, "get_image_features"):
            return pooled_output(self.net.get_image_features(pixel_values=x))
        return pooled_image(self.net, self.net(pixel_values=x))


def pooled_output(out: Any) -> Tensor:
    """A pair model's embedding, whichever form its transformers version gives it."""
    return out if isinstance(out, Tensor) else out.pooler_output


def pooled_image(net: Any, out: Any) -> Tensor:
    """[B, H] of an image encoder's output."""
    pooled = getattr(out, "pooler_output", None)
    if pooled is not None and not hasattr(getattr(net, "pooler", None), "dense"):
        return pooled.flatten(1)
    last = out.last_hidden_state
    return last.flatten(2).mean(2) if last.dim() == 4 else last[:, 0]


class AutoText(Body):
    """int64 token ids [B, T] -> [B, H] by any text encoder; padding is what equals the vocabulary's pad id.

    Pooling is the authors': as a sentence encoder's own file says; a pair model's embedding; the last token of a
    decoder; the mean of an encoder of an encoder-decoder; else the first token.
    """

    pretrained = True

    def __init__(self, given: dict[str, Any], vocabulary: Any) -> None:
        super().__init__()
        given = dict(given)
        name, self.pad = str(given.pop("pretrained")), vocabulary.pad
        how = taken_training(given)
        self.net = encoder(name, "text", **given)
        prepare_training(self.net, *how)
        self.pooling = text_pooling(name, self.net)
        with torch.no_grad():
            self.hidden = int(self.eval()(torch.zeros(1, 2, dtype=torch.int64)).shape[-1])
        self.train()

    def forward(self, ids_BT: Tensor) -> Tensor:
        mask = (ids_BT != self.pad).long()
        mask[:, 0] = 1  # a text without a token: attention needs one position
        ids = ids_BT.clamp_min(0)
        if hasattr(self.net, "get_text_features"):
            return pooled_output(self.net.get_text_features(input_ids=ids, attention_mask=mask))
        states = self.net(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.pooling == "mean":
            shown = mask[..., None].to(states)
            return (states * shown).sum(1) / shown.sum(1)
        rows = torch.arange(len(ids), device=ids.device)
        return states[rows, mask.sum(1) - 1] if self.pooling == "last" else states[:, 0]


def text_pooling(name: str, net: Any) -> str:
    """first | mean | last. ValueError for a sentence encoder's pooling that is not built."""
    place = located(name, bare=True)
    file = hub.optional(place, POOLING, "pretrained") if hub.is_id(place) else Path(place, POOLING)
    if file is not None and file.is_file():
        return sentence_pooling(name, json.loads(file.read_text()))
    if hasattr(net, "get_text_features"):
        return "first"
    config = net.config
    if getattr(config, "is_encoder_decoder", False) or config.model_type == "t5":
        return "mean"
    causal = any("CausalLM" in name or "LMHead" in name for name in config.architectures or ())
    return "last" if causal else "first"


def sentence_pooling(name: str, said: dict[str, Any]) -> str:
    """first | mean | last, of a sentence encoder's own file. ValueError for any other, or for several joined."""
    on = [key.removeprefix("pooling_mode_") for key, value in said.items() if key.startswith("pooling_mode_") and value]
    if len(on) != 1 or on[0] not in POOLINGS:
        raise ValueError(
            f"pretrained {name} pools by {' and '.join(on) or 'nothing'} ({POOLING}); there are {', '.join(POOLINGS)}"
        )
    return POOLINGS[on[0]]
