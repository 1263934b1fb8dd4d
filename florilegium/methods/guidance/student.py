"""SemanticFL's student: a net of the clients' size that gives of any image what the frozen diffusion model sees in it.

The server distils it from images of its own and sends it once. So no client runs the diffusion model, and yet every
image of a client has a target of its own (one anchor a class is a constant for a client that has one class).
The student is our choice; arXiv 2603.19337 asks that the server does the heavy work (docs/methods/semanticfl.md).
Axes: N images, B batch, C classes, D representation width, F features of all levels, W text width, S image side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from florilegium import seeds
from florilegium.config.clients import Augment
from florilegium.config.fields import section, setting
from florilegium.data.stored_images import StoredImages
from florilegium.diffusion.projection import Projection
from florilegium.learning.augmentation import shifted
from florilegium.learning.fit import fit
from florilegium.learning.losses import cosine_distance, info_nce
from florilegium.protocol.pixels import scaled

STUDENT = "student"  # first name of its tensors in a guide
AT_ONCE = 128  # images that are encoded at once


@section
class StudentSettings:
    """How the server distils the student. All of it is our choice."""

    epochs: int = setting(40, "passes over the server's images", low=1, high=1_000_000)
    batch: int = setting(64, "images in a batch", low=2, high=100_000)
    learning_rate: float = setting(3e-3, "learning rate of AdamW", low=1e-9, high=10)
    weight_decay: float = setting(0.01, "weight decay of AdamW", low=0, high=10)
    features: float = setting(6.0, "weight of the distance to the whitened diffusion features", low=0, high=1e4)
    labels: float = setting(1.0, "weight of the cross-entropy with the labels of the images", low=0, high=1e4)
    texts: float = setting(0.0, "weight of the contrast with the texts of all classes", low=0, high=1e4)

    def __post_init__(self) -> None:
        if not (self.features or self.labels or self.texts):
            raise ValueError("student: features, labels and texts are all 0, so it would learn nothing")


def whitened(joined_NF: Tensor, width: int, seed: int) -> Tensor:
    """float32 [N, D]: the first D principal components, each with mean 0 and (sample) deviation 1 over the images."""
    projection = Projection.fitted({"levels": joined_NF}, [width], seed)
    v_ND = projection({"levels": joined_NF[:, None]}, "gap")
    return (v_ND - v_ND.mean(0)) / v_ND.std(0).clamp_min(1e-6)


@dataclass(frozen=True)
class Lesson:
    """What the student learns: uint8 images [N, 3, S, S], labels [N], features [N, D]; texts of the classes [C, W]."""

    images: Tensor | StoredImages
    labels: Tensor
    features: Tensor
    texts: Tensor


def train_student(
    model: Any, lesson: Lesson, settings: StudentSettings, augment: Augment, temperature: float, seed: int
) -> dict[str, float]:
    """Train a classifier in place; the means of its terms, and how near and how right it is on the images in the end.

    L = features (1 - cos(z, v)) + labels CE(head(z), y) + texts InfoNCE(z, T; temperature). The last needs texts as
    wide as z: ValueError.
    """
    s, place = settings, next(model.parameters()).device
    if s.texts and lesson.texts.shape[-1] != lesson.features.shape[-1]:
        raise ValueError("guidance.semanticfl.student.texts needs texts that are as wide as the representations")
    labels_N, target_ND = lesson.labels.to(place), lesson.features.to(place)

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        random = seeds.generator(seed, "student batches", epoch)
        for chosen_B in torch.randperm(len(labels_N), generator=random).split(s.batch):
            if len(chosen_B) > 1:  # batch norm cannot train on one
                images_B3SS = scaled(lesson.images[chosen_B])
                yield shifted(images_B3SS, random, augment.crop, augment.flip).to(place), chosen_B.to(place)

    def objective(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        views_B3SS, chosen_B = batch
        z_BD, terms = model.encode(views_B3SS), {}
        if s.features:
            terms["features"] = s.features * cosine_distance(target_ND[chosen_B], z_BD)
        if s.labels:
            terms["labels"] = s.labels * cross_entropy(model.head(z_BD), labels_N[chosen_B])
        if s.texts:
            terms["texts"] = s.texts * info_nce(z_BD, lesson.texts.to(place), labels_N[chosen_B], temperature)
        return terms

    told = fit(model, batches, objective, lr=s.learning_rate, weight_decay=s.weight_decay, epochs=s.epochs)
    z_ND = encoded(model, lesson.images)
    return {
        **{name: told[name] for name in ("features", "labels", "texts") if name in told},
        "cosine": cosine_similarity(z_ND, lesson.features, dim=-1).mean().item(),
        "accuracy": (scored(model, z_ND) == lesson.labels).float().mean().item(),
    }


@torch.no_grad()
def scored(model: Any, z_ND: Tensor) -> Tensor:
    """The class that the head gives each representation, [N] on the CPU."""
    return model.head(z_ND.to(next(model.parameters()).device)).argmax(-1).cpu()


@torch.no_grad()
def encoded(model: Any, images: Tensor | StoredImages) -> Tensor:
    """float32 [N, D]: the representations of uint8 images in evaluation mode, on the CPU."""
    model.eval()
    place = next(model.parameters()).device
    return torch.cat([model.encode(scaled(part).to(place)).cpu() for part in images.split(AT_ONCE)])
