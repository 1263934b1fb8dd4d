"""Client models. A classifier speaks encode(x) -> z [B, D] and head(z) -> logits [B, C], a dual encoder (pair.py)
encode_image and encode_text.

Bodies are transformers classes: small configurations trained from scratch, or pre-trained ones of full size, by
setting; or the towers of a CLIP (clip.py). z has an affine-free LayerNorm over D, which puts all clients on one scale.
Axes: B batch, C classes, D representation width (clients.width), S image side, T tokens.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from florilegium.config.clients import ClientsSettings
from florilegium.models.bodies import Classifier, ModelError
from florilegium.models.clip import ClipImage, ClipText
from florilegium.models.image import ImageBody
from florilegium.models.pair import DualEncoder, Encoder
from florilegium.models.text import TextBody
from florilegium.models.tokens import Vocabulary, open_vocabulary

ARCHITECTURES = {"image": ("resnet", "vit", "beit"), "text": ("bert", "distilbert", "roberta")}
TOWERS = ("clip",)  # trained before on pairs, one for each modality (clip.py)


def check_architecture(modality: str, architecture: str, where: str = "clients.mix") -> None:
    """ModelError, listing the choices, unless the modality has that architecture (a pair: two, image+text)."""
    if modality == "pair":
        image, plus, text = architecture.partition("+")
        if not plus:
            raise ModelError(f"{where}: a pair model is named image+text, such as resnet+bert, got {architecture!r}")
        check_architecture("image", image, where)
        return check_architecture("text", text, where)
    if modality not in ARCHITECTURES:
        raise ModelError(f"{where}: no modality {modality!r}; there are {', '.join(ARCHITECTURES)}, pair")
    if architecture not in (*ARCHITECTURES[modality], *TOWERS):
        there = ", ".join((*ARCHITECTURES[modality], *TOWERS))
        raise ModelError(f"{where}: no {modality} model {architecture!r}; there are {there}")


def sizes(clients: ClientsSettings, architecture: str) -> dict[str, Any]:
    """The settings of one architecture, `clients.architectures.<name>`, as a plain dict."""
    node = clients.architectures.get(architecture)
    if node is None:
        raise ModelError(f"clients.architectures.{architecture} is missing")
    return deepcopy(dict(node))


def vocabulary(clients: ClientsSettings, architecture: str) -> Any:
    """How a text architecture of `conf.clients` reads (tokens.py)."""
    pretrained = sizes(clients, architecture).get("pretrained")
    return open_vocabulary(clients.tokenizer, clients.tokens, pretrained)


def body(
    clients: ClientsSettings, modality: str, architecture: str, reads: Any = None
) -> ImageBody | TextBody | ClipImage | ClipText:
    """A fresh body [B, ...] -> [B, H] with its `hidden` H. `reads` is a text body's vocabulary. Raises ModelError."""
    check_architecture(modality, architecture)
    given = sizes(clients, architecture)
    try:
        if architecture in TOWERS:
            return ClipImage(given) if modality == "image" else ClipText(given, reads)
        if modality == "image":
            return ImageBody(architecture, given)
        return TextBody(architecture, given, reads)
    except (TypeError, ValueError, OSError, AttributeError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"clients.architectures.{architecture}: {text}") from error


def build(clients: ClientsSettings, modality: str, architecture: str, classes: int, vocabulary: Any = None) -> Any:
    """A fresh model for a client of `conf.clients`: a Classifier, or for pairs a DualEncoder. `vocabulary` is that of
    a model that reads texts.

    Weights are drawn from torch's global generator: call it inside `seeds.scoped`. Raises ModelError.
    """
    if modality == "pair":
        return build_pair(clients, architecture, vocabulary)
    made = body(clients, modality, architecture, vocabulary)
    return Classifier(made, made.hidden, clients.width, classes, project=architecture == "resnet")


def build_pair(clients: ClientsSettings, architecture: str, reads: Vocabulary | None = None) -> DualEncoder:
    """A fresh dual encoder, e.g. "resnet+bert", of `clients.architectures`' sizes, for a client or the server.

    Weights are drawn from torch's global generator: call it inside `seeds.scoped`. Raises ModelError.
    """
    check_architecture("pair", architecture)
    image, text = architecture.split("+")
    reads = reads or vocabulary(clients, text)
    width = clients.width
    encoders = []
    for modality, name in (("image", image), ("text", text)):
        made = body(clients, modality, name, reads)
        encoders.append(Encoder(made, made.hidden, width))
    return DualEncoder(encoders[0], encoders[1], reads, clients.pair)
