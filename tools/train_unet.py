"""Trains the mini Stable Diffusion's U-Net on cached latents and cached text states; needs train_vae and train_clip.

v-prediction under the cosine schedule: its last step is all noise, so a white or black background can be drawn from
pure noise, and its plain squared error weighs the noise levels about as min-SNR does.
"""

import hashlib
import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from pretraining import Examples, pretraining_examples, record_concepts
from rich.progress import track
from safetensors.torch import load_file, save_file
from training_loop import arguments, device_of, record, train
from transformers import CLIPTextModel, CLIPTokenizer

from florilegium.protocol.pixels import scaled

EMPTY_SHARE = 0.1  # prompts left empty, for classifier-free guidance
SHIFTS = ((0, 0), (1, 0), (-1, 1), (0, -1))  # pixels; each is cached with and without a flip


def mini_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def mini_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )


@torch.no_grad()
def cached_latents(vae: AutoencoderKL, data: Examples) -> torch.Tensor:
    """N x V x 4 x 8 x 8 scaled latents of V variants of every picture (fashion has one shift only)."""
    emoji = int((data.labels < len(data.names) - 10).sum())

    def encoded(images: torch.Tensor, told: str) -> torch.Tensor:
        batches = track(images.split(256), told)
        latents = [vae.encode(scaled(batch).to(vae.device)).latent_dist.mode().cpu() for batch in batches]
        return torch.cat(latents) * vae.config.scaling_factor

    variants = []
    for k, (dx, dy) in enumerate(SHIFTS):
        moved = F.pad(data.images[:emoji].float(), (1, 1, 1, 1), mode="replicate")[
            :, :, 1 + dy : 33 + dy, 1 + dx : 33 + dx
        ]
        for flipped in (moved, moved.flip(3)):
            variants.append(encoded(flipped, f"latents of shift {k}"))
    fashion = data.images[emoji:]
    upright, mirrored = encoded(fashion, "latents of fashion"), encoded(fashion.flip(3), "mirrored")
    both = torch.stack([upright, mirrored] * len(SHIFTS), 1)
    return torch.cat([torch.stack(variants, 1), both])


def encoder_mark(vae: AutoencoderKL) -> str:
    """Changes with the encoder's weights: latents cached under another mark are stale."""
    digest = hashlib.sha256()
    for name, value in sorted(vae.encoder.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def kept_latents(vae: AutoencoderKL, data: Examples, cache) -> torch.Tensor:
    """The cached latents, from the file of an earlier start where there is one."""
    path = cache / f"latents-{encoder_mark(vae)}.safetensors"
    if not path.exists():
        partial = path.with_suffix(".partial")
        save_file({"latents": cached_latents(vae, data).contiguous()}, partial)
        os.replace(partial, path)
    return load_file(path)["latents"]


@dataclass
class CachedPrompts:
    """states: P x T x D of all distinct prompts, the empty one first; forms[i]: the prompts of picture i."""

    states: torch.Tensor
    forms: list[list[int]]

    def draw(self, i: int, rng: np.random.Generator) -> int:
        if rng.random() < EMPTY_SHARE:
            return 0
        forms = self.forms[i]
        if len(forms) == 1 or rng.random() < 0.5:
            return forms[0]  # the class template, for pictures that have a class
        return forms[int(rng.integers(1, len(forms)))]


def prompt_forms(data: Examples, i: int) -> list[str]:
    caption = data.caption(i)
    forms = [data.class_prompt(i)] if data.labels[i] >= 0 else []
    forms += [caption.capitalize() + ".", caption, data.texts[i]]
    if data.tags[i]:
        forms.append(f"{data.texts[i]}, {', '.join(data.tags[i][:3])}")
    return forms


@torch.no_grad()
def cached_prompts(data: Examples, tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> CachedPrompts:
    index: dict[str, int] = {"": 0}
    forms = [[index.setdefault(p, len(index)) for p in prompt_forms(data, i)] for i in range(len(data.labels))]
    tokens = tokenizer(list(index), padding="max_length", truncation=True, return_tensors="pt").input_ids
    states = [encoder(batch.to(encoder.device))[0] for batch in track(tokens.split(512), "prompts")]
    return CachedPrompts(torch.cat(states), forms)


def pipeline(folder, unet: UNet2DConditionModel, dtype: torch.dtype) -> StableDiffusionPipeline:
    """The pipeline of the trained parts in folder around this U-Net."""
    half = mini_unet().to(dtype)
    half.load_state_dict(unet.state_dict())
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=half,
        scheduler=mini_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def main() -> None:
    parser = arguments(__doc__, steps=5000, batch=96, lr=1e-3)
    parser.add_argument("--compile", action="store_true", help="torch.compile the U-Net (needs a C++ compiler)")
    args = parser.parse_args()
    device = device_of(args)
    folder = args.out / "mini-sd"
    data = pretraining_examples(args.cache)
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).to(device)
    latents = kept_latents(vae, data, args.cache)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).to(device)
    prompts = cached_prompts(data, tokenizer, encoder)
    weights = data.sampling_weights(others=0.2)
    unet = mini_unet().to(device, memory_format=torch.channels_last)
    denoise = torch.compile(unet) if args.compile else unet
    scheduler = mini_scheduler()

    def loss_of(rng: np.random.Generator) -> torch.Tensor:
        chosen = rng.choice(len(weights), args.batch, p=weights)
        clean = latents[chosen, rng.integers(0, latents.shape[1], args.batch)].to(device)
        states = prompts.states[[prompts.draw(i, rng) for i in chosen]].to(device)
        noise = torch.randn_like(clean)
        # one step of each stratum: the loss jumps less from batch to batch
        at = (torch.arange(args.batch) + torch.rand(args.batch)) / args.batch
        at = (at * scheduler.config.num_train_timesteps).long().to(device)
        guess = denoise(scheduler.add_noise(clean, noise, at), at, states).sample
        return F.mse_loss(guess, scheduler.get_velocity(clean, noise, at))

    def save(average: UNet2DConditionModel, facts: dict) -> None:
        whole = pipeline(folder, average, torch.float16)
        whole.save_config(folder)  # model_index.json; the frozen parts are there, and their own tools write them
        whole.unet.save_pretrained(folder / "unet")
        whole.scheduler.save_pretrained(folder / "scheduler")
        record_concepts(folder, args.cache)
        record(args.cache, "unet", facts)

    train("unet", unet, loss_of, save, args, decay=0.999)


if __name__ == "__main__":
    main()
