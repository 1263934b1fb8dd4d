"""Client models. A classifier speaks encode(x) -> z [B, D] and head(z) -> logits [B, C], a dual encoder (pair.py)
encode_image and encode_text.

Bodies are transformers classes: small configurations trained from scratch, or pre-trained ones of full size, by
setting; or the towers of a CLIP (clip.py). z has an affine-free LayerNorm over D, which puts all clients on one scale
(clients.representation has other forms).
Axes: B batch, C classes, D representation width (clients.width), S image side, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from florilegium.assets import located
from florilegium.config.clients import SEGMENTATION, ClientsSettings
from florilegium.config.errors import first_line
from florilegium.models.bodies import Classifier, ModelError
from florilegium.models.clip import ClipImage, ClipText
from florilegium.models.dense import Segmenter
from florilegium.models.image import ImageBody
from florilegium.models.pair import DualEncoder, Encoder
from florilegium.models.pretrained import AutoImage, AutoText
from florilegium.models.text import TextBody
from florilegium.models.tokens import Vocabulary, clip_vocabulary, open_vocabulary

ARCHITECTURES = {"image": ("resnet", "vit", "beit"), "text": ("bert", "distilbert", "roberta")}
TOWERS = ("clip",)  # trained before on pairs, one for each modality (clip.py)


def check_architecture(
    modality: str, architecture: str, where: str = "clients.mix", architectures: Mapping[str, Any] | None = None
) -> None:
    """ModelError, listing the choices, unless the modality has that architecture (a pair: two, image+text).

    A name of the user's own is one too, where `architectures` (clients.architectures) says what is behind it.
    """
    if modality == "pair":
        image, plus, text = architecture.partition("+")
        if not plus:
            raise ModelError(f"{where}: a pair model is named image+text, such as resnet+bert, got {architecture!r}")
        check_architecture("image", image, where, architectures)
        return check_architecture("text", text, where, architectures)
    if modality not in ARCHITECTURES:
        raise ModelError(f"{where}: no modality {modality!r}; there are {', '.join(ARCHITECTURES)}, pair")
    of_another = any(architecture in names for other, names in ARCHITECTURES.items() if other != modality)
    own_name = not of_another and is_given((architectures or {}).get(architecture))
    if architecture not in (*ARCHITECTURES[modality], *TOWERS) and not own_name:
        there = ", ".join((*ARCHITECTURES[modality], *TOWERS))
        raise ModelError(
            f"{where}: no {modality} model {architecture!r}; there are {there}, and any name of which "
            "clients.architectures has `pretrained`"
        )


def is_given(node: Any) -> bool:
    """Whether an entry of clients.architectures names a checkpoint of any kind."""
    return isinstance(node, Mapping) and bool(node.get("pretrained") or node.get("path"))


def sizes(clients: ClientsSettings, architecture: str) -> dict[str, Any]:
    """The settings of one architecture, `clients.architectures.<name>`, as a plain dict."""
    node = clients.architectures.get(architecture)
    if node is None:
        raise ModelError(f"clients.architectures.{architecture} is missing")
    return deepcopy(dict(node))


def vocabulary(clients: ClientsSettings, architecture: str) -> Any:
    """How a text architecture of `conf.clients` reads (tokens.py)."""
    given = sizes(clients, architecture)
    if (place := tower_of(given)) and clients.tokenizer is None:
        return clip_vocabulary(place, clients.tokens)
    return open_vocabulary(clients.tokenizer, clients.tokens, given.get("pretrained"))


def tower_of(given: Mapping[str, Any]) -> str | None:
    """The place of an open_clip model that is not the embedded one; None for everything else."""
    if place := given.get("path"):
        return str(place)
    name = given.get("pretrained")
    return str(name) if name and Path(located(str(name), bare=True), "open_clip_config.json").is_file() else None


def body(
    clients: ClientsSettings, modality: str, architecture: str, reads: Any = None
) -> ImageBody | TextBody | ClipImage | ClipText | AutoImage | AutoText:
    """A fresh body [B, ...] -> [B, H] with its `hidden` H. `reads` is a text body's vocabulary. Raises ModelError."""
    made = plain_body(clients, modality, architecture, reads)
    made.mixed_precision = clients.precision == "bfloat16"
    return made


def parts_of(modality: str, architecture: str) -> list[tuple[str, str]]:
    """(modality, name) of a client's one body, or of the two towers of a retrieval client. ValueError for one tower."""
    if modality == "pair":
        return list(zip(("image", "text"), architecture.split("+"), strict=True))
    return [(modality, architecture)]


def plain_body(clients: ClientsSettings, modality: str, architecture: str, reads: Any = None) -> Any:
    """`body`, in float32."""
    check_architecture(modality, architecture, architectures=clients.architectures)
    given = sizes(clients, architecture)
    try:
        if (place := tower_of(given)) or architecture in TOWERS:
            given["path"] = place
            return ClipImage(given) if modality == "image" else ClipText(given, reads)
        if architecture not in ARCHITECTURES[modality]:
            return AutoImage(given) if modality == "image" else AutoText(given, reads)
        return ImageBody(architecture, given) if modality == "image" else TextBody(architecture, given, reads)
    except (TypeError, ValueError, OSError, AttributeError, KeyError, ImportError, RuntimeError) as error:
        text = first_line(error)
        raise ModelError(f"clients.architectures.{architecture}: {text}") from error


def build(  # noqa: PLR0913  (what decides a model)
    clients: ClientsSettings, modality: str, architecture: str, classes: int, vocabulary: Any = None, side: int = 0
) -> Any:
    """A fresh model for a client of `conf.clients`: a Classifier, for pairs a DualEncoder, or a Segmenter where the
    task is segmentation. `vocabulary` is that of a model that reads texts, `side` the side of images.

    Weights are drawn from torch's global generator: call it inside `seeds.scoped`. Raises ModelError.
    """
    if modality == "pair":
        return build_pair(clients, architecture, vocabulary)
    made = body(clients, modality, architecture, vocabulary)
    if clients.task == SEGMENTATION:
        return Segmenter(made, clients.width, classes, side, clients.representation)
    resnet, finish = architecture == "resnet", clients.representation
    return Classifier(made, made.hidden, clients.width, classes, project=resnet, finish=finish)


def build_pair(clients: ClientsSettings, architecture: str, reads: Vocabulary | None = None) -> DualEncoder:
    """A fresh dual encoder, e.g. "resnet+bert", of `clients.architectures`' sizes, for a client or the server.

    Weights are drawn from torch's global generator: call it inside `seeds.scoped`. Raises ModelError.
    """
    check_architecture("pair", architecture, architectures=clients.architectures)
    image, text = architecture.split("+")
    reads = reads or vocabulary(clients, text)
    width = clients.width
    encoders = []
    for modality, name in (("image", image), ("text", text)):
        made = body(clients, modality, name, reads)
        encoders.append(Encoder(made, made.hidden, width))
    return DualEncoder(encoders[0], encoders[1], reads, clients.pair)
