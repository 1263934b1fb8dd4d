"""FedMD, client side (arXiv 1910.03581, Algorithm 1, in the adapted form of docs/methods/logits.md).

Server side: strategies/logits/fedmd.py. Down: public samples, then the mean class scores. Up: class scores.
"""

from __future__ import annotations

from client_app.blocks.logits import LogitsClient, LogitsClientSettings
from florilegium.config.fields import section, setting


@section
class FedMDClientSettings(LogitsClientSettings):
    """Client settings of FedMD: digest the mean scores, then revisit the private data."""

    distance: str = setting(
        "l1", "distance to the mean scores: l1 (the paper's mean absolute error) | kl", choices=("l1", "kl")
    )
    label_weight: float = setting(
        0.0, "weight of the cross-entropy with the class of the highest mean score; none in the paper", low=0, high=1e4
    )
    local_epochs: int = setting(
        0, "private epochs before a client answers; none, as the revisit is the private training", low=0, high=1_000_000
    )
    distill_epochs: int = setting(1, "digest: passes over the public samples of a round", low=0, high=1_000_000)
    revisit_epochs: int = setting(4, "revisit: private epochs after the digest", low=0, high=1_000_000)
    mix_private: bool = setting(
        False, "true: learn a private batch beside each public batch, as FedMMKT's clients do (our choice)"
    )
    batch: int = setting(32, "private rows in a batch; 5 in the paper", low=2, high=100_000)
    distill_batch: int = setting(32, "public samples in a batch; 256 of 5,000 in the paper", low=2, high=100_000)


class FedMDClient(LogitsClient):
    """Answers public samples, digests the mean of all answers, revisits its private data."""

    Settings = FedMDClientSettings
