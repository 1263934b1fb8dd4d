"""GLIDE's two samplers: ancestral with learned variance for the base model, DDIM for the upsampler.

Noise prediction; of six channels the first three are the noise, the others v, the learned variance. With a the
cumulative product of alphas at t, b that of the kept step before (1 before the first) and beta = 1 - a / b:
    x0 = clip(x / sqrt a - sqrt(1 / a - 1) eps, -1, 1)
    ancestral: mean = beta sqrt b / (1 - a) x0 + (1 - b) sqrt(1 - beta) / (1 - a) x,
        log variance = s ln beta + (1 - s) ln(beta (1 - b) / (1 - a)), s = (v + 1) / 2; no noise at the last step
    DDIM (eta 0): eps' from the clipped x0; x = sqrt b x0 + sqrt(1 - b) eps'
Tables are float64: diffusers' float32 ones are off by 1e-5 at the noisy end, and its DDIM takes no list of steps.
Axes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

FAST = "10,10,3,2,2"  # of `fast27`, where the last step 999 becomes 997
Network = Callable[[Tensor, int], Tensor]  # (x [N, 3, H, W], original timestep) -> [N, 6, H, W]


@dataclass(frozen=True)
class Steps:
    """The kept timesteps, ascending, with a (kept) and b (before) of each."""

    timesteps: list[int]
    kept: list[float]
    before: list[float]

    def __len__(self) -> int:
        return len(self.timesteps)

    def log_variances(self, i: int) -> tuple[float, float]:
        """(ln beta, ln of the posterior's variance); the first, which is never used for noise, has the second's."""
        a, b = self.kept[i], self.before[i]
        beta = 1 - a / b
        if i == 0 and len(self) > 1:
            return math.log(beta), self.log_variances(1)[1]
        return math.log(beta), math.log(max(beta * (1 - b) / (1 - a), 1e-20))


def cumulative_alphas(config: Any) -> np.ndarray:
    """float64 [T] of a scheduler's configuration. ValueError for a schedule that GLIDE has not."""
    count = int(config.num_train_timesteps)
    if config.beta_schedule == "squaredcos_cap_v2":
        at = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - at[1:] / at[:-1], 0.999)
    elif config.beta_schedule == "linear":
        betas = np.linspace(float(config.beta_start), float(config.beta_end), count)
    else:
        raise ValueError(f"beta schedule {config.beta_schedule!r}: GLIDE has squaredcos_cap_v2 and linear")
    return np.cumprod(1 - betas)


def respaced(spacing: str, total: int) -> list[int]:
    """The kept ones of `total` timesteps, ascending.

    "100": that many, evenly from first to last; "10,10,3,2,2": equal sections with that many each; "ddim50": the whole
    stride that gives so many; "fast27". ValueError for a spacing that cannot be had.
    """
    if spacing == "fast27":
        return [997 if t == 999 else t for t in respaced(FAST, total)]
    if spacing.startswith("ddim"):
        wanted = int(spacing.removeprefix("ddim"))
        for stride in range(1, total):
            if len(range(0, total, stride)) == wanted:
                return list(range(0, total, stride))
        raise ValueError(f"no whole stride keeps {wanted} of {total} timesteps")
    counts = [int(part) for part in spacing.split(",")]
    size, extra = divmod(total, len(counts))
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        length = size + (section < extra)
        if not 1 <= count <= length:
            raise ValueError(f"a section of {length} timesteps cannot keep {count}")
        step, at = (length - 1) / (count - 1) if count > 1 else 1.0, 0.0
        for _ in range(count):
            kept.append(start + round(at))
            at += step
        start += length
    return kept


def steps(config: Any, spacing: str) -> Steps:
    """The kept steps of a scheduler's configuration. ValueError as `cumulative_alphas` and `respaced`."""
    alphas = cumulative_alphas(config)
    timesteps = respaced(spacing, len(alphas))
    kept = [float(alphas[t]) for t in timesteps]
    return Steps(timesteps, kept, [1.0, *kept[:-1]])


def guided(text: Tensor, empty: Tensor, guidance: float) -> Tensor:
    """Six channels [N, 6, H, W]: noise moved away from that of the empty text; the variance of the text's call."""
    noise = empty[:, :3] + guidance * (text[:, :3] - empty[:, :3])
    return torch.cat([noise, text[:, 3:]], dim=1)


def clipped_start(x: Tensor, noise: Tensor, a: float) -> Tensor:
    """x0 [N, 3, H, W] as the noise says, within the range of pixels."""
    return (x / math.sqrt(a) - math.sqrt(1 / a - 1) * noise).clamp(-1, 1)


def ancestral(network: Network, x: Tensor, given: Steps, draw: Callable[[], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, x0) after each step, from the noisiest on. `draw` gives the noise [N, 3, H, W] of a step; not of the last."""
    for i in reversed(range(len(given))):
        said = network(x, given.timesteps[i]).float()
        a, b = given.kept[i], given.before[i]
        beta = 1 - a / b
        start = clipped_start(x, said[:, :3], a)
        x = beta * math.sqrt(b) / (1 - a) * start + (1 - b) * math.sqrt(1 - beta) / (1 - a) * x
        if i:
            high, low = given.log_variances(i)
            share = (said[:, 3:] + 1) / 2
            x = x + torch.exp(0.5 * (share * high + (1 - share) * low)) * draw()
        yield x, start


def ddim(network: Network, x: Tensor, given: Steps) -> Iterator[tuple[Tensor, Tensor]]:
    """(x, x0) after each step, without noise (eta 0)."""
    for i in reversed(range(len(given))):
        a, b = given.kept[i], given.before[i]
        start = clipped_start(x, network(x, given.timesteps[i]).float()[:, :3], a)
        noise = (x / math.sqrt(a) - start) / math.sqrt(1 / a - 1)
        x = math.sqrt(b) * start + math.sqrt(1 - b) * noise
        yield x, start
