"""Differential privacy of what clients upload: mechanisms, their settings, and the accountant.

Three mechanisms, alone or together (docs/robustness.md says what each protects and what not):
representations - the Gaussian mechanism on clipped rows, at the client (Dwork and Roth 2014, appendix A);
votes - Confident-GNMax, at the server that counts them (Papernot et al. 2018, arXiv 1802.08908);
training - DP-SGD at the client (Abadi et al. 2016), in client_app/privacy/dpsgd.py.
Axes: K clients, N samples, C classes, D width.
"""

from __future__ import annotations

import secrets

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from florilegium.config.privacy import Representations, Votes

EXTRA = "differential privacy needs opacus: pip install 'florilegium[privacy]'"


class PrivacyError(ValueError):
    """Privacy was asked for where it cannot be had; one line."""


# -- mechanisms ------------------------------------------------------------------------------------------------------


def secret() -> str:
    """What a source of noise is named by when nobody may foresee it."""
    return secrets.token_hex(16)


def gaussian(x_ND: Tensor, settings: Representations, random: torch.Generator) -> Tensor:
    """Rows shortened to the L2 norm C, with N(0, (sigma C)^2) on every value."""
    shorter_ND = x_ND * (settings.clip / x_ND.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
    return shorter_ND + settings.noise * settings.clip * torch.randn(x_ND.shape, generator=random, dtype=x_ND.dtype)


def confident_gnmax(
    label_KN: Tensor,
    classes: int,
    settings: Votes,
    random: torch.Generator,
    prior_NC: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of arXiv 1802.08908: is the largest count, with noise, at least T? Then the label of most noisy
    votes. `prior_NC` are votes of nobody (of the drawn class), added to the second count alone.

    Returns labels [N] and whether each is answered [N]; the label of one that is not means nothing.
    """
    count_NC = one_hot(label_KN, classes).sum(0).float()
    sure_N = torch.randn(len(count_NC), generator=random) * settings.threshold_noise
    answered_N = count_NC.amax(-1) + sure_N >= settings.threshold * len(label_KN)
    noisy_NC = count_NC + settings.noise * torch.randn(count_NC.shape, generator=random)
    return (noisy_NC if prior_NC is None else noisy_NC + prior_NC).argmax(-1), answered_N


def without_batch_norm(model: nn.Module) -> nn.Module:
    """The model with group norm in the place of batch norm, which mixes the rows of a batch (opacus's
    ModuleValidator.fix). PrivacyError when opacus is not installed."""
    try:
        from opacus.validators import ModuleValidator
    except ImportError as error:
        raise PrivacyError(EXTRA) from error
    return ModuleValidator.fix(model)
