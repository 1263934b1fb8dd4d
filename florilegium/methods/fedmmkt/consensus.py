"""The server's arithmetic of FedMMKT (arXiv 2510.12254): LabVote and MultiRepFusion, as pure functions.

The paper's formulas did not reach us; these are the reconstructions of docs/methods/fedmmkt.md, each free choice an
argument. Axes: K clients, N samples, C classes, D width, M attention tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from florilegium.learning.losses import entropy

CONFIDENCES = ("exp_neg", "inverse", "normalized")
ATTENTIONS = ("batch", "channel", "single", "none")
BLOCK = 1 << 22  # numbers of one block of a comparison of all samples with all: 16 MiB in float32


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
    score_NC = weights_KN.new_zeros(labels_KN.shape[1], classes)
    score_NC.scatter_add_(1, labels_KN.T, weights_KN.T)  # ballots as [K, N, C] would be hundreds of megabytes
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


@dataclass(frozen=True)
class Anchor:
    """What clients of one modality are compared with: a vector for each of all N samples."""

    whole_ND: Tensor

    @cached_property
    def unit_ND(self) -> Tensor:
        """The same vectors with length one."""
        return unit(self.whole_ND)


def cross_attention(
    query_ND: Tensor,
    other_ND: Tensor,
    kind: str = "batch",
    residual: float = 0.5,
    temperature: float | None = None,
    heads: int = 12,
    rows: int | None = None,
) -> Tensor:
    """Combine a client's representations with the other modality's average (eqs 6, 7); parameter-free.

    `batch`: attention over the N samples; `channel`: each vector is `heads` tokens; `single`: the literal one-key form,
    in which the softmax is 1 and the query vanishes; `none`: identity. `residual` is the share of the attended part.
    `rows` samples are worked on at a time (None: as many as fit into a block). ValueError for another kind.
    """
    anchor = Anchor(other_ND)
    parts = [
        attended(query_ND[at], anchor, at, kind, residual, temperature, heads) for at in blocks(len(query_ND), rows)
    ]
    return torch.cat(parts) if parts else query_ND


def attended(
    query_BD: Tensor,
    anchor: Anchor,
    at: slice,
    kind: str,
    residual: float,
    temperature: float | None = None,
    heads: int = 12,
) -> Tensor:
    """`cross_attention` of the samples `at` with all samples of the anchor. -> [B, D]."""
    B, D = query_BD.shape
    if kind == "none":
        return query_BD
    if kind == "single":
        found = anchor.whole_ND[at]
    elif kind == "batch":
        scale = temperature or D**-0.5
        found = softmax_((unit(query_BD) @ anchor.unit_ND.T).div_(scale)) @ anchor.whole_ND
    elif kind == "channel":
        heads = next(h for h in range(min(heads, D), 0, -1) if D % h == 0)
        q, kv = query_BD.view(B, heads, -1), anchor.whole_ND[at].view(B, heads, -1)
        weights = torch.softmax(q @ kv.transpose(1, 2) / math.sqrt(D // heads), -1)
        found = (weights @ kv).reshape(B, D)
    else:
        raise ValueError(f"cross_attention {kind!r} is none of {', '.join(ATTENTIONS)}")
    return (1 - residual) * query_BD + residual * found


def softmax_(x_BN: Tensor) -> Tensor:
    """Softmax over the last axis in the memory of `x_BN`, where no gradient needs it."""
    return torch.softmax(x_BN, -1, out=None if x_BN.requires_grad else x_BN)


def contrastive_score(rep_ND: Tensor, anchor_ND: Tensor, temperature: float = 0.1, include_self: bool = True) -> Tensor:
    """log-softmax of the match with the paired anchor against all anchors, by cosine (eqs 8, 28, 33). -> [N]."""
    anchor = Anchor(anchor_ND)
    parts = [scored(rep_ND[at], anchor, at, temperature, include_self) for at in blocks(len(rep_ND))]
    return torch.cat(parts) if parts else rep_ND.new_zeros(0)


def scored(rep_BD: Tensor, anchor: Anchor, at: slice, temperature: float, include_self: bool) -> Tensor:
    """`contrastive_score` of the samples `at` against all samples of the anchor. -> [B]."""
    if len(anchor.whole_ND) < 2:
        return rep_BD.new_zeros(len(rep_BD))  # nothing unrelated to compare with: all clients alike
    sim_BN = (unit(rep_BD) @ anchor.unit_ND.T).div_(temperature)
    paired_B = sim_BN.diagonal(at.start).clone()
    if not include_self:
        sim_BN.diagonal(at.start).fill_(-math.inf)
    return paired_B - sim_BN.logsumexp(-1)


def blocks(samples: int, rows: int | None = None) -> Iterator[slice]:
    """Slices of all samples, `rows` long; None: as long as a BLOCK allows."""
    rows = rows or max(1, BLOCK // max(1, samples))
    return (slice(first, min(first + rows, samples)) for first in range(0, samples, rows))


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


def mean_of(reps: Sequence[Tensor], clients: Sequence[int], chosen: Tensor | slice) -> Tensor:
    """Mean over these clients of the chosen samples, one client at a time in memory. -> [N, D]."""
    total = reps[clients[0]][chosen].clone()
    for k in clients[1:]:
        total += reps[k][chosen]
    return total / len(clients)


def anchors(
    reps: Sequence[Tensor], views: Sequence[Tensor], modalities: Sequence[str], chosen: Tensor | slice
) -> dict[str, Anchor]:
    """For each modality the mean of the clients of all OTHER modalities; of `views` where there is one modality."""
    everybody = range(len(reps))
    if len(set(modalities)) == 1:
        return {modalities[0]: Anchor(mean_of(views, everybody, chosen))}
    others = {m: [k for k in everybody if modalities[k] != m] for m in set(modalities)}
    return {m: Anchor(mean_of(reps, those, chosen)) for m, those in others.items()}


@torch.no_grad()
def fuse(
    reps_KND: Sequence[Tensor] | Tensor,
    modalities: list[str],
    *,
    augmented_KND: Sequence[Tensor] | Tensor | None = None,
    keep_N: Tensor | None = None,
    attention: str = "batch",
    residual: float = 0.5,
    attention_temperature: float | None = None,
    temperature: float = 0.1,
    include_self: bool = True,
    normalise: str = "joint",
) -> tuple[Tensor, Tensor]:
    """MultiRepFusion (eqs 6-10), or its one-modality form (eq 33) when all clients share a modality.

    The clients' representations may be one tensor or a tensor for each client; `keep_N` (bool) names the samples that
    take part. Samples are fused a block at a time, so that besides the representations only two anchors and one block
    stand in memory. Returns the fused representations [N', D] of the kept samples and the clients' weights [K, N'].
    """
    reps, K = list(reps_KND), len(reps_KND)
    if one := len(set(modalities)) == 1:
        attention = "none"
    given = None if augmented_KND is None else list(augmented_KND)
    views = given if given is not None and one and given[0].shape[-1] else reps
    everything: Tensor | slice = slice(None) if keep_N is None else keep_N
    anchor = anchors(reps, views, modalities, everything)
    count = len(reps[0]) if keep_N is None else int(keep_N.sum())
    place_N = None if keep_N is None else keep_N.nonzero()[:, 0]
    fused_ND, weight_KN = reps[0].new_empty(count, reps[0].shape[-1]), reps[0].new_empty(K, count)
    rows = max(1, min(BLOCK // max(1, count), BLOCK // max(1, K * reps[0].shape[-1])))
    for at in blocks(count, rows):
        chosen = at if place_N is None else place_N[at]
        mixed = [
            attended(r[chosen], anchor[m], at, attention, residual, attention_temperature)
            for r, m in zip(reps, modalities, strict=True)
        ]
        score = [scored(r, anchor[m], at, temperature, include_self) for r, m in zip(mixed, modalities, strict=True)]
        weight_KN[:, at] = client_weights(torch.stack(score), modalities, normalise)
        fused_ND[at] = torch.einsum("kb,kbd->bd", weight_KN[:, at], torch.stack(mixed))
    return fused_ND, weight_KN


def fuse_logits(logits_KNC: Tensor, modalities: list[str], temperature: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """l-FedMMKT (eqs 28-31): consensus label [N], fused logits [N, C], client weights [K, N].

    Rows are centred first: a softmax is blind to a constant, and so must the cosine be.
    """
    centred = logits_KNC - logits_KNC.mean(-1, keepdim=True)
    fused_NC, weight_KN = fuse(centred, modalities, attention="none", temperature=temperature)
    return fused_NC.argmax(-1), fused_NC, weight_KN
