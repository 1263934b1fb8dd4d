"""The evaluation of a client's model: on the global test and validation splits, and on the client's own distribution.

Axes: N rows, C classes, D representation width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import cross_entropy

from client_app.client import Client
from client_app.segmentation import evaluate_masks
from florilegium.data.datasets import Rows
from florilegium.data.public import PublicPairs, as_pairs
from florilegium.learning.own_distribution import own_accuracy, recalls, shares
from florilegium.learning.retrieval import headline, retrieval
from florilegium.models.embeddings import image_features, text_features
from florilegium.protocol.payloads import Report

Look = Callable[[PublicPairs], tuple[Tensor, Tensor]]  # pairs -> unit vectors of images [N, D] and texts [N, D]
Scores = Callable[[Rows], Tensor]  # rows -> class scores [N, C]
FIGURES = {"test": "accuracy", "validation": "validation"}  # split -> name of its accuracy in a report


def evaluate(client: Client, by_class: bool = False) -> Report:
    """The figures of the client's own model; recalls of pairs for a retrieval client, mIoU in segmentation.
    `by_class`: see `classified`."""
    if client.modality == "pair":
        return evaluate_pairs(client)
    if client.dense:
        return evaluate_masks(client)
    return classified(client, lambda rows: scores(client, rows), by_class)


def scores(client: Client, rows: Rows) -> Tensor:
    """Class scores [N, C] of the client's model for these rows."""
    return client.logits(client.encoded_rows(rows))


def classified(client: Client, scores: Scores, by_class: bool = False) -> Report:
    """Top-1 accuracy on the test and validation split, loss on the test split, and both accuracies on the client's own
    distribution (`accuracy_own`, `validation_own`).

    Held-out rows of a site follow its distribution as they are. Other rows are weighted by the shares of the classes
    in the client's training rows (florilegium/learning/own_distribution.py). These shares stay here; but each such
    figure tells a little about them, and DP-SGD does not cover that, so under `privacy.training` there is none. Nor are
    there figures of held-out rows that are the site's own: these rows had no noise either.

    `by_class` adds the recall of each class, which says nothing about the client: it is asked of a client that judges
    a global model for all, and the server weights these.
    """
    figures: dict[str, float] = {}
    private = client.protection.settings.training is not None
    for split, name in FIGURES.items():
        if private and split in client.data.own:
            continue
        rows = getattr(client.data, split)
        logits_NC = scores(rows)
        hits_N = logits_NC.argmax(-1) == rows.labels
        figures[name] = hits_N.float().mean().item()
        if split == "test":
            figures["loss"] = cross_entropy(logits_NC, rows.labels).item()
        recall_C = recalls(logits_NC.argmax(-1), rows.labels, client.classes)
        if not private:
            share_C = shares(client.data.train.labels, client.classes)
            own = figures[name] if split in client.data.own else own_accuracy(recall_C, share_C)
            figures |= {f"{name}_own": own} if math.isfinite(own) else {}
        if by_class:
            figures |= {f"{name}_of/{c}": r for c, r in enumerate(recall_C.tolist()) if math.isfinite(r)}
    return Report(figures, len(client.data.test))


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
