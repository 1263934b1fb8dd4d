"""FedKTL, server side (arXiv 2403.15760; formulas from TsingZ0/FedKTL, serverktl_stable_diffusion.py).

Client side: client_app/methods/prototypes/fedktl.py. Down: one synthetic sample a class, and its latent vector. Up:
class means. Axes: P uploaded class means, N classes with a sample, C classes, V values of a latent vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from florilegium import seeds
from florilegium.config.fields import section, setting
from florilegium.federation.federation import Federation
from florilegium.learning.averaging import named, part
from florilegium.protocol.forms import Form
from florilegium.protocol.payloads import LatentPairs, Nothing
from strategies.blocks.prototypes import ask_prototypes
from strategies.blocks.rounds import Rounds
from strategies.blocks.weights import figures
from strategies.prototypes.alignment import align, feature_transformer


@section
class FedKTLSettings:
    """How class means become images."""

    prompt: str = setting(
        "a picture", "the prompt of every image, as in the paper; empty: each class's own prompt (our choice)"
    )
    centroid_weight: float = setting(
        0.01, "lambda: weight of the distance to the class centroid; 1 or 0.1 with StyleGAN", low=0, high=1e4
    )
    align_rate: float = setting(0.1, "eta_S: learning rate of F (Adam); 0.01 with StyleGAN", low=1e-9, high=10)
    align_epochs: int = setting(100, "E_S: passes of F over the uploaded class means", low=1, high=1_000_000)
    align_batch: int = setting(100, "B_S: class means in a batch", low=2, high=1_000_000)


class FedKTL(Rounds):
    """Class means, mapped to the latent space of a frozen generator, give an image of each class for all clients.

    `weights` holds F, the class centroids and the images, for the next round and for a resume.
    """

    Settings = FedKTLSettings

    def __init__(self, settings: FedKTLSettings, resources: Any) -> None:
        super().__init__(settings, resources)
        self.t2i, self.classes = resources.generator(), len(resources.classes)
        self.shape = torch.Size(self.t2i.noise_shape)
        with seeds.scoped(resources.seed, "model", "transformer"):
            self.transformer = feature_transformer(self.classes, self.shape.numel())
        self.captions: list[str] = []

    def begin(self, federation: Federation) -> dict[str, float]:
        self.weights = {"centroids": torch.zeros(self.classes, self.shape.numel())}
        return self.round(0, federation)

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        down = self.lessons()
        replies = ask_prototypes(federation, lambda client: down[client.modality], self.classes, self.classes)
        means_PC = torch.cat([x.body.means for x in replies])
        labels_P = torch.cat([x.body.classes for x in replies])
        s = self.settings
        centroids_CV, told = align(  # F, and the class centroids
            self.transformer,
            means_PC,
            labels_P,
            self.weights["centroids"],
            weight=s.centroid_weight,
            lr=s.align_rate,
            epochs=s.align_epochs,
            batch=s.align_batch,
            names=(federation.seed, "align", r),
        )
        self.generate(r, centroids_CV, self.known() | set(labels_P.tolist()), federation)
        return figures(replies) | told

    def known(self) -> set[int]:
        """The classes that have an image."""
        return set(self.weights["ids"].tolist()) if "ids" in self.weights else set()

    def generate(self, r: int, centroids_CV: Tensor, known: set[int], federation: Federation) -> None:
        """One image for each known class, from its centroid in the place of noise; captions if a client reads texts."""
        ids_N = torch.tensor(sorted(known))
        prompts = [self.settings.prompt or self.resources.classes.prompt(c) for c in ids_N.tolist()]
        noise = [
            seeds.seed_of(federation.seed, "lesson", r, c) for c in ids_N.tolist()
        ]  # of a sampler that draws at each step
        latents = centroids_CV[ids_N].view(len(ids_N), *self.shape)
        images = self.t2i.synthesize(prompts, noise, latents=latents)
        reads = any(client.modality == "text" for client in federation.clients)
        self.captions = self.resources.captioner()(images) if reads else []
        self.weights = {"centroids": centroids_CV, "ids": ids_N, "images": images}

    def lessons(self) -> dict[str, Nothing | LatentPairs]:
        """What the clients of each modality learn: images, or their captions; nothing before the first."""
        if "ids" not in self.weights:
            return {"image": Nothing(), "text": Nothing()}
        ids_N, images = self.weights["ids"], Form.of(self.resources.conf).images(self.weights["images"])
        latents_NV = self.weights["centroids"][ids_N]
        return {
            "image": LatentPairs(ids_N, latents_NV, images=images),
            "text": LatentPairs(ids_N, latents_NV, texts=tuple(self.captions)),
        }

    def judged_model(self) -> None:
        """No global model: each client is judged with its own."""
        return None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.weights | named("transformer", self.transformer.state_dict()), {"captions": self.captions}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.transformer.load_state_dict(part(tensors, "transformer"))
        self.weights = {name: value for name, value in tensors.items() if not name.startswith("transformer.")}
        self.captions = list(meta["captions"])
