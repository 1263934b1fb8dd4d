"""The evaluation of a client whose task is segmentation. Axes: N images, C classes with the ground, S image side."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from client_app.batches import EVALUATION_BATCH
from client_app.client import Client
from florilegium.data.masks import masks
from florilegium.learning.segmentation import figures
from florilegium.protocol.payloads import Report


@torch.no_grad()
def evaluate_masks(client: Client) -> Report:
    """mIoU, accuracy of pixels and loss of the client's model on the test split; its mIoU on the validation split."""
    model, told = client.classifier.eval(), {}
    for split in ("test", "validation"):
        rows = getattr(client.data, split)
        predicted, true, losses = [], [], []
        for chosen in torch.arange(len(rows)).split(EVALUATION_BATCH):
            logits, there = model(client.rows_as_inputs(rows, chosen)).cpu(), masks(rows, chosen)
            predicted.append(logits.argmax(1))
            true.append(there)
            losses.append(cross_entropy(logits, there, reduction="sum") / logits[0, 0].numel())
        found = figures(torch.cat(predicted), torch.cat(true), client.classes + 1)
        if split == "validation":
            told["validation"] = found["miou"]
        else:
            told |= found | {"loss": (sum(losses) / len(rows)).item()}
    return Report(told, len(client.data.test))
