"""The variational term that trains the learned variance (Nichol and Dhariwal 2021, section 3.1), noise held still.

Axes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from florilegium.diffusion.glide.sampling import cumulative_alphas


def variational_term(said: Tensor, start: Tensor, noisy: Tensor, time_N: Tensor, config: Any) -> Tensor:
    """[N] bits per number: KL(true posterior || model); at t = 0 the negative log-likelihood of the 8-bit pixels.

    `said` are the six channels [N, 6, H, W] of the network, `start` x0 and `noisy` x_t [N, 3, H, W]; only v, the last
    three channels, gets a gradient.
    """
    alphas = cumulative_alphas(config)
    a = torch.as_tensor(alphas)
    b = torch.cat([torch.ones(1, dtype=a.dtype), a[:-1]])
    beta = 1 - a / b
    low = torch.log(beta * (1 - b) / (1 - a))
    low[0] = low[1]  # the posterior of the first step has no variance
    tables = {
        "on_start": beta * b.sqrt() / (1 - a),
        "on_noisy": (1 - b) * (1 - beta).sqrt() / (1 - a),
        "low": low,
        "high": beta.log(),
        "whole": 1 / a.sqrt(),
        "part": (1 / a - 1).sqrt(),
    }
    at = {name: table[time_N.cpu()].to(noisy)[:, None, None, None] for name, table in tables.items()}
    eps, share = said[:, :3].detach(), (said[:, 3:] + 1) / 2
    log_variance = share * at["high"] + (1 - share) * at["low"]
    guess = at["whole"] * noisy - at["part"] * eps  # of x0, not clipped
    mean = at["on_start"] * guess + at["on_noisy"] * noisy
    true_mean = at["on_start"] * start + at["on_noisy"] * noisy
    kl = 0.5 * (
        log_variance
        - at["low"]
        + torch.exp(at["low"] - log_variance)
        + (true_mean - mean) ** 2 * torch.exp(-log_variance)
        - 1
    )
    likelihood = -discretised_log_likelihood(start, mean, 0.5 * log_variance)
    first = (time_N == 0).to(noisy.device)[:, None, None, None]
    return torch.where(first, likelihood, kl).flatten(1).mean(1) / math.log(2)


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """ln P of 8-bit pixels x in [-1, 1] under a normal of this mean and log deviation, by bins of 1 / 255."""

    def below(z: Tensor) -> Tensor:  # the tanh approximation of the normal's distribution function
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    centred, inverse = x - mean, torch.exp(-log_scale)
    up, down = below(inverse * (centred + 1 / 255)), below(inverse * (centred - 1 / 255))
    least = torch.tensor(1e-12, dtype=x.dtype, device=x.device)
    inside = torch.log(torch.maximum(up - down, least))
    black, white = torch.log(torch.maximum(up, least)), torch.log(torch.maximum(1 - down, least))
    return torch.where(x < -0.999, black, torch.where(x > 0.999, white, inside))
