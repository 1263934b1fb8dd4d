"""Where FedAFD's released code differs from its paper: D1 to D9 of docs/methods/fedafd.md, shared by both sides.

`conf/fidelity/clean.yaml` is the default, `released.yaml` the code's behaviour. D10 (the best round is chosen on
validation) and D11 (one `device` setting) hold for every method here and have no switch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from florilegium.config.fields import section, setting

GENERATOR_LOSSES = ("nonsat", "minimax", "grl")
ERASED, DROPPED = 0.2, 0.1  # the released loader's: share of images with a hole, of words left out


@section
class Divergences:
    """What is done. The default is the paper's form or ours; the help text says what the released code does instead."""

    double_sigmoid: bool = setting(
        False, "D1: put a second sigmoid on the discriminator's output; true in the released code"
    )
    generator_loss: str = setting(
        "nonsat",
        "D2: loss of the encoder against the discriminator: nonsat (the released code) | minimax (the paper) | grl "
        "(gradient reversal)",
        choices=GENERATOR_LOSSES,
    )
    schedule: str = setting(
        "joint",
        "D3: joint (alignment and task in one step, the paper) | alternate (one after the other, the released code)",
        choices=("alternate", "joint"),
    )
    share_pool_branch: bool = setting(
        False, "D4: the local and the global branch of the fusion share one pooling layer; true in the released code"
    )
    reset_each_round: bool = setting(
        False, "D5: make the fusion and its optimizer anew each round; true in the released code"
    )
    kd: str = setting(
        "mse", "D6: distance of the distillation: mse (the released code) | l2 (the paper)", choices=("mse", "l2")
    )
    eval_mode: bool = setting(
        True,
        "D7: take features in evaluation mode; false in the released code, which takes them in training mode (but "
        "of pair clients in evaluation mode)",
    )
    same_view: bool = setting(
        True,
        "D8: targets and inputs show the same images and texts; false in the released code, where holes and "
        "missing words differ",
    )
    pair_encoder_step: bool = setting(
        True, "D9: alignment moves the encoders of pair clients; false in the released code"
    )


def other_view(images_N3SS: Tensor, texts: tuple[str, ...], random: torch.Generator) -> tuple[Tensor, tuple[str, ...]]:
    """D8: a black hole of half the side in some images, some words missing (at least one stays)."""
    images, side = images_N3SS[:].clone(), images_N3SS.shape[-1]
    for n in torch.nonzero(torch.rand(len(images), generator=random) < ERASED)[:, 0].tolist():
        y, x = torch.randint(side - side // 2 + 1, (2,), generator=random).tolist()
        images[n, :, y : y + side // 2, x : x + side // 2] = 0
    told = []
    for text in texts:
        words = text.split()
        kept = (torch.rand(len(words), generator=random) >= DROPPED).tolist()
        told.append(" ".join(word for word, keep in zip(words, kept, strict=True) if keep) or text)
    return images, tuple(told)
