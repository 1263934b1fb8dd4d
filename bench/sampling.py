"""Samplers of few steps beside the default one: what an image costs, and how good it is, on the embedded generator.

    python bench/sampling.py                        # lexicon, 30 images a class: twelve minutes
    python bench/sampling.py --data emoji --each 10 --samplers ddim:12,unipc:8
    python bench/sampling.py --samplers own:12,own:12+distilled,unipc:6,unipc:6+distilled

Every sampler draws the same prompts from the same noise, at the guidance of the evaluation. The judge, CLIP and the
diversity are those of a run (server_app/evaluation.py). One thread; CPU seconds, so that another process on the machine
hardly changes the ratios. `like the default` is the mean absolute difference of a pixel, of 255.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from florilegium.config import composition
from florilegium.resources import Resources
from server_app.evaluation import Evaluation

DEFAULT = "own:12"  # the pipeline's own scheduler, DDIM, at the steps of conf/diffusion/mini.yaml
SAMPLERS = [DEFAULT, "own:20", "own:8", "own:6", "dpm:12", "dpm:8", "dpm:7", "dpm:6", "unipc:8", "unipc:7", "unipc:6"]
DISTILLED = "+distilled"  # behind a sampler: with the adapters of --distilled, one call of the U-Net a step


@dataclass(frozen=True)
class Figures:
    """Of one sampler: CPU seconds an image, figures of the evaluation, and how its images differ from the default's."""

    sampler: str
    seconds: float
    accuracy: float
    clip_score: float
    diversity: float
    apart: float


class Kept:
    """A generator that keeps the images of its last call, and how long it took."""

    def __init__(self, generator: Any) -> None:
        self.generator, self.images, self.seconds = generator, torch.zeros(0), 0.0

    def synthesize(self, prompts: list[str], seeds: list[int]) -> Tensor:
        begun = time.process_time()
        self.images = self.generator.synthesize(prompts, seeds)
        self.seconds = time.process_time() - begun
        return self.images


def measure(data: str, each: int, samplers: list[str], adapters: str) -> list[Figures]:
    """The figures of each sampler, `own` or one of `diffusion.scheduler` with its steps, as unipc:8; `adapters` are of
    those that end in +distilled."""
    torch.set_num_threads(1)
    conf = composition.compose([f"data={data}", f"evaluation.images_per_class={each}"])
    resources, found, first = Resources(conf), [], None
    evaluation = Evaluation(conf, resources)
    for sampler in samplers:
        name, _, steps = sampler.removesuffix(DISTILLED).partition(":")
        changed = {"scheduler": None if name == "own" else name, "steps": int(steps)}
        if sampler.endswith(DISTILLED):
            changed["distilled"] = adapters
        resources.diffusion = replace(conf.diffusion, **changed)
        drawing = Kept(resources.generator())
        told = evaluation.generator(drawing).metrics
        first = drawing.images.float() if first is None else first
        found.append(
            Figures(
                sampler,
                drawing.seconds / len(drawing.images),
                told["t2i/accuracy"],
                told["t2i/clip_score"],
                told["t2i/diversity"],
                (drawing.images.float() - first).abs().mean().item(),
            )
        )
        print(line(found[-1], found[0]), flush=True)
    return found


def line(f: Figures, first: Figures) -> str:
    """One line of the table in Markdown."""
    share = f.seconds / first.seconds
    return (
        f"| `{f.sampler}` | {1000 * f.seconds:.0f} | {share:.2f} | {100 * f.accuracy:.1f} | {f.clip_score:.3f} "
        f"| {f.diversity:.3f} | {f.apart:.1f} |"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="lexicon")
    parser.add_argument("--each", type=int, default=30, help="images of a class")
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--distilled", default="mini-sd-guided", help="adapters of the samplers that say so")
    parser.add_argument("--json", help="a file for the figures")
    given = parser.parse_args()
    print("| sampler:steps | ms an image | / the first | accuracy, % | CLIP score | diversity | like the default |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    figures = measure(given.data, given.each, given.samplers.split(","), given.distilled)
    if given.json:
        with open(given.json, "w") as file:
            json.dump([asdict(one) for one in figures], file, indent=1)
