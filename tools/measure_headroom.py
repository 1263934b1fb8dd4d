"""Measures what the generator can gain on the lexicon: its T2I accuracy before any tuning, and after tuning on all
private training pictures with their class prompts (the centralised bound).

Both are drawn with the same noise and judged by judges/lexicon-private. Writes headroom.json into the cache.
"""

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from rich.progress import track
from training_loop import device_of
from transformers import ResNetForImageClassification

from florilegium.config.data import DataSettings
from florilegium.data.datasets import Splits, modality_rows, open_dataset, read_rows
from florilegium.protocol.pixels import scaled

SIDE, STEPS, GUIDANCE, NOISE_SEED = 32, 12, 3.0, 2_000  # as conf/diffusion/mini.yaml draws
BATCH, EMPTY, DECAY = 32, 0.1, 0.98


@torch.no_grad()
def judged(pipe: StableDiffusionPipeline, prompts: list[str], judge: ResNetForImageClassification, each: int) -> dict:
    """{"accuracy", "by_class"} over `each` pictures of every prompt."""
    right = np.zeros(len(prompts))
    for k in track(range(each), "drawing"):
        noise = [torch.Generator().manual_seed(NOISE_SEED + 97 * c + 10_007 * k) for c in range(len(prompts))]
        how = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "height": SIDE, "width": SIDE}
        images = pipe(prompts, generator=noise, output_type="np", **how).images
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() * 2 - 1
        guess = judge(F.interpolate(x, (64, 64), mode="bilinear")).logits.argmax(1).numpy()
        right += guess == np.arange(len(prompts))
    return {"accuracy": right.sum() / each / len(prompts), "by_class": (right / each).round(3).tolist()}


def tuned(pipe: StableDiffusionPipeline, splits: Splits, args) -> UNet2DConditionModel:
    """The averaged U-Net after `args.steps` steps; every class is drawn equally often."""
    rows = read_rows(modality_rows(splits.private("train"), "image"), "image", SIDE, splits.place)
    prompts = [*map(splits.prompt, range(len(splits.classes))), ""]
    tokens = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        states = pipe.text_encoder(tokens)[0]
        views = (scaled(rows.images), scaled(rows.images).flip(3))
        latents = [torch.cat([pipe.vae.encode(b).latent_dist.mode() for b in view.split(128)]) for view in views]
        latents_N2 = torch.stack(latents, 1) * pipe.vae.config.scaling_factor
    counts = np.bincount(rows.labels.numpy(), minlength=len(splits.classes))
    weights = 1 / counts[rows.labels.numpy()]
    weights /= weights.sum()
    unet, average = pipe.unet.train(), copy.deepcopy(pipe.unet).eval()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.lr, weight_decay=0.01)
    rng = np.random.default_rng(args.seed)
    for step in track(range(args.steps), "tuning"):
        optimizer.param_groups[0]["lr"] = (
            args.lr * min(1, (step + 1) / 20) * (0.525 + 0.475 * np.cos(np.pi * step / args.steps))
        )
        chosen = rng.choice(len(weights), BATCH, p=weights)
        clean = latents_N2[chosen, rng.integers(0, 2, BATCH)]
        prompt = torch.where(torch.rand(BATCH) < EMPTY, len(prompts) - 1, rows.labels[chosen])
        noise, at = torch.randn_like(clean), ((torch.arange(BATCH) + torch.rand(BATCH)) / BATCH * 1000).long()
        guess = unet(pipe.scheduler.add_noise(clean, noise, at), at, states[prompt]).sample
        loss = F.mse_loss(guess, pipe.scheduler.get_velocity(clean, noise, at))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for mean, value in zip(average.parameters(), unet.parameters(), strict=True):
                mean.lerp_(value, 1 - min(DECAY, (step + 1) / (step + 10)))
    return average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--each", type=int, default=16, help="pictures of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="the CPU in any case")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path(".cache/assets"))
    parser.add_argument("--assets", type=Path, default=Path("assets"))
    args = parser.parse_args()
    args.device = "cpu"
    device_of(args)
    splits = open_dataset(DataSettings(name="lexicon", path=str(args.assets / "data/lexicon"), image_size=SIDE))
    folder = args.assets / "models/judges/lexicon-private"
    judge = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    pipe = StableDiffusionPipeline.from_pretrained(args.assets / "models/mini-sd", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    prompts = [splits.prompt(label) for label in range(len(splits.classes))]
    found: dict = {"untuned": judged(pipe, prompts, judge, args.each)}
    print(json.dumps(found), flush=True)
    pipe.unet = tuned(pipe, splits, args)
    found |= {"centralised": judged(pipe, prompts, judge, args.each), "steps": args.steps, "each": args.each}
    (args.cache / "headroom.json").write_text(json.dumps(found) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
