"""Trains the mini AutoencoderKL (32x32x3 -> 8x8x4) on the public pictures and fits its scaling factor.

The whole autoencoder learns first; the encoder is then locked, so that the U-Net's latents stay what they are, and the
decoder goes on alone (as Stable Diffusion's ft-mse decoder did).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from pretraining import pretraining_examples, record_concepts
from training_loop import arguments, device_of, halved, record, train

from florilegium.protocol.pixels import scaled

KL_WEIGHT = 1e-6


def mini_vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )


def varied(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Flips, turns, shifts and swapped colours, so that unseen concepts are nothing new to the autoencoder."""
    if rng.random() < 0.5:
        images = images.flip(3)
    if rng.random() < 0.2:
        images = images.transpose(2, 3)
    if rng.random() < 0.3:
        images = images[:, torch.from_numpy(rng.permutation(3))]
    dx, dy = (int(v) for v in rng.integers(-3, 4, 2))
    padded = F.pad(images, (4, 4, 4, 4), mode="replicate")
    return padded[:, :, 4 + dy : 36 + dy, 4 + dx : 36 + dx]


def fit_scaling(vae: AutoencoderKL, images: torch.Tensor) -> float:
    """1 / standard deviation of the latents, which the U-Net expects to be about 1."""
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mode()
    return round(1 / latents.std().item(), 4)


def export(vae: AutoencoderKL, scaling: float, folder: Path) -> None:
    half = mini_vae().half()
    half.load_state_dict(halved(vae.state_dict()))
    half.register_to_config(scaling_factor=scaling)
    half.save_pretrained(folder)


def lock_encoder(vae: AutoencoderKL) -> None:
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)


def main() -> None:
    parser = arguments(__doc__, steps=2600, batch=48, lr=1e-3)
    parser.add_argument("--decoder-steps", type=int, default=2000, help="steps of the decoder alone; 0 for none")
    args = parser.parse_args()
    device, folder = device_of(args), args.out / "mini-sd" / "vae"
    data = pretraining_examples(args.cache)
    emoji = np.array([label < 24 for label in data.labels])
    weights = np.where(emoji, 0.8 / emoji.sum(), 0.2 / (~emoji).sum())
    weights /= weights.sum()
    vae = mini_vae().to(device, memory_format=torch.channels_last)

    def drawn(rng: np.random.Generator) -> torch.Tensor:
        groups = np.array_split(rng.choice(len(weights), args.batch, p=weights), 3)
        images = torch.cat([varied(scaled(data.images[group]), rng) for group in groups])
        return images.to(device, memory_format=torch.channels_last)

    def loss_of(rng: np.random.Generator) -> torch.Tensor:
        images = drawn(rng)
        posterior = vae.encode(images).latent_dist
        rebuilt = vae.decode(posterior.sample()).sample
        return F.mse_loss(rebuilt, images) + 0.05 * F.l1_loss(rebuilt, images) + KL_WEIGHT * posterior.kl().mean()

    def decoder_loss_of(rng: np.random.Generator) -> torch.Tensor:
        images = drawn(rng)
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mode()
        return F.mse_loss(vae.decode(latents).sample, images)

    probe = scaled(data.images[np.random.default_rng(0).choice(len(weights), 1024, p=weights)]).to(device)

    def save(average: AutoencoderKL, facts: dict) -> None:
        export(average, fit_scaling(average, probe), folder)
        record_concepts(folder, args.cache)
        record(args.cache, "vae", facts)

    train("vae", vae, loss_of, save, args)
    if args.decoder_steps:
        whole = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
        vae.load_state_dict(whole.state_dict())
        lock_encoder(vae)
        args.steps, args.lr = args.decoder_steps, args.lr / 2

        def save_decoder(average: AutoencoderKL, facts: dict) -> None:
            export(average, whole.config.scaling_factor, folder)
            record(args.cache, "vae-decoder", facts)

        train("vae-decoder", vae, decoder_loss_of, save_decoder, args)


if __name__ == "__main__":
    main()
