"""FedGEMS, client side (arXiv 2110.11027, in the adapted form of docs/methods/logits.md).

Server side: strategies/logits/fedgems.py. Down: public samples, then their labels and the scores of whoever is
right. Up: class scores.
"""

from __future__ import annotations

from client_app.blocks.logits import LogitsClient, LogitsClientSettings
from florilegium.config.fields import section, setting


@section
class FedGEMSClientSettings(LogitsClientSettings):
    """Client settings of FedGEMS."""

    label_weight: float = setting(0.75, "e: weight of the cross-entropy with the labels", low=0, high=1e4)
    logit_weight: float = setting(0.25, "1 - e: weight of the KL divergence to the scores", low=0, high=1e4)
    local_epochs: int = setting(
        1, "private epochs before a client answers in a round; 10 in the paper", low=0, high=1_000_000
    )
    distill_epochs: int = setting(
        2, "passes over the distillation set in a round; 10 in the paper", low=0, high=1_000_000
    )
    replay: int = setting(
        480,
        "earlier public samples that stay in the distillation set, with the scores they came with (our choice)",
        low=0,
        high=1_000_000,
    )


class FedGEMSClient(LogitsClient):
    """Answers public samples, then learns their labels and the scores that the server selected."""

    Settings = FedGEMSClientSettings
