"""What the methods' pages of numbers share: classes with prompts and a server whose generator draws what is asked."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


class Classes(list):
    def prompt(self, c):
        return f"A picture of a {self[c]}."


@dataclass
class FakeResources:
    """Classes; a generator that draws a class as the grey of its number and remembers what it was tuned on; a captioner
    that reads the grey; a judge that believes it."""

    classes: Classes = field(default_factory=lambda: Classes(["rose", "tulip"]))
    width: int = 4
    seed: int = 0
    tuned: list = field(default_factory=list)
    drawn: torch.Tensor | None = None
    conf: None = None

    def generator(self):
        return self

    def captioner(self):
        return lambda images: [f"caption {int(x[0, 0, 0])}" for x in images]

    why_no_judge = ""

    def judge(self):
        return self

    noise_shape = (1, 2, 2)

    def synthesize(self, prompts, noise, guidance=None, latents=None):
        assert len(set(noise)) == len(prompts)
        self.latents = latents
        self.drawn = torch.tensor([self.classes.index(p[15:-1]) for p in prompts])
        return self.drawn.view(-1, 1, 1, 1).expand(-1, 3, 8, 8).to(torch.uint8).contiguous()

    def finetune(self, images, texts, representations, settings, *, rounds, seed):
        self.tuned.append((images[:, 0, 0, 0].tolist(), texts, representations, rounds))
        return {"t2i/loss": 1.0}

    def predict(self, images):
        return images[:, 0, 0, 0].long()

    def state(self):
        return {"w": torch.ones(1)}, {"steps": 3}

    def restore(self, tensors, meta):
        self.restored = (tensors, meta)
