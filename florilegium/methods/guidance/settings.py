"""Guidance: what a frozen diffusion model adds to the loss of any client that averages weights.

FedDifRC (arXiv 2507.06482) and SemanticFL (arXiv 2603.19337). Here: the settings of both sides and the prompts under
which an image is looked at. The client's side is client_app/guidance, the server's strategies/blocks/guidance.py.
Axes: N samples, C classes, K negatives, Q = 2 + K prompts of an image.
"""

from __future__ import annotations

from dataclasses import dataclass

from florilegium.config.fields import section, setting
from florilegium.learning.losses import NDCR_FORMS, TDCL_FORMS
from florilegium.methods.guidance.anchors import AnchorSettings
from florilegium.methods.guidance.student import StudentSettings

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


@section
class FedDifRCSettings:
    """FedDifRC's terms. "Our choice" marks what paper and code do not say (docs/methods/feddifrc.md)."""

    tdcl: float = setting(1.0, "weight of the contrast (TDCL); 0 turns it off", low=0, high=1e4)
    ndcr: float = setting(1.0, "weight of the consistency (NDCR); 0 turns it off", low=0, high=1e4)
    temperature: float = setting(0.04, "tau: temperature of the contrast", low=1e-4, high=100)
    negatives: int = setting(
        10,
        "K: negatives of a sample; of prompts there are never more than wrong classes",
        low=1,
        high=1000,
    )
    negatives_from: str = setting(
        "prompts",
        "prompts (the paper: the sample's own image under the prompts of wrong classes) | images (the server's images "
        "of other classes, each under its own prompt; our choice)",
        choices=("prompts", "images"),
    )
    replay: float = setting(
        0.0,
        "weight of the head's cross-entropy on the unprompted features of the server's images of all classes (our "
        "choice); 0 turns it off",
        low=0,
        high=1e4,
    )
    tdcl_form: str = setting(
        "per_sample",
        "form of the contrast: per_sample (the paper) | released_tiled (the released code: one number a batch, "
        "wrong pairs)",
        choices=TDCL_FORMS,
    )
    u_norm: str = setting(
        "none",
        "U, the norm in the contrast: none (the released code) | mean_dist (cosine divided by U; what the paper "
        "may mean)",
        choices=("none", "mean_dist"),
    )
    ndcr_form: str = setting(
        "l2_unit",
        "form of the consistency: l2_unit (unit vectors; our choice) | l2_raw (the paper) | kl (the released "
        "code) | kl_t (KL at ndcr_temperature) | cos",
        choices=NDCR_FORMS,
    )
    ndcr_temperature: float = setting(0.05, "temperature of ndcr_form=kl_t", low=1e-4, high=100)
    grid: int = setting(
        8, "G, in segmentation: places on a side at which NDCR compares z with H (our choice)", low=1, high=128
    )
    noise_prompt: str = setting("", "prompt under which H, the feature of the consistency, is taken")
    condition: str = setting(
        "none",
        "none (the released code) | add_all_tokens: c_i, made of the client's own z, is added to every token of "
        "the prompt",
        choices=("none", "add_all_tokens"),
    )
    condition_scale: float = setting(0.1, "mean norm of c_i, as a share of the norm of the tokens", low=0, high=100)
    refresh: int = setting(10, "rounds after which features with condition are taken again", low=1, high=1_000_000)
    supervised: bool = setting(True, "false: the encoder learns without labels, and a linear probe on z is judged")
    similar_prompt: str = setting("a photo of a similar object", "without labels: prompt of the positive")
    visual_prompt: str = setting("a photo of a visual object", "without labels: prompt under which H is taken")
    other_prompt: str = setting("a photo of a {name}", "without labels: prompt of the negatives")
    other_names: list[str] | None = setting(
        None, "without labels: names of the negatives; null takes some names of Tiny-ImageNet's classes"
    )
    location: str = setting(
        "client",
        "where the diffusion model runs: client | server (the private images leave the client, so it needs "
        "allow_upload)",
        choices=("client", "server"),
    )

    def __post_init__(self) -> None:
        if not self.supervised and len(self.others) < self.negatives:
            raise ValueError(f"other_names has {len(self.others)} names for {self.negatives} negatives")
        if self.location == "server" and self.condition != "none":
            raise ValueError("condition needs the clients' own models: location must be client")
        if not self.supervised and (self.replay or self.negatives_from == "images"):
            raise ValueError("supervised=false knows no classes: replay must be 0 and negatives_from prompts")

    @property
    def shows_images(self) -> bool:
        """Whether the server sends features of images of its own."""
        return bool(self.replay) or (self.negatives_from == "images" and bool(self.tdcl))

    @property
    def others(self) -> list[str]:
        """Distinct names of negatives without labels."""
        return list(dict.fromkeys(OTHER_NAMES if self.other_names is None else self.other_names))


@section
class SemanticFLSettings:
    """SemanticFL's terms. "Our choice" marks what our notes on the paper do not say (docs/methods/semanticfl.md)."""

    form: str = setting(
        "student",
        "what z is held to: student (a net of the clients' size, distilled by the server from the diffusion model, "
        "gives each image a target of its own; our choice) | anchors (one target or a few for each class)",
        choices=("student", "anchors"),
    )
    start: str = setting(
        "student",
        "weights that the federation begins with: student (the server's, form=student) | fresh",
        choices=("student", "fresh"),
    )
    consistency: float = setting(
        6.0, "lambda_kd: weight of the consistency with the targets; 0 turns it off", low=0, high=1e4
    )
    replay: float = setting(
        1.0,
        "weight of the head's cross-entropy on features of the server's images of all classes (our choice); 0 turns it "
        "off",
        low=0,
        high=1e4,
    )
    contrast: float = setting(
        0.01, "lambda_con: weight of the contrast with the texts of the classes; 0 turns it off", low=0, high=1e4
    )
    temperature: float = setting(0.05, "tau: temperature of the contrast", low=1e-4, high=100)
    consistency_form: str = setting(
        "cosine",
        "cosine (1 - cosine; our choice) | unit (KL of unit vectors at consistency_temperature; our choice) | literal "
        "(KL of raw vectors at temperature 1)",
        choices=("cosine", "unit", "literal"),
    )
    consistency_temperature: float = setting(
        0.05, "temperature of consistency_form=unit (our choice)", low=1e-4, high=100
    )
    consistency_scaled: bool = setting(False, "multiply the consistency by the square of its temperature")
    source: str = setting(
        "generated",
        "images that student and anchors are made of: public | generated | auto (public if there are any, else "
        "generated) | private_local (each client's own) | upload (private images leave the client, so it needs "
        "allow_upload)",
        choices=(*SOURCES, "private_local", "upload"),
    )
    images_per_class: int = setting(64, "images of a class that student and anchors are made of", low=1, high=100_000)
    text_encoder: str = setting(
        "pipeline",
        "encoder of the texts: pipeline (the diffusion model's own) | clip",
        choices=("pipeline", "clip"),
    )
    text_head: str = setting(
        "auto",
        "how z and texts of another width are compared: auto (learned if the widths differ) | learned | fixed (a "
        "random projection) | none",
        choices=("auto", "learned", "fixed", "none"),
    )
    anchors: AnchorSettings = setting(
        help="how the diffusion model's levels are joined, and how the anchors are made", factory=AnchorSettings
    )
    student: StudentSettings = setting(help="how the server distils the student", factory=StudentSettings)

    def __post_init__(self) -> None:
        if self.start == "student" and self.form != "student":
            raise ValueError(f"start=student needs form=student, form is {self.form}: choose start=fresh")
        if self.form == "student" and self.source == "private_local":
            raise ValueError("source=private_local gives each row its own target already: it goes with form=anchors")

    @property
    def teaches(self) -> bool:
        """Whether clients get the student as a teacher."""
        return self.form == "student" and bool(self.consistency)


@dataclass(frozen=True)
class Asked:
    """What guidance asks of the frozen model in a run. For each private row: `looked` encodings, `own` rows of the
    decoder, `kept` rows in the cache. Of the server's images: `server` of them, `shown` rows for each, `drawn` to be
    looked at."""

    looked: float = 0.0
    own: float = 0.0
    kept: float = 0.0
    server: float = 0.0
    shown: float = 0.0
    drawn: float = 0.0


@section
class GuidanceSettings:
    """What a frozen diffusion model adds to the clients' loss, for any method that averages weights (conf/guidance)."""

    name: str = setting("none", "terms that are added: none | feddifrc | semanticfl | both", choices=NAMES)
    prompt: str | None = setting(
        None, 'prompt of a class, e.g. "a photo of a {name}"; null takes the prompt of the data'
    )
    prompts: dict[str, str] = setting(
        help="prompt of each class, as {class: prompt}, in the place of `prompt`", factory=dict
    )
    calibration: str = setting(
        "auto",
        "images that the shared PCA is fitted on: public | generated | auto (public if there are any, else generated)",
        choices=SOURCES,
    )
    calibration_images: int = setting(512, "how many of these images at most", low=1, high=1_000_000)
    standardise: str = setting(
        "scale",
        "features minus the mean of the calibration images (centre), also divided by the deviation (scale), or as they "
        "are (none)",
        choices=("none", "centre", "scale"),
    )
    noise_seed: int = setting(
        0,
        "seed of the noise of features, of negatives and of anchors; a run takes its own seed. A fixed number lets "
        "runs of several seeds share the cache",
        low=0,
        high=2**31 - 1,
    )
    allow_upload: bool = setting(
        False,
        "true permits that labelled private images leave the clients (feddifrc.location=server, "
        "semanticfl.source=upload)",
    )
    cache: str | None = setting(
        None, "folder of the features; null takes .cache/features where the run starts, or the node's own state folder"
    )
    feddifrc: FedDifRCSettings = setting(help="FedDifRC's terms", factory=FedDifRCSettings)
    semanticfl: SemanticFLSettings = setting(help="SemanticFL's terms", factory=SemanticFLSettings)

    def __post_init__(self) -> None:
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

    def planned(self, classes: int, rounds: int) -> Asked | None:
        """The work of the frozen model, for `florilegium plan`; None without guidance. Images of the server count as
        drawn, where they may be (source auto)."""
        f, s, negatives = self.feddifrc, self.semanticfl, 0
        looked = own = kept = server = shown = drawn = 0.0
        if self.feddifrc_on:
            if not f.supervised:
                negatives = f.negatives
            elif f.negatives_from == "prompts":
                negatives = min(f.negatives, classes - 1)
            looked = 1.0 if f.condition == "none" else float(-(-rounds // f.refresh))
            own, kept = looked * (2 + negatives), 2.0 + negatives
            server, shown = self.calibration_images, 4.0 if f.shows_images else 2.0
            drawn = 0.0 if self.calibration == "public" else server
        if self.semanticfl_on:
            each = float(s.images_per_class * classes)
            local = s.source == "private_local"
            looked, own = looked + local, own + local
            server, shown = server + each, max(shown, 1.0)
            drawn += 0.0 if s.source in ("public", "upload") else each
        return Asked(looked, own, kept, server, shown, drawn) if self.name != "none" else None

    @property
    def one_architecture(self) -> str:
        """The setting that makes a guide fit clients of one architecture alone, or nothing."""
        return "semanticfl.form=student" if self.semanticfl_on and self.semanticfl.form == "student" else ""

    @property
    def without_maps(self) -> str:
        """The setting that has no form for representations that are maps, or nothing."""
        f = self.feddifrc
        wrong = {
            f"name={self.name}": self.semanticfl_on,
            f"feddifrc.condition={f.condition}": f.condition != "none",
            f"feddifrc.location={f.location}": f.location != "client",
            f"feddifrc.replay={f.replay}": bool(f.replay),
            f"feddifrc.supervised={f.supervised}": not f.supervised,
        }
        return next((setting for setting, there in wrong.items() if there), "")

    @property
    def uploads(self) -> str:
        """The setting that makes private images leave the client, or nothing."""
        if self.feddifrc_on and self.feddifrc.location == "server":
            return "feddifrc.location=server"
        return "semanticfl.source=upload" if self.semanticfl_on and self.semanticfl.source == "upload" else ""
