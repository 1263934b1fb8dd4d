"""Self-fine-tuning (Table II of FedMMKT): each source says and shows the model something else."""

from types import SimpleNamespace

import pytest
import torch

from florilegium.config.diffusion import TuneSettings
from strategies.selftuned import SelfTuned, SelfTunedSettings


class Generator:
    """Remembers what it was tuned on."""

    def synthesize(self, prompts, noise, guidance=None):
        self.guidance = guidance
        return torch.zeros(len(prompts), 3, 4, 4, dtype=torch.uint8)

    def finetune(self, images, texts, representations, settings, *, rounds, seed):
        self.said, self.shown = getattr(texts, "label" if settings.text == "label" else "full"), representations
        return {}


class Classes(list):
    def prompt(self, c):
        return f"A picture of a {self[c]}."


@pytest.mark.parametrize(
    "source, said, shown",
    [("label", "A picture of a", False), ("caption", "a blob", False), ("representation", "a blob", True)],
)
def test_each_source_tunes_on_its_own_text(source, said, shown):
    generator = Generator()
    clip = SimpleNamespace(encode_images=lambda images: torch.randn(len(images), 8))
    resources = SimpleNamespace(
        classes=Classes(["cat", "dog"]),
        seed=0,
        generator=lambda: generator,
        captioner=lambda: lambda images: ["a blob"] * len(images),
        clip_score=lambda: clip,
    )
    settings = SelfTunedSettings(source=source, samples=4, sample_guidance=2.0, t2i=TuneSettings(text="label"))
    SelfTuned(settings, resources).round(1, None)
    assert all(text.startswith(said) for text in generator.said) and len(generator.said) == 4
    assert (generator.shown is not None) == shown and generator.guidance == 2.0
