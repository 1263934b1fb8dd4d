"""florilegium.learning.losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, layer_norm, logsigmoid, normalize


def entropy(p_NC: Tensor) -> Tensor:
    """Shannon entropy in nats of each row, [..., C] -> [...]."""
    p = p_NC.clamp_min(1e-12)
    return -(p * p.log()).sum(-1)


TDCL_FORMS = ("per_sample", "released_tiled")
NDCR_FORMS = ("l2_unit", "l2_raw", "kl", "kl_t", "cos")


def normalised(z_BD: Tensor) -> Tensor:
    """Affine-free LayerNorm over D: every client's representations on one scale."""
    return layer_norm(z_BD, z_BD.shape[-1:])


def feature_kl(teacher_BD: Tensor, student_BD: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of softmaxes over the D coordinates, mean over the batch, times temperature squared.

    The representation term of eq 13 of arXiv 2510.12254. No gradient reaches the teacher.
    """
    teacher = (teacher_BD.detach() / temperature).log_softmax(-1)
    student = (student_BD / temperature).log_softmax(-1)
    return kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def logit_kl(teacher_BC: Tensor, student_BC: Tensor, weight_B: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of softmaxes over classes, each sample times its weight, mean over the batch, times
    temperature squared. No gradient reaches the teacher."""
    teacher = (teacher_BC.detach() / temperature).log_softmax(-1)
    student = (student_BC / temperature).log_softmax(-1)
    kl_B = kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return (weight_B * kl_B).mean() * temperature**2


def logit_l1(teacher_BC: Tensor, student_BC: Tensor, weight_B: Tensor) -> Tensor:
    """Mean absolute difference of class scores, each sample times its weight (the digest of arXiv 1910.03581)."""
    return (weight_B[:, None] * (student_BC - teacher_BC.detach()).abs()).mean()


def unit_kl(teacher_BD: Tensor, student_BD: Tensor, temperature: float = 1.0, scaled: bool = False) -> Tensor:
    """KL(teacher || student) of softmaxes over D of unit vectors; `scaled`: times temperature squared."""
    kl = feature_kl(normalize(teacher_BD, dim=-1), normalize(student_BD, dim=-1), temperature)
    return kl if scaled else kl / temperature**2


def cosine_distance(teacher_BD: Tensor, student_BD: Tensor) -> Tensor:
    """1 - cosine, batch mean, between 0 and 2; no gradient reaches the teacher."""
    return (1 - cosine_similarity(student_BD, teacher_BD.detach(), dim=-1)).mean()


def info_nce(z_BD: Tensor, anchors_CD: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """-log of the share that the label's anchor has among all anchors by exp(cosine / temperature); batch mean."""
    cosines_BC = normalize(z_BD, dim=-1) @ normalize(anchors_CD, dim=-1).T
    return cross_entropy(cosines_BC / temperature, labels_B)


def model_contrast(z_BD: Tensor, near_BD: Tensor, far_BD: Tensor, temperature: float) -> Tensor:
    """-log(exp(n) / (exp(n) + exp(f))), n and f the cosines with `near` and `far` over the temperature; batch mean.

    The contrast between models of arXiv 2103.16257, and the intra-modal one of arXiv 2302.08888.
    """
    cosines_B2 = torch.stack([cosine_similarity(z_BD, near_BD), cosine_similarity(z_BD, far_BD)], 1)
    first_B = torch.zeros(len(z_BD), dtype=torch.int64, device=z_BD.device)
    return cross_entropy(cosines_B2 / temperature, first_B)


def pair_nce(image_BD: Tensor, text_BD: Tensor, match_BB: Tensor, temperature: float) -> Tensor:
    """Symmetric contrast of unit vectors (CLIP's loss): -log of a match's share among all by exp(cosine / temperature),
    the mean over a row's matches, over the batch and over both directions. `match_BB` is true where an image and a text
    belong together (at least on the diagonal)."""
    cosines_BB = image_BD @ text_BD.T / temperature
    weight_BB = match_BB.to(cosines_BB.dtype)

    def one_way(logits_BB: Tensor, weight_BB: Tensor) -> Tensor:
        return -(logits_BB.log_softmax(-1) * weight_BB).sum(-1).div(weight_BB.sum(-1)).mean()

    return (one_way(cosines_BB, weight_BB) + one_way(cosines_BB.T, weight_BB.T)) / 2


def soft_contrastive(
    image_BD: Tensor, text_BD: Tensor, match_BB: Tensor, scale: Tensor | float, shift: Tensor | float
) -> Tensor:
    """PCME's retrieval loss without sampling, as arXiv 2603.04890 trains it, summed over pairs, mean over B.

    l_ij = -scale |z_i - z_j| + shift says how likely a pair matches, p = e^l / (e^l + e^-l); the loss is -log of p, or
    of 1 - p where it does not match.
    """
    far_BB = (2 - 2 * image_BD @ text_BD.T).clamp_min(1e-12).sqrt()
    l_BB = shift - scale * far_BB
    return -logsigmoid(2 * torch.where(match_BB, l_BB, -l_BB)).sum() / len(image_BD)


def nearest(z_BD: Tensor, anchors_BPD: Tensor) -> Tensor:
    """[B, D]: of each sample's P anchors the one with the largest cosine."""
    if anchors_BPD.shape[1] == 1:
        return anchors_BPD[:, 0]
    cosines_BP = torch.einsum("bd,bpd->bp", normalize(z_BD.detach(), dim=-1), normalize(anchors_BPD, dim=-1))
    return anchors_BPD[torch.arange(len(z_BD)), cosines_BP.argmax(-1)]


def tdcl(
    z_BD: Tensor,
    positive_BD: Tensor,
    negative_BKD: Tensor,
    temperature: float,
    form: str = "per_sample",
    u_norm: str = "none",
) -> Tensor:
    """Text-driven diffusion contrast (arXiv 2507.06482): log(1 + sum_j exp(s_j- / tau) / exp(s+ / tau)), batch mean.

    s is the cosine, with `u_norm="mean_dist"` divided by U, the batch's mean distance to the representation.
    `released_tiled` is the released code's one scalar for the batch, which compares a sample with others' negatives
    (z is tiled 0..B-1, 0..B-1, ..., the negatives stand 0, 0, ..., 1, 1, ...).
    """
    z, plus, minus = (normalize(x, dim=-1) for x in (z_BD, positive_BD, negative_BKD))
    if form == "released_tiled":
        s_plus_B = (z * plus).sum(-1) / temperature
        s_minus = (z.repeat(minus.shape[1], 1) * minus.flatten(0, 1)).sum(-1) / temperature
        return torch.cat([s_plus_B, s_minus]).logsumexp(0) - s_plus_B.logsumexp(0)
    both_BQD = torch.cat([plus[:, None], minus], dim=1)
    s_BQ = torch.einsum("bd,bqd->bq", z, both_BQD)
    if u_norm == "mean_dist":
        far = torch.cdist(z.detach(), both_BQD.flatten(0, 1)).mean(0)  # over the batch, for each representation
        s_BQ = s_BQ / far.clamp_min(1e-6).view_as(s_BQ)
    s_BQ = s_BQ / temperature
    return (s_BQ.logsumexp(-1) - s_BQ[:, 0]).mean()


def ndcr(z_BD: Tensor, teacher_BD: Tensor, form: str = "l2_unit", temperature: float = 0.05) -> Tensor:
    """Noise-driven consistency (arXiv 2507.06482), batch mean; no gradient to the teacher.

    l2_raw: sum_q (z(q) - H(q))^2, the paper's; l2_unit: of unit vectors; cos: 1 - cosine; kl: of the softmaxes of unit
    vectors, the released code's; kl_t: that at `temperature`.
    """
    teacher_BD = teacher_BD.detach()
    if form in ("kl", "kl_t"):
        return unit_kl(teacher_BD, z_BD, temperature if form == "kl_t" else 1.0)
    if form == "l2_raw":
        return (z_BD - teacher_BD).square().sum(-1).mean()
    cosine_B = (normalize(z_BD, dim=-1) * normalize(teacher_BD, dim=-1)).sum(-1)
    return (1 - cosine_B).mean() if form == "cos" else (2 - 2 * cosine_B).mean()
