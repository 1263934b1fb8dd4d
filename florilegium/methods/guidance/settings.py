"""Guidance: what a frozen diffusion model adds to the loss of any client that averages weights.

FedDifRC (arXiv 2507.06482) and SemanticFL (arXiv 2603.19337). Here: the settings of both halves and the prompts under
which an image is looked at. The client's side is client_app/guidance, the server's strategies/blocks/guidance.py.
Axes: N samples, C classes, K negatives, Q = 2 + K prompts of an image.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from florilegium.config.bounds import between, one_of
from florilegium.learning.losses import NDCR_FORMS, TDCL_FORMS
from florilegium.methods.guidance.anchors import AnchorSettings

NAMES = ("none", "feddifrc", "semanticfl", "both")
SOURCES = ("auto", "public", "generated")  # of images that are nobody's private ones
# for the self-supervised negatives; names of Tiny-ImageNet, as in the paper
OTHER_NAMES = (
    "goldfish",
    "bullfrog",
    "scorpion",
    "centipede",
    "koala",
    "jellyfish",
    "snail",
    "king penguin",
    "golden retriever",
    "tabby",
    "lion",
    "brown bear",
    "ladybug",
    "dragonfly",
    "bison",
    "chimpanzee",
    "abacus",
    "backpack",
    "barn",
    "barrel",
    "bathtub",
    "beacon",
    "bow tie",
    "bucket",
    "candle",
    "cannon",
    "chain",
    "crane",
    "desk",
    "dumbbell",
    "fountain",
    "gondola",
    "hourglass",
    "lawn mower",
    "nail",
    "obelisk",
    "organ",
    "plunger",
    "refrigerator",
    "rocking chair",
    "sandal",
    "school bus",
    "sewing machine",
    "snorkel",
    "sports car",
    "stopwatch",
    "teapot",
    "tractor",
    "umbrella",
    "volleyball",
    "water tower",
    "wooden spoon",
    "guacamole",
    "ice cream",
    "pretzel",
    "cauliflower",
    "mushroom",
    "lemon",
    "pizza",
    "espresso",
    "cliff",
    "coral reef",
    "seashore",
    "acorn",
)


@dataclass
class FedDifRCSettings:
    """FedDifRC's terms; `ours` where paper and code are silent (docs/methods/feddifrc.md)."""

    tdcl: float = 1.0  # weight of the contrast; 0: off
    ndcr: float = 1.0  # weight of the consistency; 0: off
    temperature: float = 0.04  # tau
    negatives: int = 10  # K, at most the wrong classes
    tdcl_form: str = "per_sample"  # per_sample (paper) | released_tiled (one scalar, wrong pairs)
    u_norm: str = "none"  # none (code) | mean_dist: cosine / U, our guess at the paper's U
    ndcr_form: str = "l2_unit"  # l2_unit (ours) | l2_raw (paper) | kl (code) | kl_t | cos
    ndcr_temperature: float = 0.05  # of kl_t
    noise_prompt: str = ""  # under which H is taken
    condition: str = "none"  # none (code) | add_all_tokens: the client's own z is added to the prompt
    condition_scale: float = 0.1  # its mean norm, as a share of the tokens'
    refresh: int = 10  # rounds after which conditioned features are taken again
    supervised: bool = True  # False: no labels but in the linear probe that judges z
    similar_prompt: str = "a photo of a similar object"  # the positive without labels
    visual_prompt: str = "a photo of a visual object"  # for H without labels
    other_prompt: str = "a photo of a {name}"  # the negatives without labels
    other_names: list[str] | None = None  # of them; None: some of Tiny-ImageNet's
    location: str = "client"  # where the diffusion model runs: client | server (images leave the client)

    def __post_init__(self) -> None:
        one_of("tdcl_form", self.tdcl_form, TDCL_FORMS)
        one_of("u_norm", self.u_norm, ("none", "mean_dist"))
        one_of("ndcr_form", self.ndcr_form, NDCR_FORMS)
        one_of("condition", self.condition, ("none", "add_all_tokens"))
        one_of("location", self.location, ("client", "server"))
        for key in ("tdcl", "ndcr"):
            between(key, getattr(self, key), 0, 1e4)
        for key in ("temperature", "ndcr_temperature"):
            between(key, getattr(self, key), 1e-4, 100)
        between("condition_scale", self.condition_scale, 0, 100)
        between("negatives", self.negatives, 1, 1000)
        between("refresh", self.refresh, 1, 1_000_000)
        if not self.supervised and len(self.others) < self.negatives:
            raise ValueError(f"other_names has {len(self.others)} names for {self.negatives} negatives")
        if self.location == "server" and self.condition != "none":
            raise ValueError("condition needs the clients' own models: location must be client")

    @property
    def others(self) -> list[str]:
        """Distinct names of negatives without labels."""
        return list(dict.fromkeys(OTHER_NAMES if self.other_names is None else self.other_names))


@dataclass
class SemanticFLSettings:
    """SemanticFL's terms; `ours` where the notes are silent (docs/methods/semanticfl.md)."""

    consistency: float = 1.0  # lambda_kd; 0: off
    contrast: float = 0.01  # lambda_con; 0: off
    temperature: float = 0.05  # tau
    consistency_form: str = "unit"  # unit (ours) | literal: raw vectors at temperature 1
    consistency_temperature: float = 0.05  # of `unit`; ours
    consistency_scaled: bool = False  # times temperature squared
    source: str = "auto"  # auto | public | generated | private_local | upload
    images_per_class: int = 64  # that anchors are made of
    text_encoder: str = "pipeline"  # pipeline | clip
    text_head: str = "auto"  # auto: learned where widths differ | learned | fixed | none
    anchors: AnchorSettings = field(default_factory=AnchorSettings)

    def __post_init__(self) -> None:
        one_of("consistency_form", self.consistency_form, ("unit", "literal"))
        one_of("source", self.source, (*SOURCES, "private_local", "upload"))
        one_of("text_encoder", self.text_encoder, ("pipeline", "clip"))
        one_of("text_head", self.text_head, ("auto", "learned", "fixed", "none"))
        for key in ("consistency", "contrast"):
            between(key, getattr(self, key), 0, 1e4)
        for key in ("temperature", "consistency_temperature"):
            between(key, getattr(self, key), 1e-4, 100)
        between("images_per_class", self.images_per_class, 1, 100_000)


@dataclass
class GuidanceSettings:
    """conf/guidance, mounted at method.client.guidance of every method that averages weights."""

    name: str = "none"  # none | feddifrc | semanticfl | both
    prompt: str | None = None  # e.g. "a photo of a {name}"; None: the data's own
    prompts: dict[str, str] = field(default_factory=dict)  # prompt of each class, instead of the template
    calibration: str = "auto"  # images the shared PCA is fitted on: auto | public | generated
    calibration_images: int = 512  # so many at most
    standardise: str = "scale"  # none | centre | scale: by the mean (and deviation) over the calibration images
    noise_seed: int = 0  # of features; one for all runs, so that they share the cache
    allow_upload: bool = False  # private images may leave the client (location: server, source: upload)
    cache: str | None = None  # folder of features; None: .cache/features, or the node's own
    feddifrc: FedDifRCSettings = field(default_factory=FedDifRCSettings)
    semanticfl: SemanticFLSettings = field(default_factory=SemanticFLSettings)

    def __post_init__(self) -> None:
        one_of("name", self.name, NAMES)
        one_of("calibration", self.calibration, SOURCES)
        one_of("standardise", self.standardise, ("none", "centre", "scale"))
        between("calibration_images", self.calibration_images, 1, 1_000_000)
        between("noise_seed", self.noise_seed, 0, 2**31 - 1)
        if self.uploads and not self.allow_upload:
            raise ValueError(
                f"{self.uploads} sends the clients' labelled private images to the server; allow_upload=true permits it"
            )

    @property
    def feddifrc_on(self) -> bool:
        return self.name in ("feddifrc", "both")

    @property
    def semanticfl_on(self) -> bool:
        return self.name in ("semanticfl", "both")

    @property
    def uploads(self) -> str:
        """The setting that makes private images leave the client, or nothing."""
        if self.feddifrc_on and self.feddifrc.location == "server":
            return "feddifrc.location=server"
        return "semanticfl.source=upload" if self.semanticfl_on and self.semanticfl.source == "upload" else ""
