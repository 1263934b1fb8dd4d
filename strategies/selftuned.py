"""Self-fine-tuning: the T2I model tuned on its own unfiltered samples (reference rows of Table II). No clients."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.nn.functional import layer_norm

from florilegium import seeds
from florilegium.config.bounds import between, one_of
from florilegium.config.diffusion import TuneSettings
from florilegium.diffusion.tuning import TuneTexts
from florilegium.federation.federation import Federation
from strategies.blocks.rounds import Rounds
from strategies.blocks.synthesis import draw_classes

TEXT = {"label": "label", "caption": "caption", "representation": "caption"}  # what each source is tuned to say


@dataclass
class SelfTunedSettings:
    """As FedMMKT's: the same samples a round and the same tuning."""

    source: str = "label"  # label (x, prompt) | caption (x, caption) | representation (x, caption, r)
    samples: int = 240
    class_sampling: str = "stratified"
    sample_guidance: float | None = None
    t2i: TuneSettings = field(default_factory=TuneSettings)

    def __post_init__(self) -> None:
        one_of("source", self.source, ("label", "caption", "representation"))
        between("samples", self.samples, 1, 1_000_000)
        between("sample_guidance", self.sample_guidance or 1, 0, 100)


class SelfTuned(Rounds):
    """Synthesize, caption, tune on all of it."""

    Settings = SelfTunedSettings
    asks_clients = False

    def __init__(self, settings: SelfTunedSettings, resources: Any) -> None:
        super().__init__(settings, resources)
        self.classes, self.seed = resources.classes, resources.seed
        self.generator = resources.generator()

    def round(self, r: int, federation: Federation) -> dict[str, float]:
        s = self.settings
        drawn_N = draw_classes(len(self.classes), s.samples, s.class_sampling, self.seed, r)
        prompts = [self.classes.prompt(c) for c in drawn_N.tolist()]
        noise = [seeds.seed_of(self.seed, "synthesis", r, n) for n in range(s.samples)]
        images = self.generator.synthesize(prompts, noise, s.sample_guidance)
        texts = prompts if s.source == "label" else self.resources.captioner()(images)
        how, features = replace(s.t2i, text=TEXT[s.source]), None
        if s.source == "representation":  # the paper uses a public ViT; ours is the image tower of the public CLIP
            features = self.resources.clip_score().encode_images(images)
            features = layer_norm(features, features.shape[-1:])
        return self.generator.finetune(
            images,
            TuneTexts(label=prompts, full=texts),
            features,
            how,
            rounds=(r, self.num_rounds),
            seed=seeds.seed_of(self.seed, "t2i", r),
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return self.generator.state()

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.generator.restore(tensors, meta)
