"""The evaluation of a client's model on the global test and validation splits of the client's modality.

Axes: N rows, C classes, D representation width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from client_app.client import Client
from florilegium.data.datasets import Rows
from florilegium.data.public import PublicPairs, as_pairs
from florilegium.learning.retrieval import headline, retrieval
from florilegium.models.embeddings import image_features, text_features
from florilegium.protocol.payloads import Report

Look = Callable[[PublicPairs], tuple[Tensor, Tensor]]  # pairs -> unit vectors of images [N, D] and texts [N, D]


def evaluate(client: Client) -> Report:
    """Top-1 accuracy and loss on the test split, accuracy on the validation split; recalls for a retrieval client."""
    if client.modality == "pair":
        return evaluate_pairs(client)
    accuracy, loss = classified(client, client.data.test)
    validation, _ = classified(client, client.data.validation)
    return Report({"accuracy": accuracy, "validation": validation, "loss": loss}, len(client.data.test))


def classified(client: Client, rows: Rows) -> tuple[float, float]:
    """Top-1 accuracy and mean cross-entropy of the client's model on these rows."""
    logits_NC = client.logits(client.encoded(client.rows_as_inputs(rows, torch.arange(len(rows)))))
    hits = (logits_NC.argmax(-1) == rows.labels).float()
    return hits.mean().item(), cross_entropy(logits_NC, rows.labels).item()


def evaluate_pairs(client: Client, look: Look | None = None) -> Report:
    """Recall in both directions on the test split, and its main figure on the validation split.

    `look` encodes pairs for a method that uses more than the client's own encoders; default: the client's model.
    """
    look = look or (lambda those: seen(client, those))
    test, validation = (as_pairs(rows) for rows in (client.data.test, client.data.validation))
    figures = retrieval(*look(test), test)
    return Report(figures | {"validation": headline(retrieval(*look(validation), validation))}, len(test))


def seen(client: Client, pairs: PublicPairs) -> tuple[Tensor, Tensor]:
    """Unit vectors of both sides by the client's dual encoder: evaluation mode, no augmentation, [N, D] each."""
    model = client.retriever
    return (
        image_features(model.image, pairs.images, client.device),
        text_features(model.text, pairs.texts, client.vocabulary, client.device),
    )
