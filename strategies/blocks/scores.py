"""What FedMD, FedGEMS and Fed-ET share: clients' class scores of a round's public samples, and what a round records.

Axes: K clients, N samples, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from florilegium.federation.federation import Federation, Reply
from florilegium.protocol import costs
from florilegium.protocol.payloads import Logits, Report, Targets
from strategies.blocks.public_set import PublicRound, PublicSet, classifiers


def ask_scores(federation: Federation, public: PublicRound, classes: int, method: str) -> tuple[list[Reply], Tensor]:
    """Class scores [K, N, C] of the cohort's classifiers, each for its own modality's side, and who gave them."""
    asked, _ = classifiers(federation, method)
    replies = federation.ask(
        "represent",
        lambda client: public.sent[client.modality],
        Logits,
        clients=asked,
        bounds={"N": len(public), "C": classes},
        ids=public.ids,
    )
    return replies, torch.stack([x.body.logits for x in replies])


def warm_up(federation: Federation, public: PublicRound, classes: int, method: str) -> list[Reply]:
    """Let every classifier learn the public samples' own labels, before it ever saw a private row (FedMD)."""
    replies, _ = ask_scores(federation, public, classes, method)
    targets = Targets(public.ids, public.labels, torch.zeros(len(public), 0))
    return federation.ask("distill", targets, Report, clients=[x.client for x in replies])


def recorded(
    public_set: PublicSet,
    public: PublicRound,
    replies: list[Reply],
    logits_KNC: Tensor,
    label_N: Tensor,
) -> dict[str, float]:
    """How right the labels are, how often each client's own label is the same, and the bytes by formula."""
    votes = zip(replies, logits_KNC.argmax(-1), strict=True)
    agree = {f"labels/client_{x.client.id}_agrees": (v == label_N).float().mean().item() for x, v in votes}
    size = {m: costs.mean_bytes(sent) for m, sent in public.sent.items()}
    down = sum(size[x.client.modality] for x in replies) / len(replies)
    scores = 4.0 * logits_KNC.shape[-1]
    return (
        agree
        | public_set.judged(public, label_N)
        | {"bytes/formula_up": len(public) * scores, "bytes/formula_down": len(public) * (scores + down)}
    )
