"""Losses that methods share. Axes: B batch, C classes, D representation width."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import kl_div, layer_norm


def normalised(z_BD: Tensor) -> Tensor:
    """Affine-free LayerNorm over D: every client's representations on one scale."""
    return layer_norm(z_BD, z_BD.shape[-1:])


def feature_kl(teacher_BD: Tensor, student_BD: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of softmaxes over the D coordinates, mean over the batch, times temperature squared.

    The representation term of FedMMKT's eq 13. No gradient reaches the teacher.
    """
    teacher = (teacher_BD.detach() / temperature).log_softmax(-1)
    student = (student_BD / temperature).log_softmax(-1)
    return kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
