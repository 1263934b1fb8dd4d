"""How a model was taught to remove noise: how latents become noisy, what the decoder is to say, what a loss weighs.

Axes: B samples.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor

from florilegium.config.diffusion import TuneSettings


class Diffusion:
    """The schedule of a diffusion model: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps, t a whole number."""

    def __init__(self, config: Any) -> None:
        self.schedule = DDPMScheduler.from_config(config)
        self.config = self.schedule.config

    def drawn(self, count: int, random: torch.Generator, settings: TuneSettings) -> Tensor:
        """[B] times, each equally often. ValueError where the settings ask for what only a flow has."""
        if settings.weighting != "none":
            raise ValueError(
                f"tuning.weighting: {settings.weighting} is for models with flow matching, not for this one"
            )
        return torch.randint(self.config.num_train_timesteps, (count,), generator=random)

    def noisy(self, latents: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """x_t."""
        return self.schedule.add_noise(latents, noise, time_B)

    def target(self, latents: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """What the decoder is to say: the noise, the velocity sqrt(a_t) eps - sqrt(1 - a_t) x_0, or x_0 itself."""
        kind = self.config.prediction_type
        if kind == "v_prediction":
            return self.schedule.get_velocity(latents, noise, time_B)
        return latents if kind == "sample" else noise

    def weights(self, time_B: Tensor, settings: TuneSettings) -> Tensor | None:
        """[B] of the samples' losses; None: all equal."""
        return None


class Flow:
    """Flow matching (arXiv 2403.03206): x_s = (1 - s) x_0 + s eps for s in [0, 1]; the decoder says eps - x_0.

    A time is s times 1,000, a fraction, as the transformer takes it. s is drawn by `tuning.density` (eq 19 of the
    paper), then shifted towards noise as the model's own scheduler does (eq 23).
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        self.steps = int(config["num_train_timesteps"])
        # a shift that depends on the resolution is 1 here: such a scheduler keeps no fixed one
        self.shift = 1.0 if config.get("use_dynamic_shifting") else float(config.get("shift", 1.0))

    def drawn(self, count: int, random: torch.Generator, settings: TuneSettings) -> Tensor:
        """[B] times in (0, 1000)."""
        given = {"logit_mean": 0.0, "logit_std": 1.0, "mode_scale": 1.29, "generator": random}
        u = compute_density_for_timestep_sampling(settings.density, count, **given)
        return self.shifted(u) * self.steps

    def shifted(self, s: Tensor) -> Tensor:
        """s moved towards noise: a s / (1 + (a - 1) s)."""
        return self.shift * s / (1 + (self.shift - 1) * s)

    def noisy(self, latents: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """x_s."""
        s = self._share(time_B, latents)
        return (1 - s) * latents + s * noise

    def target(self, latents: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """The velocity from data to noise, eps - x_0."""
        return noise - latents

    def weights(self, time_B: Tensor, settings: TuneSettings) -> Tensor | None:
        """[B]: 1; s ** -2 (sigma_sqrt); or 2 / (pi (1 - 2 s + 2 s ** 2)) (cosmap)."""
        if settings.weighting == "none":
            return None
        return compute_loss_weighting_for_sd3(settings.weighting, time_B / self.steps)

    def _share(self, time_B: Tensor, like: Tensor) -> Tensor:
        return (time_B / self.steps).to(like).view(-1, *[1] * (like.dim() - 1))


def noising(config: Any) -> Diffusion | Flow:
    """The noising that a pipeline's scheduler configuration describes."""
    flow = str(config.get("_class_name", "")).startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))
    return Flow(config) if flow else Diffusion(config)
