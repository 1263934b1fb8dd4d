"""Settings of the clients: who they are, their models, their training inputs."""

from __future__ import annotations

from typing import Any

from florilegium.config.data import PartitionSettings
from florilegium.config.fields import section, setting

PAIR_LOSSES = ("info_nce", "soft_contrastive")
PRECISIONS = ("float32", "bfloat16")
CLASSIFICATION, SEGMENTATION = TASKS = ("classification", "segmentation")


@section
class PairSettings:
    """The retrieval loss of every dual encoder, the clients' and the server's."""

    loss: str = setting(
        "info_nce", "info_nce, or soft_contrastive (the loss of PCME, as in arXiv 2603.04890)", choices=PAIR_LOSSES
    )
    temperature: float = setting(0.1, "temperature of info_nce", low=1e-3, high=100)
    scale: float = setting(15.0, "first value of a, which soft_contrastive learns", low=1e-3, high=1e3)
    shift: float = setting(15.0, "first value of b, which soft_contrastive learns", low=-1e3, high=1e3)


@section
class Augment:
    """How a client varies its own rows in training."""

    crop: int = setting(4, "images: random shift by at most this many pixels", low=0, high=4096)
    flip: bool = setting(True, "images: half of them are mirrored")
    tags: bool = setting(True, "texts: a random part of a row's tags is added")


@section
class Member:
    """One client."""

    modality: str = setting("", "image, text or pair")
    data: str | None = setting(None, "path of data of its own, on this machine (data.own); null: its part of data.path")
    model: str = setting("", "the name of its model in clients.architectures; for a pair image+text, e.g. resnet+bert")


@section
class ClientsSettings:
    """The clients and their models."""

    mix: list[Member] = setting(factory=list, help="the clients, in the order of their ids: {modality, model}")
    task: str = setting(
        CLASSIFICATION,
        "what image and text clients learn: classification | segmentation (a class for each pixel of an image; the "
        "object is what differs from a plain ground)",
        choices=TASKS,
    )
    architectures: dict[str, Any] = setting(
        factory=dict,
        help="sizes of each model by its name: keywords of its transformers configuration class, and input_size, "
        "mean, std; or `pretrained`, the hub id or directory of any image or text encoder, with `training` (full, "
        "frozen, lora) and `rank`; or `path`, an open_clip model",
    )
    partition: PartitionSettings = setting(factory=PartitionSettings, help="how the rows are split over the clients")
    width: int = setting(128, "D, the length of every client's representations", low=1, high=1_000_000)
    representation: str = setting(
        "layer_norm",
        "how a classifier finishes its representations: layer_norm (without weights: one scale for all clients) | none "
        "(as its projection gives them) | relu (nothing below zero, as a pooled ReLU gives them)",
        choices=("layer_norm", "none", "relu"),
    )
    tokenizer: str | None = setting(
        None, "a tokenizer.json or its directory; null: the tokenizer of the embedded mini CLIP"
    )
    tokens: int = setting(32, "longest text, in tokens; longer texts are cut", low=1, high=100_000)
    augment: Augment = setting(factory=Augment, help="how a client varies its own rows in training")
    server: str = setting("clip+clip", "image+text models of the server's own dual encoder, e.g. resnet+bert")
    device: str = setting(
        "cpu", "device of the clients' models: cpu, cuda, cuda:1, mps or auto (a GPU where there is one)"
    )
    precision: str = setting(
        "float32",
        "what the bodies of models compute in; bfloat16: less memory on a GPU, and faster for long inputs alone "
        "(docs/full-size.md). Weights, moments and what is sent stay float32",
        choices=PRECISIONS,
    )
    threads: int = setting(1, "CPU threads of one client", low=1, high=100_000)
    state_dir: str | None = setting(
        None, "where clients keep their state; null: the run directory (a node's own `state-dir` wins)"
    )
    pair: PairSettings = setting(factory=PairSettings, help="the retrieval loss of dual encoders")
