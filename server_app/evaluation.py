"""The evaluation of all methods: after every evaluated round, with the same prompts and noise.

Clients: accuracy of the private models on the global test set of their modality, and on rows with the shares of classes
of each client's own data (the personalised figure); retrieval clients: recall. Server: its dual encoder's recall on
held-out pairs of the public domain. Generator: images of fixed prompts and seeds, judged by a classifier of real images
(GAN-test) and by CLIP. Axes: M generated images, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from florilegium import seeds
from florilegium.config.instances import to_plain
from florilegium.config.settings import Settings
from florilegium.data.datasets import at_sites
from florilegium.data.generic import Captioned, open_captioned
from florilegium.data.partition import partition
from florilegium.data.public import held_out_pairs
from florilegium.federation.exchange import Client
from florilegium.federation.federation import Federation, Reply
from florilegium.learning import retrieval
from florilegium.learning.metrics import accuracy, mean_cosine, pairwise_distance
from florilegium.learning.own_distribution import own_accuracy
from florilegium.models.embeddings import public_features
from florilegium.protocol.payloads import Nothing, Report

IN_GRID = 2  # images of each class in a grid
# figures of clients and of the server's task: what they are called -> what the one who measured calls them
TASKS = {
    "accuracy": "accuracy",
    "validation": "validation",
    "accuracy_own": "accuracy_own",
    "validation_own": "validation_own",
    "miou": "miou",
    "pixel_accuracy": "pixel_accuracy",
    "rsum": retrieval.HEADLINE,
    "rsum_6": "rsum_6",
    **{f"retrieval/{way}/r{k}": f"retrieval/{way}/r{k}" for way in ("i2t", "t2i") for k in retrieval.KS},
}


@dataclass(frozen=True)
class Judged:
    """Flat metrics, and the first images of each class, uint8 [M, 3, H, W], with their captions."""

    metrics: dict[str, float]
    images: Tensor
    captions: list[str]


class Evaluation:
    """Prompts and seeds are fixed once: two rounds, and two methods, differ in the weights alone."""

    def __init__(self, conf: Settings, resources: Any) -> None:
        self.settings = conf.evaluation
        self.resources = resources
        self.class_names = [str(name) for name in resources.classes]
        each = self.settings.images_per_class
        self.labels_M = torch.arange(len(self.class_names)).repeat_interleave(each)
        self.prompts = [resources.classes.prompt(c) for c in self.labels_M.tolist()]
        self.noise = [
            seeds.seed_of(resources.seed, "evaluation", c, i) for c in range(len(self.class_names)) for i in range(each)
        ]
        self._judge_accuracy: float | None = None
        self.not_measured: dict[str, str] = {}  # figure -> why, and how to get it
        self.quality = resources.quality() if self.settings.generic.data else None  # early: it may be missing
        self.captioned: Captioned | None = None

    def clients(self, federation: Federation, model: Any = None) -> dict[str, float]:
        """Every client's figures, and their mean over the clients of each modality there is.

        `model` is the global one (Weights) of a method that has one; otherwise clients judge their own. A global model
        gives every client of a domain the same figures, so one of them judges it, unless `global_model` is everywhere
        or a site has data of its own. A method with several models gives a function of the client; then all judge,
        each its own.
        """
        once = model is not None and not callable(model) and self.settings.global_model == "once"
        if once and not at_sites(self.resources.conf.data) and not any(client.own for client in federation.clients):
            one_each = {self.domains.get(client.id): client for client in reversed(federation.clients)}
            replies = federation.ask("evaluate", model, Report, clients=list(one_each.values()), needed=0)
            if len(replies) == len(one_each):
                return client_figures(replies) | self.on_own_distributions(replies, federation.clients)
        # private models, or the one that was asked failed
        return client_figures(federation.ask("evaluate", model or Nothing(), Report, clients=federation.clients))

    def on_own_distributions(self, replies: list[Reply], clients: Sequence[Client]) -> dict[str, float]:
        """The figures `accuracy_own` and `validation_own` of a global model, for all clients of those who judged it.

        A judge reports the recall of each class, and what clients were dealt is in the partition that this run made.
        """
        if self.resources.conf.privacy.training:
            return {}
        dealt = {row["client"]: row for row in partition(self.resources.conf)["clients"]}
        figures: dict[str, float] = {}
        for name in ("accuracy", "validation"):
            told = []
            for client in (one for one in clients if one.modality != "pair"):
                share_C = torch.tensor(list(dealt[client.id]["classes"].values())).double()
                judge = next(x for x in replies if self.domains.get(x.client.id) == self.domains.get(client.id))
                recall_C = [judge.body.metrics.get(f"{name}_of/{c}", math.nan) for c in range(len(share_C))]
                value = own_accuracy(torch.tensor(recall_C, dtype=torch.float64), share_C)
                told += [(client, value)] if math.isfinite(value) else []
            figures |= averaged(f"{name}_own", told)
        return figures

    @cached_property
    def domains(self) -> dict[int, tuple]:
        """The domain of each client: clients with equal domains have equal held-out rows."""
        if at_sites(self.resources.conf.data):
            return {}
        whole = partition(self.resources.conf)
        if whole["settings"]["judged"] != "own":
            return {}
        return {row["client"]: (row.get("domain"), row.get("shift")) for row in whole["clients"]}

    def generator(self, generator: Any) -> Judged:
        """T2I accuracy, CLIP score and diversity of one image for each fixed prompt and seed."""
        images = generator.synthesize(self.prompts, self.noise)
        clip = self.resources.clip_score()
        seen = clip.encode_images(images)
        metrics = {"t2i/clip_score": mean_cosine(seen, clip.encode_texts(self.prompts))}
        if not self.resources.why_no_judge:
            right = accuracy(self.resources.judge().predict(images), self.labels_M, len(self.class_names))
            metrics = {"t2i/accuracy": right, **metrics}
        else:
            self.not_measured["T2I accuracy"] = self.resources.why_no_judge
        if self.settings.images_per_class > 1:
            metrics["t2i/diversity"] = pairwise_distance(seen, self.labels_M)
        shown = [m for m in range(len(images)) if m % self.settings.images_per_class < IN_GRID]
        return Judged(metrics, images[shown], [self.class_names[self.labels_M[m]] for m in shown])

    def generic(self, generator: Any) -> dict[str, float]:
        """The generator on captions of other things, at the size it draws: distance to the real pictures, score of the
        classes where the extractor has such, CLIP score. {} where none are asked for."""
        given, seed = self.settings.generic, self.resources.seed
        if self.quality is None:
            return {}
        if self.captioned is None:
            workers = self.resources.conf.data.workers
            place, side = str(given.data), int(generator.side)
            self.captioned = open_captioned(place, given.split, given.images, side, seed, workers)
        texts, real = self.captioned.texts, self.captioned.images
        noise = [seeds.seed_of(seed, "generic", n) for n in range(len(texts))]
        drawn = generator.synthesize(texts, noise, size=int(generator.side))
        clip = self.resources.clip_score()
        found = self.quality(real, drawn, seed)
        found["clip_score"] = mean_cosine(clip.encode_images(drawn), clip.encode_texts(texts))
        return {f"t2i/generic/{name}": value for name, value in found.items()}

    def server(self, strategy: Any) -> dict[str, float]:
        """server/rsum, server/retrieval/... and server/validation of a strategy's `server_model`, a DualEncoder."""
        model = getattr(strategy, "server_model", None)
        if model is None:
            return {}
        found = {}
        for split in ("test", "validation"):
            pairs = held_out_pairs(self.resources.conf, split, "public")
            images_ND, texts_ND = (public_features(model, pairs, side) for side in ("image", "text"))
            found[split] = retrieval.retrieval(images_ND, texts_ND, pairs)
        told = found["test"] | {"validation": retrieval.headline(found["validation"])}
        return {f"server/{name}": told[key] for name, key in TASKS.items() if key in told}

    def protocol(self) -> dict[str, Any]:
        """Facts for the records: the number of images, and the judge's accuracy on real test images."""
        images = None
        if self._judge_accuracy is None and not self.resources.why_no_judge:
            images, labels = self.resources.test_images()
        if self._judge_accuracy is None and images is not None and len(images):
            self._judge_accuracy = self.resources.judge().accuracy(images, labels)
        facts: dict[str, Any] = {
            "images": len(self.prompts),
            "images_per_class": self.settings.images_per_class,
            "judge_accuracy": self._judge_accuracy,
        }
        if self.captioned is not None:
            facts["generic"] = {**to_plain(self.settings.generic), "images": len(self.captioned.texts)}
        if self.not_measured:
            facts["not_measured"] = self.not_measured
        conf = self.resources.conf
        if not at_sites(conf.data) and any(member.modality == "pair" for member in conf.clients.mix):
            galleries = {
                who: retrieval.protocol(held_out_pairs(conf, "test", part))
                for who, part in (("clients", "private"), ("server", "public"))
            }
            facts["retrieval"] = {"rsum": retrieval.HEADLINE, **galleries}
        return facts


def client_figures(replies: list[Reply]) -> dict[str, float]:
    """client/accuracy/<id>, client/accuracy/<modality> and their mean client/accuracy; validation, both on the clients'
    own distributions, and the rsum and recalls of retrieval clients likewise."""
    figures: dict[str, float] = {}
    for name, key in TASKS.items():
        figures |= averaged(name, [(x.client, x.body.metrics[key]) for x in replies if key in x.body.metrics])
    return figures


def averaged(name: str, told: list[tuple[Client, float]]) -> dict[str, float]:
    """client/<name>/<id> of each client, the means client/<name>/<modality>, and their mean client/<name>."""
    figures = {f"client/{name}/{client.id}": value for client, value in told}
    means = []
    for modality in sorted({client.modality for client, _ in told}):
        values = [value for client, value in told if client.modality == modality]
        means.append(sum(values) / len(values))
        figures[f"client/{name}/{modality}"] = means[-1]
    if means:
        figures[f"client/{name}"] = sum(means) / len(means)
    return figures
