"""THE WIRE CONTRACT: the phases a server may ask for and the payloads that may cross.

A payload is a frozen dataclass whose fields say what is allowed: dtype, named axes and range. `unpack` trusts nothing:
kind, fields, dtype, shape, finiteness and range are checked before a method sees a value, and a `WireError` names the
field. Each class says what it `carries`, for `florilegium privacy`. The axes are those of
florilegium/protocol/fields.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from florilegium.config.data import MODALITIES
from florilegium.protocol.fields import RAW, array, blobs


@dataclass(frozen=True)
class Nothing:
    """No content: the phase itself is the request or the acknowledgement."""

    carries: ClassVar[str] = "nothing"


@dataclass(frozen=True)
class Profile:
    """Who a client is: no personal data, only what scheduling and checking need; `guide` is the version it keeps."""

    carries: ClassVar[str] = "what a client is: counts and classes of its data, no row of them"
    client: int
    modality: str = field(metadata={"choices": MODALITIES})
    architecture: str
    examples: int
    classes: list[int]
    guide: str = ""


@dataclass(frozen=True)
class Weights:
    """A state dict, the number of examples it was trained on, and what the training had to say about itself."""

    carries: ClassVar[str] = "model weights, with what a method averages beside them (control variates, class means)"
    summed: ClassVar[bool] = True  # averaging needs no single one, so secure aggregation could hide it
    tensors: dict[str, Tensor]
    examples: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Samples:
    """Public or synthetic samples: encoded images for image clients, UTF-8 texts for text clients."""

    carries: ClassVar[str] = "public or synthetic samples"
    ids: Tensor = array("int64", "N", low=0)
    images: tuple[bytes, ...] = blobs()
    texts: tuple[str, ...] = blobs()


@dataclass(frozen=True)
class Answers:
    """What a client sees in samples: labels, the confidence of eq. 3, representations (and of an augmented view)."""

    carries: ClassVar[str] = "what a private model says of public or synthetic samples"
    ids: Tensor = array("int64", "N", low=0)
    labels: Tensor = array("int64", "N", low=0, below="C")
    confidence: Tensor = array("float32", "N", low=0.0, high=100.0)
    representations: Tensor = array("float32", "N", "D")
    augmented: Tensor = array("float32", "N", "A")


@dataclass(frozen=True)
class Logits:
    """Class scores before the softmax."""

    carries: ClassVar[str] = "what a model says of public or synthetic samples"
    ids: Tensor = array("int64", "N", low=0)
    logits: Tensor = array("float32", "N", "C", low=-1e4, high=1e4)


@dataclass(frozen=True)
class Targets:
    """What a client shall learn on samples it keeps: consensus labels, fused representations (R = 0: labels only)."""

    carries: ClassVar[str] = "what the server made of all answers"
    ids: Tensor = array("int64", "N", low=0)
    labels: Tensor = array("int64", "N", low=0, below="C")
    representations: Tensor = array("float32", "N", "R")


@dataclass(frozen=True)
class Joined:
    """A round's samples, and the targets of the L samples of an earlier round, `taught` (0: of none, and L = 0)."""

    carries: ClassVar[str] = "public or synthetic samples, and what the server made of all answers to earlier ones"
    taught: int
    ids: Tensor = array("int64", "N", low=0)
    known: Tensor = array("int64", "L", low=0)
    labels: Tensor = array("int64", "L", low=0, below="C")
    representations: Tensor = array("float32", "L", "R")
    images: tuple[bytes, ...] = blobs()
    texts: tuple[str, ...] = blobs()

    @property
    def samples(self) -> Samples:
        return Samples(self.ids, self.images, self.texts)

    @property
    def targets(self) -> Targets:
        return Targets(self.known, self.labels, self.representations)


@dataclass(frozen=True)
class SoftTargets:
    """What a client shall learn on samples it keeps: labels, class scores, and how much these count on each sample."""

    carries: ClassVar[str] = "what the server made of all answers"
    ids: Tensor = array("int64", "N", low=0)
    labels: Tensor = array("int64", "N", low=0, below="C")
    logits: Tensor = array("float32", "N", "C", low=-1e4, high=1e4)
    weight: Tensor = array("float32", "N", low=0.0, high=1.0)


@dataclass(frozen=True)
class Guide:
    """What the frozen diffusion model tells clients, sent once: shared projections, anchors and, where the server
    extracts, the features of the client's own rows."""

    carries: ClassVar[str] = "what a frozen public model says of public images, or of rows the client gave away"
    version: str
    tensors: dict[str, Tensor]
    visual: Tensor = array("float32", "C", "P", "D")
    text: Tensor = array("float32", "C", "W")
    ids: Tensor = array("int64", "M", low=0)
    features: Tensor = array("float16", "M", "Q", "D")


@dataclass(frozen=True)
class PublicSet:
    """Which pairs of the public set are meant: `order` is its hash (data/public.py), which both sides must have."""

    carries: ClassVar[str] = "which public pairs are meant"
    order: str
    ids: Tensor = array("int64", "N", low=0)


@dataclass(frozen=True)
class Features:
    """What an encoder sees in public pairs: unit vectors of the images and of the texts (0 wide: not that side)."""

    carries: ClassVar[str] = "what a model says of public or synthetic pairs"
    ids: Tensor = array("int64", "N", low=0)
    image: Tensor = array("float32", "N", "I", low=-1.001, high=1.001)
    text: Tensor = array("float32", "N", "T", low=-1.001, high=1.001)


@dataclass(frozen=True)
class Modules:
    """Weights of encoders, whole (`base` is empty) or what changed since `base`; then they are `version`
    (florilegium/protocol/deltas.py)."""

    carries: ClassVar[str] = "weights of the server's own encoders"
    version: str
    base: str
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Examples:
    """A client's own labelled images. They leave it only where `guidance.allow_upload` says so."""

    carries: ClassVar[str] = RAW
    ids: Tensor = array("int64", "M", low=0)
    labels: Tensor = array("int64", "M", low=0, below="C")
    images: tuple[bytes, ...] = blobs("M")


@dataclass(frozen=True)
class Report:
    """Named figures a client measured on `examples` examples."""

    carries: ClassVar[str] = "figures measured by a client"
    metrics: dict[str, float]
    examples: int


PAYLOADS = {
    c.__name__: c
    for c in (
        Nothing,
        Profile,
        Weights,
        Samples,
        Answers,
        Logits,
        Targets,
        Joined,
        SoftTargets,
        Guide,
        PublicSet,
        Features,
        Modules,
        Examples,
        Report,
    )
}
