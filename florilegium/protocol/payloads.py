"""THE WIRE CONTRACT: the phases a server may ask for and the payloads that may cross.

A payload is a frozen dataclass whose fields say what is allowed: dtype, named axes and range, and what they hold.
`unpack` trusts nothing: kind, fields, dtype, shape, finiteness and range are checked before a method sees a value, and
a `WireError` names the field. Each class says in words what it `carries`, for `florilegium privacy`. The axes, and the
kinds of what a field holds, are those of florilegium/protocol/fields.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import ClassVar, TypeVar, dataclass_transform

from torch import Tensor

from florilegium.config.data import MODALITIES
from florilegium.protocol.fields import (
    COUNT,
    DERIVED,
    FIGURE,
    LABEL,
    MODEL,
    PUBLIC,
    RAW,
    DeclarationError,
    array,
    blobs,
    class_labels,
    holds,
    plain,
    sample_ids,
    vectors,
)

T = TypeVar("T")
_payloads: dict[str, type] = {}
#: name on the wire -> class, of every payload
PAYLOADS: Mapping[str, type] = MappingProxyType(_payloads)


# `blobs` is no specifier, so a type checker sees that such a field has a default: nothing
@dataclass_transform(frozen_default=True, field_specifiers=(array, class_labels, plain, sample_ids, vectors))
def payload(cls: type[T]) -> type[T]:
    """Make a class a payload: a frozen dataclass that may cross the wire under its name.

    DeclarationError when a field does not say what it holds, when the class does not say what it `carries`, or when
    another payload has its name.
    """
    made = dataclass(frozen=True)(cls)
    for f in fields(made):  # type: ignore[arg-type]
        holds(made, f)
    if not getattr(made, "carries", ""):
        raise DeclarationError(f"{made.__name__} does not say what it carries")
    if made.__name__ in _payloads:
        raise DeclarationError(f"there is a payload {made.__name__} already")
    _payloads[made.__name__] = made
    return made


@payload
class Nothing:
    """No content: the phase itself is the request or the acknowledgement."""

    carries: ClassVar[str] = "nothing"


@payload
class Profile:
    """Who a client is: no personal data, only what scheduling and checking need; `guide` is the version it keeps."""

    carries: ClassVar[str] = "what a client is: counts and classes of its data, no row of them"
    client: int = plain(PUBLIC)
    modality: str = plain(PUBLIC, choices=MODALITIES)
    architecture: str = plain(PUBLIC)
    examples: int = plain(COUNT)
    classes: list[int] = plain(COUNT)
    guide: str = plain(PUBLIC, default="")


@payload
class SiteProfile(Profile):
    """The profile of a node whose training rows are its own, not a part of the settings' data set."""

    carries: ClassVar[str] = "what a site with data of its own is: counts and classes of them, no row"


@payload
class Weights:
    """A state dict, the number of examples it was trained on, and what the training had to say about itself."""

    carries: ClassVar[str] = "model weights, with what a method averages beside them (control variates, class means)"
    summed: ClassVar[bool] = True  # averaging needs no single one, so secure aggregation could hide it
    tensors: dict[str, Tensor] = plain(MODEL)
    examples: int = plain(COUNT, default=0)
    metrics: dict[str, float] = plain(FIGURE, factory=dict)


@payload
class Prototypes:
    """Of each class that it names, the mean representation and the number of rows behind it; from a client also what
    its training had to say. Means of private rows are no answers about samples, so no mechanism covers them."""

    carries: ClassVar[str] = "mean representations of classes, with the numbers of rows behind them"
    classes: Tensor = array("int64", "G", holds=COUNT, low=0, below="C", unique=True)
    counts: Tensor = array("int64", "G", holds=COUNT, low=1)
    means: Tensor = array("float32", "G", "D", holds=DERIVED)
    metrics: dict[str, float] = plain(FIGURE, factory=dict)

    @property
    def examples(self) -> int:
        return int(self.counts.sum())


@payload
class Samples:
    """Public or synthetic samples: encoded images for image clients, UTF-8 texts for text clients."""

    carries: ClassVar[str] = "public or synthetic samples"
    ids: Tensor = sample_ids()
    images: tuple[bytes, ...] = blobs()
    texts: tuple[str, ...] = blobs()


@payload
class LatentPairs:
    """Synthetic samples, one a class, each with the latent vector that the server's generator made it from."""

    carries: ClassVar[str] = "synthetic samples, and latent vectors made of all clients' class means"
    ids: Tensor = sample_ids()
    latents: Tensor = array("float32", "N", "V", holds=DERIVED)
    images: tuple[bytes, ...] = blobs()
    texts: tuple[str, ...] = blobs()

    @property
    def samples(self) -> Samples:
        return Samples(self.ids, self.images, self.texts)


@payload
class Answers:
    """What a client sees in samples: labels, the confidence of eq. 3, representations (and of an augmented view)."""

    carries: ClassVar[str] = "what a private model says of public or synthetic samples"
    ids: Tensor = sample_ids()
    labels: Tensor = class_labels()
    confidence: Tensor = array("float32", "N", holds=LABEL, low=0.0, high=100.0)
    representations: Tensor = vectors("N", "D")
    augmented: Tensor = vectors("N", "A")


@payload
class Logits:
    """Class scores before the softmax."""

    carries: ClassVar[str] = "what a model says of public or synthetic samples"
    ids: Tensor = sample_ids()
    logits: Tensor = vectors("N", "C", low=-1e4, high=1e4)


@payload
class BoundaryLogits:
    """Class scores, and after how many steps of an attack the model decides otherwise."""

    carries: ClassVar[str] = "what a model says of public samples, and how near they are to its decision boundary"
    ids: Tensor = sample_ids()
    logits: Tensor = vectors("N", "C", low=-1e4, high=1e4)
    steps: Tensor = array("float32", "N", holds=LABEL, low=0.0, high=1e6)


@payload
class Targets:
    """What a client shall learn on samples it keeps: consensus labels, fused representations (R = 0: labels only)."""

    carries: ClassVar[str] = "what the server made of all answers"
    ids: Tensor = sample_ids()
    labels: Tensor = class_labels()
    representations: Tensor = vectors("N", "R")


@payload
class Joined:
    """A round's samples, and the targets of the L samples of an earlier round, `taught` (0: of none, and L = 0)."""

    carries: ClassVar[str] = "public or synthetic samples, and what the server made of all answers to earlier ones"
    taught: int = plain(PUBLIC)
    ids: Tensor = sample_ids()
    known: Tensor = sample_ids("L")
    labels: Tensor = class_labels("L")
    representations: Tensor = vectors("L", "R")
    images: tuple[bytes, ...] = blobs()
    texts: tuple[str, ...] = blobs()

    @property
    def samples(self) -> Samples:
        return Samples(self.ids, self.images, self.texts)

    @property
    def targets(self) -> Targets:
        return Targets(self.known, self.labels, self.representations)


@payload
class SoftTargets:
    """What a client shall learn on samples it keeps: labels, class scores, and how much these count on each sample."""

    carries: ClassVar[str] = "what the server made of all answers"
    ids: Tensor = sample_ids()
    labels: Tensor = class_labels()
    logits: Tensor = vectors("N", "C", low=-1e4, high=1e4)
    weight: Tensor = array("float32", "N", holds=LABEL, low=0.0, high=1.0)


@payload
class Guide:
    """What the frozen diffusion model tells clients, sent once. `tensors`: shared projections, and the weights of a
    student (`student.<name>`) that stands for the diffusion model. Then anchors; where the server extracts, features of
    the client's own rows; and features of the server's images with their labels. What no setting uses is empty."""

    carries: ClassVar[str] = (
        "what a frozen public model says of public or generated images, a student of it, or what it says of rows the "
        "client gave away"
    )
    version: str = plain(PUBLIC)
    tensors: dict[str, Tensor] = plain(DERIVED)
    visual: Tensor = array("float32", "C", "P", "D", holds=DERIVED)
    text: Tensor = array("float32", "C", "W", holds=PUBLIC)
    ids: Tensor = sample_ids("M")
    features: Tensor = array("float16", "M", "Q", "D", holds=DERIVED)
    replay: Tensor = array("float16", "J", "D", holds=DERIVED)
    replay_labels: Tensor = class_labels("J", holds=DERIVED)
    unprompted: Tensor = array("float16", "H", "D", holds=DERIVED)
    prompted: Tensor = array("float16", "H", "D", holds=DERIVED)
    shown_labels: Tensor = class_labels("H", holds=DERIVED)


@payload
class PublicSet:
    """Which pairs of the public set are meant: `order` is its hash (data/public.py), which both sides must have."""

    carries: ClassVar[str] = "which public pairs are meant"
    order: str = plain(PUBLIC)
    ids: Tensor = sample_ids()


@payload
class Features:
    """What an encoder sees in public pairs: unit vectors of the images and of the texts (0 wide: not that side)."""

    carries: ClassVar[str] = "what a model says of public or synthetic pairs"
    ids: Tensor = sample_ids()
    image: Tensor = vectors("N", "I", low=-1.001, high=1.001, unit=True)
    text: Tensor = vectors("N", "T", low=-1.001, high=1.001, unit=True)


@payload
class Modules:
    """Weights of encoders, whole (`base` is empty) or what changed since `base`; then they are `version`
    (florilegium/protocol/deltas.py)."""

    carries: ClassVar[str] = "weights of the server's own encoders"
    version: str = plain(PUBLIC)
    base: str = plain(PUBLIC)
    tensors: dict[str, Tensor] = plain(MODEL)


@payload
class Adapters:
    """Small modules inside a model, by place, the number of examples they were trained on, and what the training had to
    say about itself."""

    carries: ClassVar[str] = "weights of modules inside a model: low-rank factors, adapters, biases, or all of them"
    summed: ClassVar[bool] = True
    tensors: dict[str, Tensor] = plain(MODEL)
    examples: int = plain(COUNT, default=0)
    metrics: dict[str, float] = plain(FIGURE, factory=dict)


@payload
class Examples:
    """A client's own labelled images. They leave it only where `guidance.allow_upload` says so."""

    carries: ClassVar[str] = "raw private data"
    ids: Tensor = sample_ids("M")
    labels: Tensor = class_labels("M", holds=RAW)
    images: tuple[bytes, ...] = blobs("M", holds=RAW)


@payload
class Report:
    """Named figures a client measured on `examples` examples."""

    carries: ClassVar[str] = "figures measured by a client"
    metrics: dict[str, float] = plain(FIGURE)
    examples: int = plain(COUNT)
