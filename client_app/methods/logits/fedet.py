"""Fed-ET, client side (arXiv 2204.12703, in the adapted form of docs/methods/logits.md).

Server side: strategies/logits/fedet.py. Down: public samples, then consensus labels and the scores of those who
disagree. Up: class scores.
"""

from __future__ import annotations

from client_app.blocks.logits import LogitsClient, LogitsClientSettings
from florilegium.config.fields import section, setting


@section
class FedETClientSettings(LogitsClientSettings):
    """Client settings of Fed-ET. In the paper the server's model learns this; here every client does."""

    logit_weight: float = setting(
        0.05,
        "lambda: weight of diversity, the KL divergence to the scores of those who disagree",
        low=0,
        high=1e4,
    )
    distill_epochs: int = setting(
        2,
        "passes over the distillation set in a round; in the paper the server's model learns 128 batches of 64 samples",
        low=0,
        high=1_000_000,
    )
    replay: int = setting(
        480,
        "earlier public samples that stay in the distillation set, with the scores they came with (our choice)",
        low=0,
        high=1_000_000,
    )


class FedETClient(LogitsClient):
    """Answers public samples, then learns the consensus labels and the scores of those who disagree."""

    Settings = FedETClientSettings
