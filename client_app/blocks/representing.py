"""What all methods that exchange representations need at a client: to encode public samples, and to learn from the
representations of others.

An image or text client has one side of a pair, a retrieval client has both. The public samples are either the
client's own copy of the public set (the server sends `PublicSet`), or they come with the message (`Samples`).
Axes: N samples, B batch, D representation width, H width of a body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.nn.functional import normalize

from client_app import distillation_set
from client_app.batches import ClientError, shuffled
from client_app.blocks.training import fit_private, private_without_end, task_terms
from client_app.client import Client
from client_app.distillation_set import Kept
from florilegium.data.stored_images import StoredImages, changed
from florilegium.learning.fit import fit
from florilegium.learning.losses import normalised
from florilegium.models.bodies import Classifier
from florilegium.models.pair import Encoder
from florilegium.protocol import pixels
from florilegium.protocol.payloads import Answers, Features, Nothing, PublicSet, Samples
from florilegium.protocol.phases import Kinds, crosses

Tower = Classifier | Encoder
Codes = dict[str, tuple[Tensor, Tensor]]  # side -> (unit representation [B, D], unit output of the body [B, H])
LOOK = 128  # samples encoded at once


# -- what this client sees ---------------------------------------------------------------------------------------------


def towers(client: Client) -> dict[str, Tower]:
    """This client's encoders by side, each with a body and its projection."""
    if client.modality == "pair":
        return {"image": client.retriever.image, "text": client.retriever.text}
    return {client.modality: client.classifier}


def code(tower: Tower, x: Tensor) -> tuple[Tensor, Tensor]:
    """The unit representation [B, D] of an encoder, and its body's output as a unit vector [B, H]."""
    h_BH = tower.body(x)
    z_BD = tower.project(h_BH)
    return normalize(normalised(z_BD) if isinstance(tower, Classifier) else z_BD, dim=-1), normalize(
        normalised(h_BH), dim=-1
    )


@torch.no_grad()
def seen(client: Client, inputs: dict[str, Any]) -> Codes:
    """Both layers of all inputs, in evaluation mode, on the CPU."""
    client.model.eval()
    found = {}
    for side, tower in towers(client).items():
        parts = [code(tower, x) for x in inputs[side].split(LOOK)]
        found[side] = torch.cat([z.cpu() for z, _ in parts]), torch.cat([h.cpu() for _, h in parts])
    return found


def sides_to_send(client: Client, found: Codes, second: bool) -> dict[str, Tensor]:
    """The upload for each side: the representation, and with `second` the body's output if it has the same width."""
    return {
        side: torch.cat([z, h], 1) if second and h.shape[1] == client.width else z for side, (z, h) in found.items()
    }


def crossing(settings: Any) -> Kinds:
    """What comes down and goes up in `represent`: of a public set that clients have, features of pairs; of samples that
    come down, a classifier's answers or a retrieval client's features."""
    if settings.public_set == "proxy":
        return (PublicSet,), (Features,)
    return (Samples,), (Answers, Features)


@overload
def answer(client: Client, question: PublicSet, second: bool = False) -> Features: ...


@overload
def answer(client: Client, question: Samples | PublicSet, second: bool = False) -> Answers | Features: ...


def answer(client: Client, question: Samples | PublicSet, second: bool = False) -> Answers | Features:
    """Representations of the samples that the server asks about.

    For samples in the message, a classifier adds labels.
    """
    if isinstance(question, Samples):
        keep(client, question)  # what to learn from them comes later
    if not len(question.ids):
        nothing = torch.zeros(0, client.width)
        inputs_of(client, question)  # refuses what it has not
        return Features(
            question.ids, *(nothing if side in towers(client) else nothing[:, :0] for side in ("image", "text"))
        )
    inputs = inputs_of(client, question)
    sides = sides_to_send(client, seen(client, inputs), second)
    if isinstance(question, PublicSet) or client.modality == "pair":
        none = torch.zeros(len(question.ids), 0)
        return Features(question.ids, sides.get("image", none), sides.get("text", none))
    p_NC = client.logits(client.encoded(inputs[client.modality])).softmax(-1)
    sure_N, label_N = p_NC.max(-1)
    return Answers(question.ids, label_N, sure_N, sides[client.modality], torch.zeros(len(label_N), 0))


# -- public samples as inputs ------------------------------------------------------------------------------------------


def inputs_of(client: Client, question: Samples | PublicSet) -> dict[str, Tensor]:
    """Model inputs by side. ClientError for samples that lack a side, DataError for another public set."""
    if isinstance(question, PublicSet):
        pairs = client.public(question)
        return read(client, pairs.images, pairs.texts)
    for side, there in (("image", question.images), ("text", question.texts)):
        if side in towers(client) and len(there) != len(question.ids):
            raise ClientError(f"this client reads {side}s; it was sent {len(there)} for {len(question.ids)} ids")
    return read(client, open_images(client, question.images) if question.images else None, question.texts)


def open_images(client: Client, images: Sequence[bytes]) -> Tensor:
    """Encoded images as uint8 [N, 3, S, S] of this client's size."""
    return pixels.resized(pixels.decode(images), client.conf.data.image_size)


def read(client: Client, images: Tensor | StoredImages | None, texts: tuple[str, ...]) -> dict[str, Tensor]:
    """uint8 [N, 3, S, S] and texts as this client's model takes them; images that lie in a file are read by rows."""
    inputs = {}
    for side in towers(client):
        if side == "text":
            inputs[side] = client.vocabulary(texts).to(client.device)
        elif images is not None:
            inputs[side] = changed(images, lambda some: pixels.scaled(some).to(client.device))
        else:
            raise ClientError("this client reads images; none came")
    return inputs


def keep(client: Client, samples: Samples) -> None:
    """Store the sides of the samples that this client reads."""
    for side in towers(client):
        client.memory.write(
            f"public{side}",
            distillation_set.to_tensors(
                Kept(samples.ids, open_images(client, samples.images))
                if side == "image"
                else Kept(samples.ids, texts=samples.texts)
            ),
        )


def recalled(client: Client, down: Features) -> dict[str, Tensor]:
    """The samples that `down` is about: the stored ones, or else those of the client's public set."""
    kept_of = {side: client.memory.read(f"public{side}") for side in towers(client)}
    found = {side: kept for side, kept in kept_of.items() if kept is not None}
    if len(found) < len(kept_of):
        return inputs_of(client, PublicSet(client.public_pairs.order, down.ids))
    if any(not torch.equal(kept[0]["ids"], down.ids) for kept in found.values()):
        raise ClientError("features came for other samples than were kept")
    sides = {side: distillation_set.from_tensors(kept[0]) for side, kept in found.items()}
    images = sides["image"].images if "image" in sides else None
    return read(client, images, sides["text"].texts if "text" in sides else ())


# -- learning from others ----------------------------------------------------------------------------------------------


def learn(
    client: Client,
    settings: Any,
    inputs: dict[str, Tensor],
    terms: Callable[[Tensor, Codes], dict[str, Tensor]],
    epochs: int,
) -> dict[str, float]:
    """Passes over public samples, a private batch beside each where `settings.mix_private`; the mean of each term.

    `terms(rows [B], codes of these rows)` are the method's; `settings` has public_batch, batch, learning_rate and
    weight_decay.
    """
    s, model = settings, client.model
    count = len(next(iter(inputs.values())))

    def objective(pair: tuple[Tensor, Any]) -> dict[str, Tensor]:
        rows, private = pair
        client.budget.shared += len(rows)
        found = terms(rows, {side: code(tower, inputs[side][rows]) for side, tower in towers(client).items()})
        return found if private is None else found | {"private": task_terms(client, private)["task"]}

    def batches(epoch: int) -> Iterator[tuple[Tensor, Any]]:
        random = torch.Generator().manual_seed(client.seed("public", epoch))
        beside = private_without_end(client, s.batch, epoch, s.mix_private)
        return zip(shuffled(count, s.public_batch, random), beside, strict=False)

    return fit(
        model, batches, objective, lr=s.learning_rate.of(client.modality), weight_decay=s.weight_decay, epochs=epochs
    )


# -- the client side that methods derive from --------------------------------------------------------------------------


class RepresentingClient:
    """Learns its task, and says what it sees in public samples. `distill` is each method's own."""

    Settings: ClassVar[type]

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def train(self, client: Client, _: Nothing) -> Nothing:
        s = self.settings
        fit_private(client, s, s.local_epochs if client.trained else s.pretrain_epochs, "private")
        return Nothing()

    @crosses(crossing)
    def represent(self, client: Client, question: Samples | PublicSet) -> Answers | Features:
        return answer(client, question)
