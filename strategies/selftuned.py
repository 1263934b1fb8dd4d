"""Self-fine-tuning: the T2I model tuned on its own unfiltered samples (the references of Table II). No clients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.functional import layer_norm

from florilegium import seeds
from florilegium.config.diffusion import TuneSettings
from florilegium.config.fields import section, setting
from florilegium.diffusion.tuning import TuneTexts
from florilegium.federation.federation import Federation
from strategies.blocks.rounds import Rounds
from strategies.blocks.synthesis import draw_classes

TEXT = {"label": "label", "caption": "caption", "representation": "caption"}  # what each source is tuned to say


@section
class SelfTunedSettings:
    """Settings of SelfTuned: the same samples a round as FedMMKT has, and the same tuning."""

    source: str = setting(
        "label",
        "what the T2I model is tuned on: label (image, prompt) | caption (image, caption) | representation (image, "
        "caption, representation of the image)",
        choices=("label", "caption", "representation"),
    )
    samples: int = setting(240, "N: synthetic samples of a round", low=1, high=1_000_000)
    class_sampling: str = setting(
        "stratified",
        "how the classes of the samples are drawn: stratified (equally many of each) | uniform",
        choices=("stratified", "uniform"),
    )
    sample_guidance: float | None = setting(
        None,
        "classifier-free guidance of the synthetic samples; null takes diffusion.guidance, which the evaluation uses",
        low=0,
        high=100,
    )
    t2i: TuneSettings = setting(help="how the T2I model is tuned, eqs. 11 and 12", factory=TuneSettings)


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
