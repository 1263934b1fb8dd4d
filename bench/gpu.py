"""Speed and memory of a full-size Stable Diffusion on this machine's GPU, with bare diffusers beside ours.

    python bench/gpu.py                      a pipeline of the size of Stable Diffusion 1.5 with random weights
    python bench/gpu.py --model DIR          a pipeline of your own, e.g. of SDXL
    python bench/gpu.py --tiny               small models on a CPU: shows that the script works, measures nothing

Each line of the table is measured in this process, one after the other, with the peak of the device's memory reset in
between. Nothing is fetched. The result is printed and written as JSON (--out).
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from florilegium.config.diffusion import DiffusionSettings, FeatureSettings, TuneSettings
from florilegium.contract.tiny_models import tokenizer, write_diffusion
from florilegium.diffusion.features import FeatureExtractor
from florilegium.diffusion.load import load
from florilegium.diffusion.tuning import TuneTexts

MODES = (None, "default", "reduce-overhead")
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # bf16, dense, FLOP/s


# -- a pipeline of Stable Diffusion 1.5's size ------------------------------------------------------------------------


def write_full(folder: Path) -> Path:
    """U-Net of 860 M weights, VAE of 84 M, text encoder of 12 layers; random weights in float16."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    spelling = tokenizer()
    spelling.model_max_length = 77
    text = CLIPTextConfig(
        vocab_size=len(spelling),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        bos_token_id=spelling.bos_token_id,
        eos_token_id=spelling.eos_token_id,
        pad_token_id=spelling.pad_token_id,
    )
    blocks = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2)
    pipe = StableDiffusionPipeline(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            sample_size=512,
            **blocks,
        ),
        CLIPTextModel(text),
        spelling,
        UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False),
        None,
        None,
        requires_safety_checker=False,
    )
    pipe.to(dtype=torch.float16)
    pipe.save_pretrained(folder)
    return folder


# -- measuring --------------------------------------------------------------------------------------------------------


class Device:
    """Clock and memory of a device."""

    def __init__(self, name: str) -> None:
        self.name, self.cuda = name, name.startswith("cuda")

    def reset(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    @property
    def peak(self) -> float | None:
        """GiB."""
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.cuda else None

    def seconds(self, work: Callable[[], Any], warm: int = 1, times: int = 2) -> float:
        """The shortest of `times`, after `warm` calls that are not counted."""
        for _ in range(warm):
            work()
        found = []
        for _ in range(times):
            self.wait()
            before = time.perf_counter()
            work()
            self.wait()
            found.append(time.perf_counter() - before)
        return min(found)


def settings(given: argparse.Namespace, **more: Any) -> DiffusionSettings:
    features = FeatureSettings(layers=[1], dims=[8], batch=given.features_batch, size=given.features_side)
    told = {"device": given.device, "dtype": given.dtype, "steps": given.steps, "batch": given.batch, "guidance": 7.5}
    return DiffusionSettings(**told | {"features": features} | more)


def prompts(count: int) -> tuple[list[str], list[int]]:
    return [f"a picture of a cat, number {n}." for n in range(count)], list(range(count))


def bare_synthesis(given: argparse.Namespace, device: Device, place: str) -> dict[str, Any]:
    """Diffusers as its documentation shows it: weights in the dtype, no more."""
    from diffusers import DiffusionPipeline

    device.reset()
    pipe = DiffusionPipeline.from_pretrained(place, torch_dtype=getattr(torch, given.dtype)).to(given.device)
    pipe.set_progress_bar_config(disable=True)
    texts, _ = prompts(given.batch)
    draw = lambda: pipe(texts, num_inference_steps=given.steps, guidance_scale=7.5, output_type="pt")  # noqa: E731
    return {"images_per_s": given.batch / device.seconds(draw), "peak_gib": device.peak}


def our_synthesis(given: argparse.Namespace, device: Device, place: str, mode: str | None) -> dict[str, Any]:
    device.reset()
    made = load(settings(given, compile=mode), place)
    texts, seeds = prompts(given.batch)
    taken = device.seconds(lambda: made.synthesize(texts, seeds), warm=2 if mode else 1)
    return {"images_per_s": given.batch / taken, "peak_gib": device.peak}


def unet_share(given: argparse.Namespace, device: Device, place: str, mode: str | None) -> dict[str, Any]:
    """FLOP/s of one U-Net call, counted by PyTorch, as a share of the card's rate of dense bf16 products."""
    from torch.utils.flop_counter import FlopCounterMode

    device.reset()
    made: Any = load(settings(given), place)
    decoder, count = made.decoder, 2 * given.batch
    noisy = torch.randn(count, *made.noise_shape).to(given.device, made.dtype)
    texts = made.view.texts(made.pipe, ["a"])[[0] * count].to(made.dtype)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            made.tuner.network(noisy, torch.tensor(500, device=given.device), texts)
        if mode:
            decoder.compile(mode=mode)
        at = torch.tensor(500, device=given.device)
        taken = device.seconds(lambda: made.tuner.network(noisy, at, texts), warm=3, times=5)
    rate = counter.get_total_flops() / taken
    name = torch.cuda.get_device_name() if device.cuda else "cpu"
    peak = next((value for card, value in PEAKS.items() if card in name), None)
    return {"tflops": rate / 1e12, "share": rate / peak if peak else None}


def bare_features(given: argparse.Namespace, device: Device, place: str) -> dict[str, Any]:
    """VAE encoder and the whole U-Net, once an image."""
    from diffusers import DiffusionPipeline

    device.reset()
    dtype, count = getattr(torch, given.dtype), given.features_batch
    pipe: Any = DiffusionPipeline.from_pretrained(place, torch_dtype=dtype).to(given.device)
    pixels = torch.rand(count, 3, given.features_side, given.features_side, device=given.device, dtype=dtype)
    made: Any = load(settings(given), place)
    texts = made.view.texts(made.pipe, [""])[[0] * count].to(dtype)
    network = made.view.network(getattr(pipe, made.view.network.part))

    @torch.no_grad()
    def look() -> None:
        network(pipe.vae.encode(pixels).latent_dist.mean, 300, texts)

    return {"images_per_s": count / device.seconds(look, times=4), "peak_gib": device.peak}


def our_features(given: argparse.Namespace, device: Device, place: str) -> dict[str, Any]:
    """The last layer, so that the whole U-Net runs too."""
    device.reset()
    told = settings(given)
    extractor = FeatureExtractor(place, told)
    last = FeatureSettings(layers=[extractor.blocks], dims=[8], batch=given.features_batch, size=given.features_side)
    extractor = FeatureExtractor(place, DiffusionSettings(**{**vars(told), "features": last}))
    count = given.features_batch
    images = torch.randint(0, 256, (count, 3, given.features_side, given.features_side), dtype=torch.uint8)
    ids = torch.arange(count)
    taken = device.seconds(lambda: extractor.levels(images, ids, 300, seed=0), times=4)
    return {"images_per_s": count / taken, "peak_gib": device.peak}


def tuning(given: argparse.Namespace, device: Device, place: str, lora: int | None) -> dict[str, Any]:
    """Two steps; the peak, and the bytes of a checkpoint beside those of the trained weights."""
    device.reset()
    made: Any = load(settings(given), place)
    count = 2 * given.tuning_batch
    images = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)
    texts, _ = prompts(count)
    told = TuneSettings(batch=given.tuning_batch, epochs=1, lora=lora, checkpointing=True, fresh_moments=True)
    before = time.perf_counter()
    made.finetune(images, TuneTexts(texts, texts), None, told, rounds=(1, 1), seed=0)
    device.wait()
    tensors, _ = made.state()
    size = sum(x.numel() * x.element_size() for x in tensors.values())
    trained = sum(p.numel() * 4 for p in made.tuner.trained.values())
    seconds = time.perf_counter() - before
    return {"peak_gib": device.peak, "s": seconds, "checkpoint_gib": size / 2**30, "of_trained": size / trained}


def measure(given: argparse.Namespace, place: str) -> dict[str, Any]:
    device, found = Device(given.device), {}
    found["bare synthesis"] = bare_synthesis(given, device, place)
    modes = MODES if given.compile else MODES[:1]
    for mode in modes:
        found[f"our synthesis{f', compile {mode}' if mode else ''}"] = our_synthesis(given, device, place, mode)
    found["bare features"] = bare_features(given, device, place)
    found["our features"] = our_features(given, device, place)
    for mode in modes:
        found[f"decoder call{f', compile {mode}' if mode else ''}"] = unet_share(given, device, place, mode)
    found["tuning, LoRA 16"] = tuning(given, device, place, 16)
    found["tuning, whole decoder"] = tuning(given, device, place, None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a pipeline directory; default: one of random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    given.batch, given.steps, given.tuning_batch = (2, 2, 2) if given.tiny else (16, 25, 16)
    given.features_batch, given.features_side = (2, 16) if given.tiny else (32, 224)
    with tempfile.TemporaryDirectory(prefix="florilegium-gpu-") as folder:
        torch.manual_seed(0)
        write = write_diffusion if given.tiny else write_full
        place = given.model or str(write(Path(folder, "pipeline")))
        found = measure(given, place)
    card = torch.cuda.get_device_name() if given.device.startswith("cuda") else "cpu"
    result = {"device": card, "torch": torch.__version__, "dtype": given.dtype, "batch": given.batch, "figures": found}
    for name, figures in found.items():
        shown = "  ".join(f"{key} {value:.3g}" for key, value in figures.items() if value is not None)
        print(f"{name:40} {shown}")
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
