"""Retrieval clients, whose rows are pairs of an image and a text: public batches, the loss, what the encoders see.

The public set of pairs is any client's: each reads the sides it has an encoder for.
Axes: B batch, N pairs, D representation width, S image side, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from client_app.batches import PairBatch, shuffled
from client_app.client import Client
from florilegium.data.datasets import Rows
from florilegium.data.public import PublicPairs
from florilegium.models.embeddings import image_features, text_features


def public_batches(
    client: Client, pairs: PublicPairs, size: int, epoch: int, name: str = "public", augmented: bool = True
) -> Iterator[tuple[PairBatch, Tensor]]:
    """One shuffled pass over public pairs: batches, each with its positions [B] in `pairs`. Tags stay whole."""
    rows = Rows(pairs.ids, pairs.labels, pairs.images, pairs.texts, tuple(() for _ in pairs.texts), pairs.groups)
    random = torch.Generator().manual_seed(client.seed("batches", name, epoch))
    for chosen in shuffled(len(pairs), size, random):
        yield client.pair_batch(rows, chosen, random if augmented else None), chosen


def task_loss(client: Client, batch: PairBatch) -> Tensor:
    """The retrieval loss (conf.clients.pair) of a batch."""
    model = client.model
    return model.loss(model.encode_image(batch.images), model.encode_text(batch.texts), batch.groups)


def seen(client: Client, pairs: PublicPairs) -> tuple[Tensor, Tensor]:
    """Unit vectors of both sides by the client's dual encoder: evaluation mode, no augmentation, [N, D] each."""
    model = client.model
    return (
        image_features(model.image, pairs.images, client.device),
        text_features(model.text, pairs.texts, client.vocabulary, client.device),
    )
