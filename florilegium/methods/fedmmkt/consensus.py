"""The server's arithmetic of FedMMKT (arXiv 2510.12254): LabVote and MultiRepFusion, as pure functions.

The paper's formulas did not reach us; these are the reconstructions of docs/methods/fedmmkt.md, each free choice an
argument. Axes: K clients, N samples, C classes, D width, M attention tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from florilegium.learning.losses import entropy

CONFIDENCES = ("exp_neg", "inverse", "normalized")
ATTENTIONS = ("batch", "channel", "single", "none")


def confidence(p_NC: Tensor, kind: str = "exp_neg") -> Tensor:
    """How sure a prediction is: low entropy, high weight (eq 3, reconstructed). [..., C] -> [...].

    `exp_neg` exp(-H) in (0, 1]; `inverse` 1 / (H + 0.01); `normalized` 1 - H / log C in [0, 1].
    """
    h = entropy(p_NC)
    if kind == "exp_neg":
        return (-h).exp()
    if kind == "inverse":
        return 1 / (h + 1e-2)
    if kind == "normalized":
        return (1 - h / math.log(p_NC.shape[-1])).clamp(0, 1)
    raise ValueError(f"confidence {kind!r} is none of {', '.join(CONFIDENCES)}")


def bounded(confidence_KN: Tensor, kind: str = "exp_neg") -> Tensor:
    """Clip uploaded weights to the range `kind` can give: no client outvotes others by a made-up number."""
    return confidence_KN.clamp(0, 100.0 if kind == "inverse" else 1.0)


def balanced(confidence_KN: Tensor) -> Tensor:
    """Divide each client's weights by their mean, so that all clients weigh the same over a round (ours).

    A client that overfitted a few rows is sure of everything; without this its votes decide alone.
    """
    return confidence_KN / confidence_KN.mean(1, keepdim=True).clamp_min(1e-12)


def labvote(
    labels_KN: Tensor,
    weights_KN: Tensor,
    classes: int,
    threshold: float,
    prompt_N: Tensor | None = None,
    prompt_weight: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """LabVote: the confidence-weighted consensus (eq 4) and the vote filter (eq 5).

    Ties go to the lowest class. A sample is kept when at least `threshold` of the clients voted for its consensus.
    Returns labels [N], keep [N] (bool), votes [N] (how many clients voted for the consensus).
    """
    ballots_KNC = one_hot(labels_KN, classes).to(weights_KN.dtype)
    score_NC = (ballots_KNC * weights_KN[..., None]).sum(0)
    if prompt_N is not None and prompt_weight:
        score_NC = score_NC + prompt_weight * one_hot(prompt_N, classes)
    label_N = score_NC.argmax(-1)
    return label_N, enough_votes(labels_KN, label_N, threshold), (labels_KN == label_N).sum(0)


def enough_votes(labels_KN: Tensor, label_N: Tensor, threshold: float) -> Tensor:
    """Eq 5: at least `threshold` (rho) of the K clients voted for the consensus label. -> bool [N]."""
    needed = math.ceil(threshold * len(labels_KN) - 1e-9)  # rho * K, safe from floating point
    return (labels_KN == label_N).sum(0) >= needed


def votes_for(labels_KN: Tensor, weights_KN: Tensor, class_N: Tensor) -> Tensor:
    """The weighted votes that each sample got for the class `class_N`. -> [N]."""
    return ((labels_KN == class_N) * weights_KN).sum(0)


def unit(x: Tensor) -> Tensor:
    """Rows of length one."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def cross_attention(
    query_ND: Tensor,
    other_ND: Tensor,
    kind: str = "batch",
    residual: float = 0.5,
    temperature: float | None = None,
    heads: int = 12,
    rows: int = 4096,
) -> Tensor:
    """Combine a client's representations with the other modality's average (eqs 6, 7); parameter-free.

    `batch`: attention over the N samples; `channel`: each vector is `heads` tokens; `single`: the literal one-key form,
    in which the softmax is 1 and the query vanishes; `none`: identity. `residual` is the share of the attended part.
    """
    N, D = query_ND.shape
    if kind == "none":
        return query_ND
    if kind == "single":
        attended = other_ND
    elif kind == "batch":
        scale = temperature or D**-0.5
        key_ND = unit(other_ND)
        chunks = [torch.softmax(unit(q) @ key_ND.T / scale, -1) @ other_ND for q in query_ND.split(rows)]
        attended = torch.cat(chunks) if chunks else query_ND
    elif kind == "channel":
        heads = next(h for h in range(min(heads, D), 0, -1) if D % h == 0)
        q, kv = query_ND.view(N, heads, -1), other_ND.view(N, heads, -1)
        weights = torch.softmax(q @ kv.transpose(1, 2) / math.sqrt(D // heads), -1)
        attended = (weights @ kv).reshape(N, D)
    else:
        raise ValueError(f"cross_attention {kind!r} is none of {', '.join(ATTENTIONS)}")
    return (1 - residual) * query_ND + residual * attended


def contrastive_score(rep_ND: Tensor, anchor_ND: Tensor, temperature: float = 0.1, include_self: bool = True) -> Tensor:
    """log-softmax of the match with the paired anchor against all anchors, by cosine (eqs 8, 28, 33). -> [N]."""
    if len(rep_ND) < 2:
        return rep_ND.new_zeros(len(rep_ND))  # nothing unrelated to compare with: all clients alike
    sim_NN = unit(rep_ND) @ unit(anchor_ND).T / temperature
    paired_N = sim_NN.diagonal().clone()
    if not include_self:
        sim_NN = sim_NN.masked_fill(torch.eye(len(sim_NN), dtype=torch.bool), -math.inf)
    return paired_N - sim_NN.logsumexp(-1)


def client_weights(score_KN: Tensor, modalities: list[str], normalise: str = "joint") -> Tensor:
    """Softmax of the scores over clients, per sample (eq 9): over all, or within each modality and then halved."""
    if normalise == "joint":
        return score_KN.softmax(0)
    weights = torch.zeros_like(score_KN)
    kinds = sorted(set(modalities))
    for kind in kinds:
        rows = [k for k, m in enumerate(modalities) if m == kind]
        weights[rows] = score_KN[rows].softmax(0) / len(kinds)
    return weights


def other_means(reps_KND: Tensor, modalities: list[str]) -> dict[str, Tensor]:
    """For each modality the mean of the clients of all OTHER modalities, [N, D]."""
    of = {m: reps_KND[[k for k, n in enumerate(modalities) if n != m]] for m in set(modalities)}
    return {m: others.mean(0) for m, others in of.items()}


def fuse(
    reps_KND: Tensor,
    modalities: list[str],
    *,
    augmented_KND: Tensor | None = None,
    attention: str = "batch",
    residual: float = 0.5,
    attention_temperature: float | None = None,
    temperature: float = 0.1,
    include_self: bool = True,
    normalise: str = "joint",
) -> tuple[Tensor, Tensor]:
    """MultiRepFusion (eqs 6-10), or its one-modality form (eq 33) when all clients share a modality.

    Returns the fused representations [N, D] and the weights of the clients [K, N].
    """
    if len(set(modalities)) == 1:
        views = reps_KND if augmented_KND is None or not augmented_KND.shape[-1] else augmented_KND
        anchor = dict.fromkeys(modalities, views.mean(0))
        mixed_KND = reps_KND
    else:
        anchor = other_means(reps_KND, modalities)
        mixed_KND = torch.stack(
            [
                cross_attention(r, anchor[m], attention, residual, attention_temperature)
                for r, m in zip(reps_KND, modalities, strict=True)
            ]
        )
    score_KN = torch.stack(
        [contrastive_score(r, anchor[m], temperature, include_self) for r, m in zip(mixed_KND, modalities, strict=True)]
    )
    weight_KN = client_weights(score_KN, modalities, normalise)
    return torch.einsum("kn,knd->nd", weight_KN, mixed_KND), weight_KN


def fuse_logits(logits_KNC: Tensor, modalities: list[str], temperature: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """l-FedMMKT (eqs 28-31): consensus label [N], fused logits [N, C], client weights [K, N].

    Rows are centred first: a softmax is blind to a constant, and so must the cosine be.
    """
    centred = logits_KNC - logits_KNC.mean(-1, keepdim=True)
    fused_NC, weight_KN = fuse(centred, modalities, attention="none", temperature=temperature)
    return fused_NC.argmax(-1), fused_NC, weight_KN
