"""Random views of the pictures for the models that must recognise them; B pictures, 3 x S x S, in [-1, 1]."""

import numpy as np
import torch
import torch.nn.functional as F

SIDE = 64  # standard ResNet stems halve twice; doubling the 32 pixels leaves them 16x16 places to look at


def enlarged(images: torch.Tensor) -> torch.Tensor:
    """B x 3 x SIDE x SIDE, bilinear."""
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)


def augmented(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Random zoom, shift, small turn and flip at once, then contrast and brightness."""
    batch = len(images)
    zoom = rng.uniform(0.75, 1.2, batch)
    angle = rng.normal(0, 0.15, batch)
    mirror = np.where(rng.random(batch) < 0.5, -1, 1)
    theta = np.zeros((batch, 2, 3), np.float32)
    theta[:, 0, 0], theta[:, 0, 1] = mirror * np.cos(angle) * zoom, -np.sin(angle) * zoom
    theta[:, 1, 0], theta[:, 1, 1] = mirror * np.sin(angle) * zoom, np.cos(angle) * zoom
    theta[:, :, 2] = rng.uniform(-0.2, 0.2, (batch, 2))
    grid = F.affine_grid(torch.from_numpy(theta), images.shape, align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast = torch.from_numpy(rng.uniform(0.8, 1.2, (batch, 3, 1, 1)).astype(np.float32))
    bright = torch.from_numpy(rng.uniform(-0.1, 0.1, (batch, 1, 1, 1)).astype(np.float32))
    return (moved * contrast + bright).clamp(-1, 1)


def cut_out(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A grey square in a quarter of the pictures: no single detail may decide."""
    hole = images.shape[-1] * 5 // 16
    for i in np.flatnonzero(rng.random(len(images)) < 0.25):
        x, y = rng.integers(0, images.shape[-1] - hole, 2)
        images[i, :, y : y + hole, x : x + hole] = float(rng.uniform(-1, 1))
    return images


def mixed(images: torch.Tensor, target_BC: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup of half of the batches."""
    if rng.random() < 0.5:
        return images, target_BC
    share, order = float(rng.beta(0.4, 0.4)), torch.from_numpy(rng.permutation(len(images)))
    return images.lerp(images[order], share), target_BC.lerp(target_BC[order], share)
