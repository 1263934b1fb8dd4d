"""FedMKD, client side (Li et al., NeurIPS 2024, in the form of docs/methods/representations.md).

Server side: strategies/representations/fedmkd.py. Down: the server's features of public pairs. Up: this client's own.
Private data and weights stay. Axes: N pairs, B batch, D width.
"""

from __future__ import annotations

from torch import Tensor

from client_app.batches import ClientError
from client_app.blocks.representing import Codes, RepresentingClient, learn, recalled
from client_app.client import Client
from florilegium.config.fields import section, setting
from florilegium.learning.fit import LearningRate
from florilegium.protocol.payloads import Features, Report


@section
class FedMKDClientSettings:
    """Client settings of FedMKD; "our choice" marks what its public code does not have."""

    alignment: float = setting(1.0, "weight of the distance to the server's features, the anchors", low=0, high=1e4)
    public_set: str = setting(
        "proxy",
        "as the server has it: proxy (the client has its own copy) | synthetic (samples come down); set it by "
        "method.public_set",
        choices=("proxy", "synthetic"),
    )
    pretrain_epochs: int = setting(
        12, "private epochs at a client's first training (our choice)", low=0, high=1_000_000
    )
    local_epochs: int = setting(
        1, "private epochs before a client sends its features in a round (our choice)", low=0, high=1_000_000
    )
    align_epochs: int = setting(1, "passes over the public samples in a round; 1 in the code", low=0, high=1_000_000)
    mix_private: bool = setting(
        True, "learn a private batch beside each public batch, as FedMMKT's clients do (our choice)"
    )
    learning_rate: LearningRate = setting(help="learning rate of AdamW", factory=LearningRate)
    weight_decay: float = setting(0.01, "weight decay of AdamW", low=0, high=10)
    batch: int = setting(32, "private rows in a batch", low=2, high=100_000)
    public_batch: int = setting(64, "public samples in a batch", low=2, high=100_000)


class FedMKDClient(RepresentingClient):
    """Learns its task, says what it sees in public samples, and aligns that with what the server sees."""

    Settings = FedMKDClientSettings

    def distill(self, client: Client, down: Features) -> Report:
        """Global knowledge anchored alignment: 2 - 2 cos(own feature, the server's)."""
        s, inputs = self.settings, recalled(client, down)
        anchors = {"image": down.image.to(client.device), "text": down.text.to(client.device)}
        if bad := [side for side in inputs if anchors[side].shape[1] != client.width]:
            raise ClientError(f"the server's {bad[0]} features are {anchors[bad[0]].shape[1]} wide, not {client.width}")
        if not s.alignment or len(down.ids) < 2:
            return Report({}, len(down.ids))

        def terms(rows: Tensor, codes: Codes) -> dict[str, Tensor]:
            return {
                f"alignment_{side}": s.alignment * (2 - 2 * (z_BD * anchors[side][rows]).sum(-1)).mean()
                for side, (z_BD, _) in codes.items()
            }

        return Report(learn(client, s, inputs, terms, s.align_epochs), len(down.ids))
