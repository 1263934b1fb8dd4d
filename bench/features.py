"""What looking at an image costs, as ratios in one run: features of the embedded model under 2 + 10 prompts an image.

    python bench/features.py [images]            # default 128; about a minute

- cold against bare: the extractor through the cache (hashes, noise, projection, pool, file) against nothing but one
  VAE encoding an image and one whole U-Net call a row, texts encoded beforehand, at the same batch size;
- against the released code's way: each (image, prompt) encodes its text and its image and runs the whole U-Net, one a
  call (`forward_ensemble` of the released featuriser takes one image a call) and, kinder, in batches of the same size;
- warm against cold: the same rows, read from the cache by another extractor.

One thread; CPU seconds, so that another process on the machine does not change the ratios. Bars: the issue asks for
0.9 of bare and for 5 times the released code's way.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from torch import Tensor

from florilegium import assets
from florilegium.config import composition
from florilegium.data.datasets import held_out
from florilegium.diffusion.cache import FeatureCache
from florilegium.diffusion.features import FeatureExtractor
from florilegium.protocol.pixels import scaled

NEGATIVES, REPEATS, SINGLE = 10, 3, 8


def seconds(work: Callable[..., object], *given: object) -> float:
    begun = time.process_time()
    work(*given)
    return time.process_time() - begun


def through_cache(folder: str, extractor: FeatureExtractor, asked: tuple) -> float:
    """The features of a request, and a look at each of their numbers."""
    return float(FeatureCache(folder).features(extractor, *asked).float().sum())


@torch.no_grad()
def bare(pipe: object, pixels: Tensor, text_UTW: Tensor, which_NQ: Tensor, batch: int) -> None:
    """One VAE encoding an image, one whole U-Net call a row."""
    for first in range(0, len(pixels), batch):
        latents = pipe.vae.encode(pixels[first : first + batch]).latent_dist.mean
        for q in range(which_NQ.shape[1]):
            pipe.unet(latents, 300, text_UTW[which_NQ[first : first + batch, q]])


@torch.no_grad()
def per_prompt(pipe: object, pixels: Tensor, prompts: list[str], which_NQ: Tensor, batch: int) -> None:
    """Text and image encoded again for each (image, prompt), the U-Net to its end."""
    for first in range(0, len(pixels), batch):
        for q in range(which_NQ.shape[1]):
            said = [prompts[p] for p in which_NQ[first : first + batch, q].tolist()]
            text = torch.cat([pipe.encode_prompt(prompt, "cpu", 1, False)[0] for prompt in said])
            latents = pipe.vae.encode(pixels[first : first + batch]).latent_dist.sample()
            pipe.unet(latents, 300, text)


def measure(count: int) -> dict[str, float]:
    """The ratios, medians of REPEATS interleaved measurements."""
    torch.set_num_threads(1)
    conf = composition.compose(["data=fashion", "diffusion=mini"])
    given = conf.diffusion
    place, batch = str(assets.path("models", given.model)), given.features.batch
    rows = held_out(conf.data, "test", "image")
    images, ids = rows.images[:count], rows.ids[:count]
    classes = ["trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot", "T-shirt"]
    prompts = ["", *(f"a photo of a {name}" for name in classes), "a photo of a hat"]
    which = torch.arange(2 + NEGATIVES).repeat(count, 1)
    extractor = FeatureExtractor(place, given)
    projection = extractor.fit(images, ids, seed=0)
    pixels = scaled(images).contiguous(memory_format=torch.channels_last)
    text = extractor.text(prompts, pooled=False)
    pipe = extractor.pipe
    asked, half = (images, ids, prompts, which, projection, 0), count // 2
    taken: dict[str, list[float]] = {name: [] for name in ("cold", "bare", "batched", "single", "warm")}
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory(prefix="florilegium-bench-") as folder:
            taken["cold"].append(seconds(through_cache, folder, extractor, asked) / count)
            taken["warm"].append(seconds(through_cache, folder, FeatureExtractor(place, given), asked) / count)
        taken["bare"].append(seconds(bare, pipe, pixels, text, which, batch) / count)
        taken["batched"].append(seconds(per_prompt, pipe, pixels[:half], prompts, which[:half], batch) / half)
        taken["single"].append(seconds(per_prompt, pipe, pixels[:SINGLE], prompts, which, 1) / SINGLE)
    cost = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "cold: ms an image": 1000 * cost["cold"],
        "cold throughput / bare VAE + U-Net (bar 0.9)": cost["bare"] / cost["cold"],
        "per-prompt re-encoding, one a call / cold (bar 5)": cost["single"] / cost["cold"],
        "per-prompt re-encoding, same batch / cold": cost["batched"] / cost["cold"],
        "cold / warm": cost["cold"] / cost["warm"],
        "warm: ms an image": 1000 * cost["warm"],
    }


if __name__ == "__main__":
    figures = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 128)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=1))
