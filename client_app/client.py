"""One client: its private data, its model, and what it remembers. The same for every method.

Axes: N samples, B batch, D representation width, C classes, S image side, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from client_app import distillation_set, views
from client_app.batches import EVALUATION_BATCH, Batch, ClientError, PairBatch, shuffled
from client_app.distillation_set import DistillationSet, Kept
from client_app.memory import Memory
from client_app.privacy.protection import Protection
from florilegium import seeds
from florilegium.config.clients import SEGMENTATION
from florilegium.config.settings import Settings
from florilegium.data.datasets import Rows
from florilegium.data.masks import BACKGROUND
from florilegium.data.masks import masks as masks_of
from florilegium.data.private import PrivateData
from florilegium.data.public import PublicPairs, open_public, same_order
from florilegium.data.stored_images import Changed
from florilegium.diffusion.generator import device_of
from florilegium.learning.augmentation import drawn, moved, shifted
from florilegium.models import bodies, build
from florilegium.models.pair import DualEncoder
from florilegium.models.tokens import Vocabulary
from florilegium.privacy.mechanisms import without_batch_norm
from florilegium.protocol import pixels
from florilegium.protocol.budget import Budget
from florilegium.protocol.payloads import Profile, PublicSet, Samples, SiteProfile, Targets


class Client:
    """A client while it answers one message. `memory` belongs to the arm, at the round and step of the message."""

    own_data = False  # its training rows are the node's own, not a part of the settings' data set
    public_path: str | None = None  # where this machine keeps the public set, if not where the settings say

    def __init__(self, conf: Settings, id_: int, data: PrivateData, memory: Memory, round_: int) -> None:
        member = conf.clients.mix[id_]
        self.conf, self.id, self.data, self.memory, self.round = conf, id_, data, memory, round_
        self.modality, self.architecture = str(member.modality), str(member.model)
        build.check_architecture(self.modality, self.architecture, f"clients.mix[{id_}]", conf.clients.architectures)
        self.classes, self.examples, self.width = len(data.classes), len(data.train), conf.clients.width
        self.device = torch.device(device_of(conf.clients.device))
        self.dense = str(conf.clients.task) == SEGMENTATION  # each pixel has a class
        if not self.examples:
            raise ClientError(f"client {id_} has no {self.modality} row to train on")

    def seed(self, *names: object) -> int:
        """A seed for this client in this round. It is equal in all arms, so that arms differ only by their method."""
        return seeds.seed_of(self.conf.seed, "client", self.id, self.round, *names)

    @cached_property
    def protection(self) -> Protection:
        """The privacy of what this client uploads."""
        return Protection(self)

    @cached_property
    def budget(self) -> Budget:
        """The rows that this message's training learned from so far."""
        return Budget()

    # -- model ---------------------------------------------------------------------------------------------------

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return build.vocabulary(self.conf.clients, self.architecture.split("+")[-1])

    @cached_property
    def previous_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights and counters after the previous message."""
        return self.memory.read("model") or ({}, {"trained": 0})

    @property
    def trained(self) -> int:
        """How many messages have trained the model before this one."""
        return int(self.previous_state[1]["trained"])

    @cached_property
    def model(self) -> bodies.Classifier | DualEncoder:
        """The model after the previous message, or a fresh one that depends on the seed."""
        vocabulary = None if self.modality == "image" else self.vocabulary
        with seeds.scoped(self.conf.seed, "model", self.id, self.architecture):
            given = (self.conf.clients, self.modality, self.architecture, self.classes, vocabulary)
            model = build.build(*given, side=self.conf.data.image_size)
        if self.protection.settings.training:
            model = without_batch_norm(model)
        if self.trained:
            model.load_state_dict(self.previous_state[0])
        return model.to(self.device)

    @property
    def classifier(self) -> bodies.Classifier:
        """The model of an image or text client. ClientError for a retrieval client."""
        if isinstance(self.model, DualEncoder):
            raise ClientError("a retrieval client has no classifier")
        return self.model

    @property
    def retriever(self) -> DualEncoder:
        """The model of a retrieval client. ClientError for an image or text client."""
        if not isinstance(self.model, DualEncoder):
            raise ClientError(f"a client of modality {self.modality} has no retrieval model")
        return self.model

    def load(self, tensors: Mapping[str, Tensor]) -> bodies.Classifier | DualEncoder:
        """Load the server's weights into the model. ClientError when they belong to another architecture."""
        try:
            self.model.load_state_dict(dict(tensors))
        except RuntimeError as error:
            why = " ".join(str(error).split())[:160]
            raise ClientError(f"the weights do not fit {self.architecture}: {why}") from error
        return self.model

    def save(self) -> None:
        """Store the model in the memory."""
        self.memory.write("model", self.model.state_dict(), {"trained": self.trained + 1})

    # -- inputs --------------------------------------------------------------------------------------------------

    def private_batches(self, size: int, epoch: int, name: str) -> Iterator[Batch | PairBatch]:
        """One shuffled pass over the client's own rows, lightly augmented; batches of pairs for a retrieval client."""
        if self.protection.settings.training:
            raise ClientError("privacy.training: this pass over private rows is not DP-SGD's, so it is not made")
        random = torch.Generator().manual_seed(self.seed("batches", name, epoch))
        rows = self.data.train
        for chosen in shuffled(len(rows), size, random):
            self.budget.private += len(chosen)
            if self.modality == "pair":
                yield self.pair_batch(rows, chosen, random)
                continue
            if self.dense:
                yield self.dense_batch(rows, chosen, random)
                continue
            inputs = self.rows_as_inputs(rows, chosen, random)
            yield Batch(inputs, rows.labels[chosen].to(self.device), rows.ids[chosen])

    def rows_as_inputs(self, rows: Rows, chosen: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Rows of data as model inputs; with `random`, augmented."""
        augment = self.conf.clients.augment
        if self.modality == "image":
            images = pixels.scaled(rows.images[chosen])
            if random is not None:
                images = shifted(images, random, augment.crop, augment.flip)
            return images.to(self.device)
        vary = random if augment.tags else None
        texts = [views.text_with_tags(rows.texts[i], rows.tags[i], vary) for i in chosen.tolist()]
        return self.vocabulary(texts).to(self.device)

    def pair_batch(self, rows: Rows, chosen: Tensor, random: torch.Generator | None = None) -> PairBatch:
        """Rows of pairs as a batch; with `random`, augmented as image and text clients augment theirs."""
        augment = self.conf.clients.augment
        images = pixels.scaled(rows.images[chosen])
        vary = random if augment.tags else None
        if random is not None:
            images = shifted(images, random, augment.crop, augment.flip)
        texts = self.vocabulary([views.text_with_tags(rows.texts[n], rows.tags[n], vary) for n in chosen.tolist()])
        return PairBatch(
            images.to(self.device),
            texts.to(self.device),
            rows.labels[chosen].to(self.device),
            rows.ids[chosen],
            rows.groups[chosen].to(self.device),
        )

    def dense_batch(self, rows: Rows, chosen: Tensor, random: torch.Generator) -> Batch:
        """Rows of images with their masks, which are moved as the images are."""
        augment = self.conf.clients.augment
        moves = drawn(len(chosen), random, augment.crop, augment.flip)
        images = moved(pixels.scaled(rows.images[chosen]), moves)
        masks = moved(masks_of(rows, chosen)[:, None], moves, BACKGROUND)[:, 0]
        given = (images.to(self.device), rows.labels[chosen].to(self.device), rows.ids[chosen])
        return Batch(*given, masks=masks.to(self.device), moves=moves)

    def open_samples(self, samples: Samples) -> Kept:
        """Samples as this client keeps them: images decoded, at its own size. ClientError for the wrong modality."""
        if self.modality == "pair":
            return self.open_pairs(samples)
        filled, empty = (samples.images, samples.texts) if self.modality == "image" else (samples.texts, samples.images)
        if len(filled) != len(samples.ids) or empty:
            raise ClientError(
                f"this client reads {self.modality}s; it was sent {len(samples.images)} images and"
                f" {len(samples.texts)} texts for {len(samples.ids)} ids"
            )
        if self.modality == "text":
            return Kept(samples.ids, texts=samples.texts)
        return Kept(samples.ids, pixels.resized(pixels.decode(samples.images), self.conf.data.image_size))

    def open_pairs(self, samples: Samples) -> Kept:
        """Samples of both sides, as this retrieval client keeps them. ClientError where a side is missing."""
        images, texts, ids = samples.images, samples.texts, samples.ids
        if not len(images) == len(texts) == len(ids):
            raise ClientError(
                f"this client reads pairs; it was sent {len(images)} images and {len(texts)} texts for {len(ids)} ids"
            )
        return Kept(ids, pixels.resized(pixels.decode(images), self.conf.data.image_size), texts)

    def inputs(self, samples: Samples | Kept, augment_seed: int | None = None) -> Tensor | Changed:
        """Samples as model inputs, with `augment_seed` as their second view. ClientError for the wrong modality.

        On the CPU: token ids [N, T], or images that become floats [n, 3, S, S] when n of them are read.
        """
        kept = self.open_samples(samples) if isinstance(samples, Samples) else samples
        if self.modality == "pair":
            raise ClientError("a retrieval client has no classifier that reads samples of one side")
        if self.modality == "image":
            images = kept.images
            if augment_seed is not None:
                images = views.second_images(images, kept.ids, augment_seed)
            return Changed(images, pixels.scaled)
        if augment_seed is None:
            return self.vocabulary(kept.texts)
        return self.vocabulary(views.second_texts(kept.texts, kept.ids, augment_seed))

    @torch.no_grad()
    def encoded(self, inputs: Tensor | Changed) -> Tensor:
        """Representations of all inputs in evaluation mode, [N, D] on the CPU."""
        model = self.classifier.eval()
        parts = [model.encode(x.to(self.device)).cpu() for x in inputs.split(EVALUATION_BATCH)]
        return torch.cat(parts) if parts else torch.zeros(0, self.width)

    @torch.no_grad()
    def encoded_rows(self, rows: Rows, chosen: Tensor | None = None) -> Tensor:
        """Representations of rows (all, or those chosen) in evaluation mode, [N, D] on the CPU.

        Images become model inputs a batch at a time: all at once would be 15 GB for 25,000 of 224 pixels.
        """
        chosen = torch.arange(len(rows)) if chosen is None else chosen
        if self.modality != "image":
            return self.encoded(self.rows_as_inputs(rows, chosen))
        parts = [self.encoded(self.rows_as_inputs(rows, some)) for some in chosen.split(EVALUATION_BATCH)]
        return torch.cat(parts) if parts else torch.zeros(0, self.width)

    @torch.no_grad()
    def logits(self, z_ND: Tensor) -> Tensor:
        """Class scores [N, C] of representations, on the CPU."""
        return self.classifier.eval().head(z_ND.to(self.device)).cpu()

    # -- the public set ---------------------------------------------------------------------------------------------

    @property
    def public_pairs(self) -> PublicPairs:
        """This client's public set. DataError when it has none."""
        return open_public(self.conf, self.public_path)

    def public(self, asked: PublicSet) -> PublicPairs:
        """The pairs that the server asks about, in its order.

        DataError, with both hashes, when this client has another set.
        """
        ours = self.public_pairs
        same_order(ours, asked.order, f"client {self.id}")
        return ours.named(asked.ids)

    # -- samples of the server -------------------------------------------------------------------------------------

    def keep(self, samples: Samples) -> None:
        """Store samples; the targets come later and are joined by id."""
        self.memory.write("samples", distillation_set.to_tensors(self.open_samples(samples)))

    def recall(self, targets: Targets, wide: int | None = None) -> DistillationSet:
        """The stored samples that `targets` name, with their labels and fused representations (D or `wide` values)."""
        found = self.memory.read("samples")
        if found is None:
            raise ClientError("targets came, but no samples were ever kept")
        width = targets.representations.shape[-1]
        if width not in (0, wide := wide or self.width):
            raise ClientError(f"targets are {width} wide, representations {wide}")
        return distillation_set.taught(distillation_set.from_tensors(found[0]), targets)

    def replayed(self) -> DistillationSet | None:
        """The distillation set of earlier rounds that `store` kept, or None."""
        if (found := self.memory.read("replay")) is None:
            return None
        tensors = found[0]
        return DistillationSet(distillation_set.from_tensors(tensors), tensors["labels"], tensors["fused"])

    def store(self, distillation: DistillationSet, size: int) -> None:
        """Keep a random `size` of a distillation set for later rounds (0: nothing)."""
        if not size:
            return
        random = torch.Generator().manual_seed(self.seed("replay"))
        chosen = distillation.select(torch.randperm(len(distillation), generator=random)[:size])
        tensors = distillation_set.to_tensors(chosen.samples) | {"labels": chosen.labels, "fused": chosen.fused}
        self.memory.write("replay", tensors)

    def distillation_batches(
        self, distillation: DistillationSet, inputs: Tensor | Changed, size: int, epoch: int
    ) -> Iterator[Batch]:
        """One shuffled pass over a distillation set, as model `inputs`; images are shifted as private ones are."""
        random = torch.Generator().manual_seed(self.seed("lesson", epoch))  # a name of a seed: not renamed
        augment = self.conf.clients.augment
        for chosen in shuffled(len(distillation), size, random):
            self.budget.shared += len(chosen)
            x = inputs[chosen]
            if self.modality == "image":
                x = shifted(x, random, augment.crop, augment.flip)
            yield Batch(
                x.to(self.device),
                distillation.labels[chosen].to(self.device),
                distillation.samples.ids[chosen],
                distillation.fused[chosen].to(self.device),
            )

    # -- what every method's clients answer ------------------------------------------------------------------------

    def profile(self) -> Profile:
        present = self.data.train.labels.unique().tolist()
        kept = self.memory.kept("guide")
        return (SiteProfile if self.own_data else Profile)(
            self.id,
            self.modality,
            self.architecture,
            self.examples,
            [int(c) for c in present],
            str(kept[1]["version"]) if kept else "",
        )
