"""SemanticFL's anchors (arXiv 2603.19337): what the frozen model sees in each class, and what its texts say of it.

AMDA: V = PCA_D([a_l * unit(GAP(up_l))]_l, a_v * unit(latent)); the paper's weights a are not published, so there are
three kinds. Axes: N images, L levels (the U-Net's layers and `vae`), F features of all levels, D width, C classes,
A anchors of a class, W text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from florilegium import seeds
from florilegium.config.fields import section, setting
from florilegium.data.stored_images import StoredImages
from florilegium.diffusion.features import FeatureExtractor
from florilegium.diffusion.generator import Progress
from florilegium.diffusion.projection import Projection, fingerprint


@section
class AnchorSettings:
    """How anchors are made. The paper names AMDA and t; the rest is our choice."""

    timestep: int = setting(150, "t: diffusion step at which the features are taken", low=0, high=999)
    width: int = setting(128, "D: width of an anchor, the same as clients.width", low=1, high=1_000_000)
    weights: str = setting(
        "fixed",
        "a, the weights of the levels: fixed (equal) | entropy (from the variance between and within classes) | "
        "learned (by a linear probe)",
        choices=("fixed", "entropy", "learned"),
    )
    per_class: int = setting(
        1,
        "A: anchors of a class, k-means centres of its images; a sample takes the nearest; 1: their mean",
        low=1,
        high=1000,
    )
    probe_steps: int = setting(200, "weights=learned: steps of the linear probe", low=1, high=1_000_000)
    probe_lr: float = setting(0.05, "weights=learned: learning rate of the linear probe", low=1e-9, high=1e3)


@dataclass(frozen=True)
class Anchors:
    """Visual [C, A, D], text [C, W], the levels' weights, and the projection; of each image its levels side by side
    [N, F], and V as a unit vector [N, D]."""

    visual: Tensor
    text: Tensor
    weights: dict[str, float]
    projection: Projection
    joined: Tensor
    seen: Tensor

    @property
    def explained(self) -> float:
        return self.projection.explained["levels"]

    @property
    def version(self) -> str:
        return fingerprint({"visual": self.visual, "text": self.text})


def build_anchors(
    extractor: FeatureExtractor,
    images: Tensor | StoredImages,
    labels: Tensor,
    prompts: Sequence[str],
    settings: AnchorSettings,
    seed: int,
    progress: Progress | None = None,
) -> Anchors:
    """Anchors of the classes (their `prompts`, in label order) from uint8 images [N, 3, S, S] and labels [N].

    Noise is drawn by an image's place among them. ValueError names a class with no image or no prompt.
    """
    _check(images, labels, prompts)
    s = settings
    levels = extractor.levels(images, torch.arange(len(images)), s.timestep, seed, progress)
    weights = level_weights(levels, labels, s, seed)  # a
    joined_NF = aggregated(levels, weights)
    projection = Projection.fitted({"levels": joined_NF}, [s.width], seed)
    reps_ND = projected(joined_NF, projection)
    visual_CAD = torch.stack(
        [centres(reps_ND[labels == c], s.per_class, seeds.seed_of(seed, "centres", c)) for c in range(len(prompts))]
    )  # V_c
    text_CW = extractor.text(prompts)  # T_c
    return Anchors(visual_CAD, text_CW, weights, projection, joined_NF, reps_ND)


def representations(
    extractor: FeatureExtractor,
    images: Tensor | StoredImages,
    ids: Tensor,
    timestep: int,
    seed: int,
    weights: dict[str, float],
    projection: Projection,
) -> Tensor:
    """V of single images, float32 [N, D], with the weights and axes that anchors were made with."""
    return projected(aggregated(extractor.levels(images, ids, timestep, seed), weights), projection)


def projected(joined_NF: Tensor, projection: Projection) -> Tensor:
    """Unit vectors [N, D] of the levels side by side."""
    return normalize(projection({"levels": joined_NF[:, None]}, "gap"), dim=-1)


def aggregated(levels: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """[a_l * unit(level l)]_l side by side, [N, F]."""
    return torch.cat([weights[name] * normalize(level_NC, dim=-1) for name, level_NC in levels.items()], -1)


def level_weights(levels: dict[str, Tensor], labels: Tensor, settings: AnchorSettings, seed: int) -> dict[str, float]:
    """a_l of each level, summing to 1."""
    if settings.weights == "learned":
        a_L = _probed(levels, labels, settings, seed)
    elif settings.weights == "entropy":
        a_L = torch.tensor([separation(normalize(level, dim=-1), labels) for level in levels.values()])
    else:
        a_L = torch.ones(len(levels))
    return dict(zip(levels, (a_L / a_L.sum()).tolist(), strict=True))


def separation(x_NC: Tensor, labels: Tensor) -> float:
    """Variance between the class means over the variance within the classes, both weighted by the classes' sizes."""
    present, place, counts = labels.unique(return_inverse=True, return_counts=True)
    means = torch.zeros(len(present), x_NC.shape[1]).index_add_(0, place, x_NC) / counts[:, None]
    within = (x_NC - means[place]).square().sum(-1).mean()
    between_ = ((means - x_NC.mean(0)).square().sum(-1) * counts).sum() / len(x_NC)
    return float(between_ / within.clamp_min(1e-12))


@torch.enable_grad()
def _probed(levels: dict[str, Tensor], labels: Tensor, settings: AnchorSettings, seed: int) -> Tensor:
    """softmax(theta) of the linear probe on [a_l * unit(level l)] that tells the classes best."""
    units = [normalize(level, dim=-1) for level in levels.values()]
    theta_L = torch.zeros(len(units), requires_grad=True)
    with seeds.scoped(seed, "probe"):
        head = torch.nn.Linear(sum(unit.shape[1] for unit in units), int(labels.max()) + 1)
    adam = torch.optim.Adam([theta_L, *head.parameters()], settings.probe_lr)
    for _ in range(settings.probe_steps):
        joined = torch.cat([a * unit for a, unit in zip(theta_L.softmax(0), units, strict=True)], -1)
        adam.zero_grad()
        cross_entropy(head(joined * len(units)), labels).backward()
        adam.step()
    return theta_L.detach().softmax(0)


def centres(x_ND: Tensor, many: int, seed: int) -> Tensor:
    """[A, D]: the mean, or the centres of k-means. Where there are fewer different images than centres, some repeat."""
    if many == 1:
        return x_ND.mean(0, keepdim=True)
    from sklearn.cluster import KMeans  # heavy, and only for several anchors a class

    clusters = min(many, len(x_ND.unique(dim=0)))
    fitted = KMeans(clusters, random_state=seed % 2**32).fit(x_ND.double().numpy())
    centre_AD = torch.from_numpy(fitted.cluster_centers_).to(x_ND.dtype)
    return centre_AD[torch.arange(many) % clusters]


def _check(images: Tensor | StoredImages, labels: Tensor, prompts: Sequence[str]) -> None:
    if len(images) != len(labels):
        raise ValueError(f"anchors: {len(images)} images, but {len(labels)} labels")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(prompts):
        raise ValueError(f"anchors: label {int(labels.max())}, but there are {len(prompts)} prompts")
    for c, prompt in enumerate(prompts):
        if not prompt.strip():
            raise ValueError(f"anchors: class {c} has no prompt")
        if not (labels == c).any():
            raise ValueError(f"anchors: no image shows class {c}, {prompt!r}")
