"""Guidance, server side: what a frozen diffusion model has to tell clients, made once, sent once, kept by version.

Composes with every method that averages weights: `Rounds` shares the guide before it trains. Clients' side:
client_app/guidance. Down: a guide (shared PCA, anchors, student, features of the server's images). Up: nothing, or,
where `allow_upload` says so, the clients' labelled images.
Axes: N images, C classes, P anchors of a class, D representation width, W text width.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from florilegium import seeds
from florilegium.diffusion.cache import FeatureCache
from florilegium.diffusion.generator import device_of
from florilegium.diffusion.load import weights_hash
from florilegium.diffusion.projection import Projection, fingerprint
from florilegium.federation.federation import Client, Federation, Reply
from florilegium.learning.averaging import named, part, without
from florilegium.methods.guidance.anchors import Anchors, build_anchors
from florilegium.methods.guidance.prompts import class_prompts, opened, questions
from florilegium.methods.guidance.settings import GuidanceSettings
from florilegium.methods.guidance.student import STUDENT, Lesson, encoded, train_student, whitened
from florilegium.models import build
from florilegium.protocol import pixels
from florilegium.protocol.payloads import Examples, Guide, Nothing, Report
from florilegium.protocol.validation import WireError
from florilegium.runs import files
from strategies.blocks.proxies import Drawer, Proxies, proxies, resolved
from strategies.blocks.weights import grouped

ARRAYS = ("visual", "text", "replay", "replay_labels", "unprompted", "prompted", "shown_labels")
CLIENTS_ONLY = {  # settings that change what clients do with a guide, and nothing in it
    "semanticfl": (
        *("consistency", "consistency_form", "consistency_temperature", "consistency_scaled"),
        *("contrast", "replay", "start", "text_head"),
    ),
    "feddifrc": (
        *("tdcl", "ndcr", "temperature", "tdcl_form", "u_norm", "ndcr_form", "ndcr_temperature"),
        *("negatives", "negatives_from", "replay", "condition", "condition_scale", "refresh", "location"),
        *("similar_prompt", "other_prompt", "other_names"),
    ),
}
LOG = logging.getLogger("flwr")
FORMAT = 3  # raised whenever the same settings would give another guide


def leaves(s: GuidanceSettings) -> str:
    """One line for the log: what of a client's data leaves it because of guidance."""
    if s.uploads:
        return f"labelled private images leave the clients ({s.uploads}, allow_upload=true)"
    return "nothing leaves the clients beside their weights"


def deciding(s: GuidanceSettings) -> dict[str, Any]:
    """The settings that decide what is in a guide. What clients alone use is not among them, so that arms that differ
    in it share a guide."""
    plain = asdict(s) | {"cache": None, "allow_upload": None}
    for name, theirs in CLIENTS_ONLY.items():
        plain[name] = {key: value for key, value in plain[name].items() if key not in theirs}
    return plain | {"shows_images": s.feddifrc.shows_images}


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
        return opened(self.resources.conf.diffusion, self.resources.conf.runtime.workers)

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
            self.student = part(tensors, STUDENT)
            rest = without(tensors, STUDENT)
            arrays = {name: rest.pop(name) for name in ARRAYS}
            nothing = {
                "ids": torch.zeros(0, dtype=torch.int64),
                "features": torch.zeros(0, 0, int(self.resources.width), dtype=torch.float16),
            }
            if not (self.settings.semanticfl_on and self.settings.semanticfl.replay):
                arrays |= {name: arrays[name][:0] for name in ("replay", "replay_labels")}
            if self.settings.semanticfl_on and self.settings.semanticfl.teaches:
                rest |= named(STUDENT, self.student)
            self._guide = Guide(fingerprint({**rest, **arrays}), rest, **arrays, **nothing), meta["figures"]
            return self._guide
        return self._guide[0], {}

    def started(self, weights: dict[str, Tensor], federation: Federation) -> dict[str, Tensor]:
        """The weights that the federation begins with: the student's in the place of fresh ones, where settings say
        so, in each group under the group's name. What travels beside a model stays."""
        if not (self.settings.semanticfl_on and self.settings.semanticfl.start == "student"):
            return weights
        groups = set(grouped(federation.clients))  # a control variate has a first name, too, but is no model
        own = {name: name.partition(".")[2] if name.partition(".")[0] in groups else name for name in weights}
        return {name: self.student[own[name]].clone() if own[name] in self.student else weights[name] for name in own}

    def recipe(self, federation: Federation) -> str:
        """A hash of all that decides the guide, without making it."""
        s, conf = self.settings, self.resources.conf
        told = [
            FORMAT,
            self.extractor.version,
            deciding(s),
            self.prompts,
            str(conf.data),
            str(conf.diffusion),
            self.resources.width,
        ]
        if s.semanticfl_on and s.semanticfl.form == "student":
            c = conf.clients
            told += [str(c.mix[0].model), str(c.architectures[c.mix[0].model]), c.representation, str(c.augment)]
        if s.semanticfl_on and s.semanticfl.source == "upload":
            told += [str(conf.out), [(client.id, client.examples) for client in federation.clients]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]

    def made(self, federation: Federation) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors of the guide, {"figures": ...})."""
        s, count, width = self.settings, len(self.resources.classes), int(self.resources.width)
        tensors = {"visual": torch.zeros(count, 0, width), "text": torch.zeros(count, 0)}
        tensors |= {name: torch.zeros(0, width).half() for name in ("replay", "unprompted", "prompted")}
        tensors |= {name: torch.zeros(0, dtype=torch.int64) for name in ("replay_labels", "shown_labels")}
        figures: dict[str, float] = {}
        if s.feddifrc_on:
            shown = self.shown(s.calibration, -(-s.calibration_images // count))
            ids = torch.arange(len(shown.images))
            projection = self.extractor.fit(shown.images, ids, s.noise_seed)
            tensors |= {f"pca.{name}": value for name, value in projection.tensors().items()}
            tensors |= self.standard(shown.images, ids, projection)
            if s.feddifrc.shows_images:
                tensors |= self.looked_at(shown, projection)
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

    def looked_at(self, shown: Proxies, projection: Projection) -> dict[str, Tensor]:
        """H and F+ of the server's own images, float16 [H, D] each, with their labels."""
        s, ids = self.settings, torch.arange(len(shown.images))
        prompts = [s.feddifrc.noise_prompt, *self.prompts]
        which_N2 = torch.stack([torch.zeros_like(shown.labels), 1 + shown.labels], 1)
        seen_N2D = self.extractor.conditional(shown.images, ids, prompts, which_N2, projection, s.noise_seed).half()
        return {"unprompted": seen_N2D[:, 0], "prompted": seen_N2D[:, 1], "shown_labels": shown.labels}

    def anchors(self, federation: Federation) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Anchors or a student, texts and replay; with source private_local the levels' weights and axes instead of
        visual anchors."""
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
        elif s.form == "anchors":
            tensors["visual"] = found.visual
        figures = {f"guide/weight/{name}": a for name, a in found.weights.items()}
        figures["guide/explained/levels"] = found.explained
        seen_ND = found.seen
        if s.form == "student":
            student, seen_ND, told = self.distilled(shown, found, tensors["text"])
            tensors |= named(STUDENT, {name: value.clone() for name, value in student.state_dict().items()})
            figures |= {f"guide/student/{name}": value for name, value in told.items()}
        return tensors | {"replay": seen_ND.half(), "replay_labels": shown.labels}, figures

    def distilled(self, shown: Proxies, found: Anchors, text_CW: Tensor) -> tuple[Any, Tensor, dict[str, float]]:
        """A model like the clients' that learnt whitened diffusion features and labels of the server's images; what it
        sees in these [N, D]; and figures of its training."""
        s, conf, seed = self.settings.semanticfl, self.resources.conf, self.settings.noise_seed
        member = conf.clients.mix[0]
        with seeds.scoped(seed, "student"):
            student = build.build(conf.clients, member.modality, member.model, len(self.prompts))
        student.to(device_of(conf.diffusion.device))
        lesson = Lesson(
            pixels.resized(shown.images, conf.data.image_size),
            shown.labels,
            whitened(found.joined, int(self.resources.width), seed),
            text_CW,
        )
        with seeds.scoped(seed, "student training"):  # dropout knows global state alone
            told = train_student(student, lesson, s.student, conf.clients.augment, s.temperature, seed)
        return student.cpu(), encoded(student, lesson.images), told

    def shown(self, source: str, per_class: int) -> Proxies:
        """Images that are nobody's private ones."""
        found = resolved(source, self.resources)
        drawer = Drawer(self.cache.folder / "proxies", weights_hash(self.extractor.folder))
        return proxies(found, per_class, self.resources, self.settings.noise_seed, drawer)
