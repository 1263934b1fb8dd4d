"""Guidance, server side: what a frozen diffusion model has to tell clients, made once, sent once, kept by version.

Composes with every method that averages weights: `Rounds` shares the guide before it trains. Clients' side:
client_app/guidance. Down: a guide (shared PCA, anchors). Up: nothing, or, where `allow_upload` says so, the clients'
labelled images. Axes: N images, C classes, P anchors of a class, D representation width, W text width.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from florilegium import seeds
from florilegium.data.datasets import read_rows
from florilegium.diffusion.cache import FeatureCache
from florilegium.diffusion.projection import Projection, fingerprint
from florilegium.federation.federation import Client, Federation, Reply
from florilegium.methods.guidance.anchors import build_anchors
from florilegium.methods.guidance.prompts import class_prompts, opened, questions
from florilegium.methods.guidance.settings import GuidanceSettings
from florilegium.protocol import pixels
from florilegium.protocol.payloads import Examples, Guide, Nothing, Report
from florilegium.protocol.validation import WireError
from florilegium.runs import files

LOG = logging.getLogger("flwr")
FORMAT = 1  # raised whenever the same settings would give another guide


def leaves(s: GuidanceSettings) -> str:
    """One line for the log: what of a client's data leaves it because of guidance."""
    if s.uploads:
        return f"labelled private images leave the clients ({s.uploads}, allow_upload=true)"
    return "nothing leaves the clients beside their weights"


class Guided:
    """The server's side of `method.client.guidance`."""

    def __init__(self, settings: GuidanceSettings, resources: Any) -> None:
        self.settings, self.resources = settings, resources
        self.cache = FeatureCache(settings.cache or Path(resources.conf.out or ".", "features"))
        self.held: dict[int, str] = {}
        self.uploaded: dict[int, Examples] = {}
        self.said: dict[str, int] = {}
        LOG.info("guidance %s: %s", settings.name, leaves(settings))

    # -- the exchange ----------------------------------------------------------------------------------------------

    def share(self, federation: Federation) -> dict[str, float]:
        """Send the guide to those of this round (in round 0: to all) that do not keep this version of it."""
        asked = federation.clients if federation.round == 0 else federation.cohort
        for client in asked:
            self.held.setdefault(client.id, client.guide)
        guide, told = self.guide(federation)
        lacking = [client for client in asked if self.held[client.id] != guide.version]
        if not lacking:
            return told if federation.round == 0 else {}
        if self.settings.feddifrc_on and self.settings.feddifrc.location == "server":
            lacking = self.collected(federation, lacking)
        replies = federation.ask(
            "represent", lambda client: self.payload(guide, client), Report, clients=lacking, needed=0, patient=True
        )
        self.held |= {x.client.id: guide.version for x in replies}
        return told | self.counted(replies) | {"guide/sent": float(len(lacking))}

    def forget(self, federation: Federation) -> None:
        """A client that failed in this round may have lost its guide: it is sent again."""
        self.held |= {e["client"]: "" for e in federation.ledger if e["fault"]}

    def collected(self, federation: Federation, clients: list[Client]) -> list[Client]:
        """Ask for labelled images; the clients whose images are here now."""

        def whole(client: Any, body: Examples) -> None:
            if len(body.ids) != client.examples or len(body.images) != client.examples:
                raise WireError(f"Examples has {len(body.ids)} rows, the client's profile says {client.examples}")
            if (body.ids[1:] <= body.ids[:-1]).any():
                raise WireError("Examples.ids do not rise")

        missing = [client for client in clients if client.id not in self.uploaded]
        replies = federation.ask(
            "represent",
            Nothing(),
            Examples,
            clients=missing,
            check=whole,
            needed=0,
            bounds={"C": len(self.resources.classes)},
        )
        self.uploaded |= {x.client.id: x.body for x in replies}
        if replies:
            LOG.warning(
                "guidance: labelled private images of %d clients are at the server (%s)",
                len(replies),
                self.settings.uploads,
            )
        return [client for client in clients if client.id in self.uploaded]

    def payload(self, guide: Guide, client: Client) -> Guide:
        """The guide, with the features of the client's own rows where the server extracts them."""
        s = self.settings
        if not (s.feddifrc_on and s.feddifrc.location == "server"):
            return guide
        rows = self.uploaded[client.id]
        asked = questions(self.prompts, rows.labels, rows.ids, s.feddifrc, s.noise_seed)
        projection = Projection.of(
            {k.removeprefix("pca."): v for k, v in guide.tensors.items() if k.startswith("pca.")}
        )
        features = self.cache.features(
            self.extractor,
            pixels.decode(rows.images),
            rows.ids,
            asked.prompts,
            asked.which_NQ,
            projection,
            s.noise_seed,
        )
        return replace(guide, ids=rows.ids, features=features)

    def counted(self, replies: list[Reply]) -> dict[str, float]:
        """Rows found, rows computed and rows of the U-Net: the sum over the clients and, where it looks, the server."""
        own = {"cache/hits": self.cache.hits, "cache/misses": self.cache.misses, "cache/passes": self.extractor.passes}
        before, self.said = self.said, own
        return {
            name: float(value - before.get(name, 0)) + sum(x.body.metrics.get(name, 0.0) for x in replies)
            for name, value in own.items()
        }

    # -- the guide -------------------------------------------------------------------------------------------------

    @cached_property
    def extractor(self) -> Any:
        return opened(self.resources.conf.diffusion)

    @cached_property
    def prompts(self) -> list[str]:
        return class_prompts(self.resources.classes, self.settings)

    def guide(self, federation: Federation) -> tuple[Guide, dict[str, float]]:
        """The guide and figures of its making; made once for a recipe, then read from the cache folder."""
        if "_guide" not in self.__dict__:
            path = self.cache.folder / "guides" / f"{self.recipe(federation)}.safetensors"
            try:
                tensors, meta = files.load(path)
            except Exception:  # not there, or torn: safetensors has its own error classes
                tensors, meta = self.made(federation)
                files.save(path, tensors, meta)
            fields = {name: tensors.pop(name) for name in ("visual", "text")}
            nothing = {
                "ids": torch.zeros(0, dtype=torch.int64),
                "features": torch.zeros(0, 0, int(self.resources.width), dtype=torch.float16),
            }
            self._guide = Guide(fingerprint({**tensors, **fields}), tensors, **fields, **nothing), meta["figures"]
            return self._guide
        return self._guide[0], {}

    def recipe(self, federation: Federation) -> str:
        """A hash of all that decides the guide, without making it."""
        s, conf = self.settings, self.resources.conf
        plain = asdict(s) | {"cache": None}
        told = [
            FORMAT,
            self.extractor.version,
            plain,
            self.prompts,
            str(conf.data),
            str(conf.diffusion),
            self.resources.width,
        ]
        if s.semanticfl_on and s.semanticfl.source == "upload":
            told += [str(conf.out), [(client.id, client.examples) for client in federation.clients]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]

    def made(self, federation: Federation) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors of the guide, {"figures": ...})."""
        s, count, width = self.settings, len(self.resources.classes), int(self.resources.width)
        tensors = {"visual": torch.zeros(count, 0, width), "text": torch.zeros(count, 0)}
        figures: dict[str, float] = {}
        if s.feddifrc_on:
            shown = self.shown(s.calibration, -(-s.calibration_images // count))
            ids = torch.arange(len(shown.images))
            projection = self.extractor.fit(shown.images, ids, s.noise_seed)
            tensors |= {f"pca.{name}": value for name, value in projection.tensors().items()}
            tensors |= self.standard(shown.images, ids, projection)
            figures |= {f"guide/explained/{name}": share for name, share in projection.explained.items()}
        if s.semanticfl_on:
            more, told = self.anchors(federation)
            tensors, figures = tensors | more, figures | told
        return tensors, {"figures": figures}

    def standard(self, images: Tensor, ids: Tensor, projection: Projection) -> dict[str, Tensor]:
        """Mean (and deviation) of the images' features under H's prompt, for `standardise`."""
        s = self.settings
        if s.standardise == "none":
            return {}
        prompt = s.feddifrc.noise_prompt if s.feddifrc.supervised else s.feddifrc.visual_prompt
        seen_ND = self.extractor.conditional(
            images, ids, [prompt], torch.zeros(len(images), 1, dtype=torch.int64), projection, s.noise_seed
        )[:, 0]
        found = {"centre": seen_ND.mean(0)}
        return found | ({"scale": seen_ND.std(0).clamp_min(1e-6)} if s.standardise == "scale" else {})

    def anchors(self, federation: Federation) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Class anchors and texts; with source private_local the levels' weights and axes instead of visual ones."""
        s = self.settings.semanticfl
        if s.source == "upload":
            self.collected(federation, federation.clients)
            rows = self.uploaded.values()
            shown = Proxies(
                torch.cat([pixels.decode(x.images) for x in rows]), torch.cat([x.labels for x in rows]), "upload"
            )
        else:
            shown = self.shown("auto" if s.source == "private_local" else s.source, s.images_per_class)
        found = build_anchors(
            self.extractor, shown.images, shown.labels, self.prompts, s.anchors, self.settings.noise_seed
        )
        clip = s.text_encoder == "clip"
        tensors = {"text": self.resources.clip_score().encode_texts(self.prompts) if clip else found.text}
        if s.source == "private_local":
            tensors |= {f"amda.{name}": torch.tensor(a) for name, a in found.weights.items()}
            tensors |= {f"levels.{name}": value for name, value in found.projection.tensors().items()}
        else:
            tensors["visual"] = found.visual
        return tensors, {f"guide/weight/{name}": a for name, a in found.weights.items()} | {
            "guide/explained/levels": found.explained
        }

    def shown(self, source: str, per_class: int) -> Proxies:
        """Images that are nobody's private ones."""
        return proxies(resolved(source, self.resources), per_class, self.resources, self.settings.noise_seed)


# -- proxies: labelled images that are nobody's private ones -----------------------------------------------------------


@dataclass(frozen=True)
class Proxies:
    """uint8 images [N, 3, S, S], their labels [N], and where they came from: public, generated or upload."""

    images: Tensor
    labels: Tensor
    source: str


def resolved(source: str, resources: Any) -> str:
    """`auto` is public where every class has a public row, else generated. ValueError for public that is not there."""
    lacking = [str(name) for c, name in enumerate(resources.classes) if c not in set(public_labels(resources).tolist())]
    if source == "public" and lacking:
        raise ValueError(
            f"guidance: {resources.conf.data.name} has no public row of {', '.join(lacking)}; choose generated or auto"
        )
    return source if source != "auto" else "generated" if lacking else "public"


def proxies(source: str, per_class: int, resources: Any, seed: int) -> Proxies:
    """At most `per_class` images of each class, the same for the same seed; `source` is public or generated."""
    count = len(resources.classes)
    if source == "generated":
        labels = torch.arange(count).repeat_interleave(per_class)
        prompts = [resources.classes.prompt(c) for c in labels.tolist()]
        noise = [seeds.seed_of(seed, "proxies", n) for n in range(len(labels))]
        return Proxies(resources.generator().synthesize(prompts, noise), labels, source)
    where, labels_R = public_rows(resources), public_labels(resources)
    order = torch.randperm(len(labels_R), generator=seeds.generator(seed, "proxies"))
    chosen = torch.cat([order[labels_R[order] == c][:per_class] for c in range(count)]).sort().values
    table = resources.splits.train.select(where[chosen.numpy()])
    rows = read_rows(table, "image", int(resources.conf.data.image_size), f"{resources.splits.place}/train")
    return Proxies(rows.images, rows.labels, source)


def public_rows(resources: Any) -> np.ndarray:
    """Positions of the training rows that are public."""
    train = resources.splits.train
    if "part" not in train.column_names:
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.array(train["part"][:]) == "public")


def public_labels(resources: Any) -> Tensor:
    """Their labels."""
    return torch.from_numpy(np.array(resources.splits.train["label"][:], np.int64)[public_rows(resources)])
