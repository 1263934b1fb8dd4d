"""How well images find their texts and texts their images: Recall@K under one stated protocol.

Every image is asked for its text among all different texts, every different text for one of its images among all
images. An answer is right when it is of the query's group: several images, and several texts, may show or say the same
thing. `rsum_2x_r1` is R@1 of both directions ("rsum R@1" of arXiv 2603.04890, over one gallery), `rsum_6` all six
figures; both are sums of shares, so 2 and 6 at best. Axes: N pairs, Q queries, G gallery, D width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

KS = (1, 5, 10)
HEADLINE = "rsum_2x_r1"
SUMS = (HEADLINE, "rsum_6")


class Pairs(Protocol):
    """N images and texts: what is asked, and of which group [N] each pair is."""

    @property
    def texts(self) -> tuple[str, ...]: ...

    @property
    def groups(self) -> Tensor: ...

    def __len__(self) -> int: ...


def different(texts: tuple[str, ...]) -> Tensor:
    """[G] rows of the first of each different text."""
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        first.setdefault(text, row)
    return torch.tensor(list(first.values()), dtype=torch.int64)


def recall(scores_QG: Tensor, match_QG: Tensor, ks: tuple[int, ...] = KS) -> dict[int, float]:
    """Share of queries with a match among the K best. Ties count against it, so equal vectors find nothing."""
    best_Q1 = scores_QG.masked_fill(~match_QG, -torch.inf).amax(-1, keepdim=True)
    before_Q = ((scores_QG >= best_Q1) & ~match_QG).sum(-1)
    return {k: (before_Q < k).float().mean().item() for k in ks}


def retrieval(image_ND: Tensor, text_ND: Tensor, pairs: Pairs) -> dict[str, float]:
    """retrieval/i2t/r1 ... retrieval/t2i/r10 and the sums, of unit vectors of `pairs`."""
    told_G = different(pairs.texts)
    scores_NG = image_ND @ text_ND[told_G].T
    match_NG = pairs.groups[:, None] == pairs.groups[told_G][None]
    figures: dict[str, float] = {}
    for way, scores, match in (("i2t", scores_NG, match_NG), ("t2i", scores_NG.T, match_NG.T)):
        figures |= {f"retrieval/{way}/r{k}": share for k, share in recall(scores, match).items()}
    sums = (figures["retrieval/i2t/r1"] + figures["retrieval/t2i/r1"], sum(figures.values()))
    return figures | dict(zip(SUMS, sums, strict=True))


def headline(figures: dict[str, float]) -> float:
    """What a validation split selects by: the mean of R@1 both ways, in [0, 1] like an accuracy."""
    return figures[HEADLINE] / 2


def protocol(pairs: Pairs) -> dict[str, int]:
    """The sizes of the two galleries."""
    return {"images": len(pairs), "texts": len(different(pairs.texts))}
