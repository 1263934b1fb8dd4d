"""Images a second of the embedded generator beside the bare loop of its U-Net and VAE: one ratio.

    python bench/synthesis.py [images]           # default 48; about a minute

*Ours* is `Generator.synthesize` as a run calls it: prompts encoded, noise of named seeds, guidance, the sampler, the
VAE, pixels as uint8. *Bare* is as many U-Net calls of the same batch size as the sampler makes, and one VAE decoding a
batch, and nothing else. One thread; CPU seconds. The bar is 0.9.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from florilegium.config import composition
from florilegium.resources import Resources

REPEATS = 3


def seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


@torch.no_grad()
def bare(pipe: Any, images: int, batch: int, calls: int, guided: bool, text_1TW: torch.Tensor) -> None:
    """The network calls of a synthesis: `calls` of the U-Net for each batch (twice as wide with guidance), one VAE."""
    side, channels = pipe.unet.config.sample_size, pipe.unet.config.in_channels
    for first in range(0, images, batch):
        count = min(batch, images - first)
        latents = torch.randn(count * (2 if guided else 1), channels, side, side)
        text = text_1TW.expand(len(latents), -1, -1)
        for step in range(calls):
            pipe.unet(latents, 1000 * (calls - step) // calls - 1, text)
        pipe.vae.decode(latents[:count])


def unet_calls(pipe: Any, work: Callable[[], object]) -> int:
    """How often `work` calls the U-Net."""
    counted = []
    hook = pipe.unet.register_forward_hook(lambda *_: counted.append(1))
    work()
    hook.remove()
    return len(counted)


def measure(images: int) -> dict[str, float]:
    """Medians of interleaved measurements."""
    torch.set_num_threads(1)
    conf = composition.compose(["data=lexicon", "diffusion=mini"])
    generator = Resources(conf).generator()
    pipe = generator.pipe
    prompts, noise, batch = ["A picture of a cat."] * images, list(range(images)), conf.diffusion.batch
    guided = conf.diffusion.guidance > 1
    one_batch = min(batch, images)
    calls = unet_calls(pipe, lambda: generator.synthesize(prompts[:one_batch], noise[:one_batch]))
    text = pipe.encode_prompt(prompts[0], "cpu", 1, False)[0]
    taken: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(REPEATS):
        taken["ours"].append(seconds(lambda: generator.synthesize(prompts, noise)))
        taken["bare"].append(seconds(lambda: bare(pipe, images, batch, calls, guided, text)))
    ours, alone = (statistics.median(taken[side]) for side in ("ours", "bare"))
    return {"ratio": alone / ours, "images_per_second": images / ours, "unet_calls": calls, "batch": batch}


if __name__ == "__main__":
    found = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 48)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))
