"""Settings of the text-to-image model: the generator, its captioner, its frozen features, its fine-tuning."""

from __future__ import annotations

from importlib.util import find_spec

from florilegium.config.bounds import between, one_of
from florilegium.config.fields import section, setting

BACKENDS = ("auto", "stable", "stable_xl", "stable_flow", "glide")
COMPILED = ("default", "reduce-overhead", "max-autotune")
SCHEDULERS = ("ddim", "ddpm", "dpm", "euler", "euler_ancestral", "lcm", "pndm", "unipc")
MANY = 10_000_000


@section
class CaptionSettings:
    """How the captioner describes an image. It draws nothing: the same image always gets the same caption."""

    batch: int = setting(64, "images that are captioned at once", low=1, high=100_000)
    beams: int = setting(1, "beams of the search; 1: greedy", low=1, high=64)
    min_tokens: int = setting(0, "shortest caption, in tokens", low=0)
    max_tokens: int = setting(24, "longest caption, in tokens", low=1, high=512)
    repetition_penalty: float = setting(1.0, "above 1: words that were said are less likely", low=0.1, high=10)
    prefix: str | None = setting(None, "first words that are given to the captioner")
    drop: str | None = setting(
        "a picture of",
        "first words that are removed from its caption, because the clients' own texts do not begin so",
    )

    def __post_init__(self) -> None:
        between("min_tokens", self.min_tokens, 0, self.max_tokens)


@section
class FeatureSettings:
    """Frozen features: what the layers of the frozen decoder give for an image (arXiv 2507.06482, 2603.19337)."""

    timestep: int = setting(300, "t: how much noise is added before the one U-Net call", low=0, high=999)
    layers: list[int] = setting(
        factory=lambda: [1, 2],
        help="up blocks of a U-Net, counted from 1 as in the paper (the mini U-Net has two); blocks of a transformer",
    )
    dims: list[int] = setting(factory=lambda: [64, 64], help="PCA width of each layer; their sum must be clients.width")
    pool: str = setting("l2norm", "pooling over the positions of a layer", choices=("l2norm", "gap", "rms"))
    size: int | None = setting(None, "pixels on a side that the VAE gets; null: the model's own", low=8, high=4096)
    posterior: str = setting("mean", "what is taken of the VAE's posterior", choices=("mean", "sample"))
    ensemble: int = setting(1, "noise draws whose feature maps are averaged; DIFT takes 8", low=1, high=MANY)
    calibration: int = setting(20_000, "tokens of a layer on which its PCA is fitted", low=1, high=MANY)
    pca: str = setting(
        "shared",
        "shared (fitted once, the same for all clients) or per_batch (as in the released code)",
        choices=("shared", "per_batch"),
    )
    batch: int = setting(64, "rows of one U-Net call", low=1, high=MANY)

    def __post_init__(self) -> None:
        if not self.layers or sorted(set(self.layers)) != list(self.layers) or self.layers[0] < 1:
            raise ValueError(f"layers must be rising numbers from 1, got {list(self.layers)}")
        if len(self.dims) != len(self.layers) or min(self.dims) < 1:
            raise ValueError(f"dims must give one width for each layer of {list(self.layers)}, got {list(self.dims)}")


@section
class DiffusionSettings:
    """The text-to-image model, and the models that describe and evaluate its images."""

    backend: str = setting("auto", "auto: chosen by the class that the model names", choices=BACKENDS)
    model: str = setting("mini-sd", "the T2I model: a name in assets/models, a pipeline directory or a hub id")
    captioner: str = setting(
        "mini-captioner",
        "captioner of transformers with its processor (BLIP, GIT, an encoder-decoder): asset, directory or hub id",
    )
    clip: str = setting("mini-clip", "open_clip model of the CLIP score: asset, directory or hub id")
    device: str = setting("cpu", "cpu, cuda, cuda:1, mps or auto (a GPU where there is one)")
    dtype: str = setting(
        "float32",
        "of the weights and of the computation; weights that are fine-tuned stay float32 beside it",
        choices=("float32", "bfloat16"),
    )
    compile: str | None = setting(
        None,
        "mode of torch.compile for the decoder: minutes at first, faster afterwards; reduce-overhead uses CUDA graphs",
        choices=(None, *COMPILED),
    )
    guidance: float = setting(3.0, "classifier-free guidance; 1 or less switches it off", low=0, high=100)
    steps: int = setting(
        12,
        "denoising steps; with the embedded model 20 steps draw one point better in 1.7 times the time",
        low=1,
        high=1000,
    )
    scheduler: str | None = setting(
        None, "sampler of the denoising; null: the pipeline's own", choices=(None, *SCHEDULERS)
    )
    distilled: str | None = setting(
        None,
        "LoRA weights with which one call of the decoder a step does what guidance needs two for: an asset, a "
        "directory or a hub id",
    )
    batch: int = setting(
        64, "images that are generated or encoded at once; it does not change them", low=1, high=100_000
    )
    threads: int | None = setting(
        None,
        "CPU threads of tuning and of drawing a batch; the cores that are left draw further batches side by side. "
        "null: one for a small decoder on a CPU, else all",
        low=1,
        high=100_000,
    )
    upsample: bool = setting(True, "GLIDE: the second model enlarges the images")
    upsample_steps: str = setting("fast27", "GLIDE: steps of the second model")
    size: int | None = setting(
        None, "pixels on a side of the images that are sent and evaluated; null: the model's own", low=1, high=4096
    )
    captions: CaptionSettings = setting(factory=CaptionSettings, help="how the captioner describes an image")
    features: FeatureSettings = setting(factory=FeatureSettings, help="frozen features of an image")

    def __post_init__(self) -> None:
        for key in ("model", "captioner", "clip"):
            if not getattr(self, key):
                raise ValueError(f"{key} is missing: name an asset, a directory or a hub id")
        one_of("device", self.device.split(":")[0], ("cpu", "cuda", "mps", "auto"))


@section
class TuneSettings:
    """How the server fine-tunes its T2I model (arXiv 2510.12254, eqs 11 and 12), for all arms of a run."""

    merge: str = setting(
        "add", "eq 11: how the representation joins the text; the paper does not say", choices=("token", "add", "time")
    )
    text: str = setting(
        "label",
        "text of a sample: the label's prompt, the caption, or both; mini captions are right for one image in four",
        choices=("label", "caption", "label+caption"),
    )
    label_only: float = setting(
        0.5, "with text=label+caption: probability that a sample gets the label's prompt alone", low=0, high=1
    )
    omission: float = setting(0.5, "p, eq 12: probability that the representation is left out", low=0, high=1)
    text_drop: float = setting(
        0.1,
        "probability of an empty text and no representation, which classifier-free guidance needs",
        low=0,
        high=1,
    )
    lr: float = setting(
        2.0e-4,
        "learning rate of Adam, the paper's; 5e-5 keeps the samples more diverse over many rounds",
        low=0,
        high=1,
    )
    epochs: int = setting(4, "passes over a round's samples", low=1, high=100_000)
    steps: int | None = setting(
        None,
        "steps of a round, equal for all arms; null: `epochs` passes, so that an arm with fewer samples is tuned less",
        low=1,
        high=1_000_000,
    )
    batch: int = setting(32, "samples of a step", low=1, high=100_000)
    balance: float = setting(
        0.5, "0: every sample once in a pass; 1: every label equally often; between: a mixture", low=0, high=1
    )
    clip: float = setting(1.0, "largest norm of the gradient", low=1e-6, high=1e6)
    ema: float = setting(
        0.999,
        "decay of the averaged weights that generate images: min(ema, (1 + step) / (10 + step))",
        low=0,
        high=1,
    )
    schedule: str = setting("cosine", "learning rate over all rounds", choices=("cosine", "constant"))
    lora: int | None = setting(
        None, "rank of the LoRA adapters on the attention; null: the whole decoder is trained", low=1, high=4096
    )
    checkpointing: bool = setting(
        False, "compute the decoder's activations twice in the place of keeping them: a third slower, far less memory"
    )
    fresh_moments: bool = setting(
        False,
        "Adam starts anew in each round; its moments are then no part of a checkpoint, which is half as large",
    )
    moments: str = setting(
        "float32",
        "how Adam's moments are held; int8: 8 bits a value, a scale for each block (arXiv 2110.02861), by bitsandbytes",
        choices=("float32", "int8"),
    )
    density: str = setting(
        "logit_normal",
        "flow matching: how the times of training are drawn (arXiv 2403.03206)",
        choices=("logit_normal", "mode", "uniform"),
    )
    weighting: str = setting(
        "none", "flow matching: what a time's loss weighs", choices=("none", "sigma_sqrt", "cosmap")
    )
    variational: bool = setting(False, "also train the variance channels of a decoder that has them (GLIDE)")

    def __post_init__(self) -> None:
        if self.moments == "int8" and find_spec("bitsandbytes") is None:
            raise ValueError("moments=int8 needs bitsandbytes: pip install 'florilegium[tuning]'")
