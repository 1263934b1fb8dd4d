"""How a retrieval client takes part in a method of class labels: its two towers see a sample's image and its text.

It has no classifier. A class is what its prompt says, read by the text tower, as CLIP classifies (arXiv 2103.00020).
Axes: N samples, B batch, C classes, D representation width, S image side, T tokens; 2 towers, image and text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from client_app.batches import EVALUATION_BATCH, shuffled
from client_app.blocks.training import private_without_end, task_terms
from client_app.client import Client
from client_app.distillation_set import DistillationSet, Kept
from florilegium.data.datasets import classes_of, grouped
from florilegium.learning.augmentation import shifted
from florilegium.learning.fit import fit
from florilegium.learning.losses import normalised
from florilegium.protocol import pixels

Terms = Callable[[Tensor, Tensor], Tensor]  # (fused [B, D], representations of a tower [B, D]) -> scalar


def class_scores(towers_2BD: Tensor, prompts_CD: Tensor, temperature: float) -> Tensor:
    """Scores [2, B, C] of unit vectors of both towers: cosine with each class's prompt, over the temperature."""
    return towers_2BD @ prompts_CD.T / temperature


def together(towers_2BD: Tensor) -> Tensor:
    """One representation [B, D] of both towers: their sum, on the scale of a classifier's representations."""
    return normalised(towers_2BD.sum(0))


def prompts(client: Client) -> Tensor:
    """The token ids [C, T] of the prompts of all classes."""
    classes = classes_of(client.conf.data)
    return client.vocabulary([classes.prompt(c) for c in range(len(classes))]).to(client.device)


@torch.no_grad()
def seen(client: Client, kept: Kept) -> tuple[Tensor, Tensor]:
    """Log-probabilities of classes [N, C], the mean of what both towers say, and representations [N, D] of both.

    Evaluation mode, on the CPU.
    """
    model, temperature = client.retriever.eval(), client.conf.clients.pair.temperature
    prompts_CD, told = model.encode_text(prompts(client)), []
    for rows in torch.arange(len(kept.ids)).split(EVALUATION_BATCH):
        some = kept.select(rows)
        texts = client.vocabulary(some.texts).to(client.device)
        towers_2BD = torch.stack(model(pixels.scaled(some.images).to(client.device), texts))
        log_2BC = class_scores(towers_2BD, prompts_CD, temperature).log_softmax(-1)
        log_p_BC = log_2BC.logsumexp(0) - math.log(2)  # not the logarithm of a mean that may be 0: a cold temperature
        told.append((log_p_BC.cpu(), together(towers_2BD).cpu()))
    if not told:
        return torch.zeros(0, client.classes), torch.zeros(0, client.width)
    log_p, z = zip(*told, strict=True)
    return torch.cat(log_p), torch.cat(z)


def learn(client: Client, s: Any, distillation: DistillationSet, align: Terms | None) -> dict[str, float]:
    """Passes over a distillation set of pairs; the mean of each term.

    `label`: cross-entropy of the class scores, the mean of both towers; `pair`: the retrieval loss of images with their
    texts, equal texts match; `align`: the method's, the mean of both towers, where there are fused representations;
    `private`: the client's own loss on a private batch, where `s.mix_private`. `s` has batch, distill_epochs,
    learning_rate and weight_decay.
    """
    model, temperature = client.retriever, client.conf.clients.pair.temperature
    kept, augment, prompts_CT = distillation.samples, client.conf.clients.augment, prompts(client)
    texts_NT = client.vocabulary(kept.texts)
    groups_N = grouped(range(len(kept.texts)), kept.texts)

    def objective(pair: tuple[tuple[Tensor, Tensor], Any]) -> dict[str, Tensor]:
        (rows, views), private = pair
        client.budget.shared += len(rows)
        image_BD, text_BD = model(views.to(client.device), texts_NT[rows].to(client.device))
        towers_2BD = torch.stack([image_BD, text_BD])
        scores_2BC = class_scores(towers_2BD, model.encode_text(prompts_CT), temperature)
        labels_B = distillation.labels[rows].to(client.device)
        terms = {
            "label": cross_entropy(scores_2BC.flatten(0, 1), labels_B.repeat(2)),
            "pair": model.loss(image_BD, text_BD, groups_N[rows].to(client.device)),
        }
        fused_BD = distillation.fused[rows].to(client.device)
        if align is not None and fused_BD.shape[-1]:
            both = [align(fused_BD, normalised(z_BD)) for z_BD in towers_2BD]
            terms["align"] = torch.stack(both).mean()
        return terms if private is None else terms | {"private": task_terms(client, private)["task"]}

    def batches(epoch: int) -> Iterator[tuple[tuple[Tensor, Tensor], Any]]:
        random = torch.Generator().manual_seed(client.seed("distillation", epoch))
        beside = private_without_end(client, s.batch, epoch, s.mix_private)
        rows = shuffled(len(distillation), s.batch, random)
        read = ((some, pixels.scaled(kept.images[some])) for some in rows)
        moved = ((some, shifted(images, random, augment.crop, augment.flip)) for some, images in read)
        return zip(moved, beside, strict=False)

    given = {"lr": s.learning_rate.of(client.modality), "weight_decay": s.weight_decay, "epochs": s.distill_epochs}
    return fit(model, batches, objective, **given)
