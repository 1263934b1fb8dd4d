"""Retrieval clients, whose rows are pairs of an image and a text: their batches, and how they are judged.

The public set of pairs is any client's: each reads the sides it has an encoder for.
Axes: B batch, N pairs, D representation width, S image side, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from client_app import views
from florilegium.data.datasets import Rows
from florilegium.data.public import PublicPairs, as_pairs
from florilegium.learning.retrieval import headline, retrieval
from florilegium.models.embeddings import image_features, text_features
from florilegium.protocol import pixels
from florilegium.protocol.payloads import Report

if TYPE_CHECKING:
    from client_app.client import Client

Look = Callable[[PublicPairs], tuple[Tensor, Tensor]]  # pairs -> unit vectors of images [N, D] and texts [N, D]


@dataclass(frozen=True)
class PairBatch:
    """images float [B, 3, S, S], texts int64 [B, T], labels, ids and groups [B]; pairs of one group match."""

    images: Tensor
    texts: Tensor
    labels: Tensor
    ids: Tensor
    groups: Tensor


def batch_of(client: Client, rows: Rows, chosen: Tensor, random: torch.Generator | None = None) -> PairBatch:
    """Rows of pairs as a batch; with `random`, augmented as image and text clients augment theirs."""
    augment = client.conf.clients.get("augment") or {}
    images = pixels.scaled(rows.images[chosen])
    vary = random if augment.get("tags", False) else None
    if random is not None:
        images = views.shifted(images, random, int(augment.get("crop", 0)), bool(augment.get("flip", False)))
    texts = client.vocabulary([views.told(rows.texts[n], rows.tags[n], vary) for n in chosen.tolist()])
    return PairBatch(
        *(x.to(client.device) for x in (images, texts, rows.labels[chosen])),
        rows.ids[chosen],
        rows.groups[chosen].to(client.device),
    )


def public_batches(
    client: Client, pairs: PublicPairs, size: int, epoch: int, name: str = "public", augmented: bool = True
) -> Iterator[tuple[PairBatch, Tensor]]:
    """One shuffled pass over public pairs: batches, each with its positions [B] in `pairs`. Tags stay whole."""
    from client_app.batches import shuffled

    rows = Rows(pairs.ids, pairs.labels, pairs.images, pairs.texts, tuple(() for _ in pairs.texts), pairs.groups)
    random = torch.Generator().manual_seed(client.seed("batches", name, epoch))
    for chosen in shuffled(len(pairs), size, random):
        yield batch_of(client, rows, chosen, random if augmented else None), chosen


def task_loss(client: Client, batch: PairBatch) -> Tensor:
    """The retrieval loss (conf.clients.pair) of a batch."""
    model = client.model
    return model.loss(model.encode_image(batch.images), model.encode_text(batch.texts), batch.groups)


def evaluate(client: Client, look: Look | None = None) -> Report:
    """Recall both ways on the test split, its headline figure on the validation split.

    `look` is how a method with more than the client's own encoders sees pairs; default: the client's model.
    """
    look = look or (lambda pairs: seen(client, pairs))
    test, validation = (as_pairs(rows) for rows in (client.data.test, client.data.validation))
    figures = retrieval(*look(test), test)
    return Report(figures | {"validation": headline(retrieval(*look(validation), validation))}, len(test))


def seen(client: Client, pairs: PublicPairs) -> tuple[Tensor, Tensor]:
    """Unit vectors of both sides by the client's dual encoder: evaluation mode, no augmentation, [N, D] each."""
    model = client.model
    return (
        image_features(model.image, pairs.images, client.device),
        text_features(model.text, pairs.texts, client.vocabulary, client.device),
    )
