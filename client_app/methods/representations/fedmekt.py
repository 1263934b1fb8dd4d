"""FedMEKT, client side (arXiv 2307.13214). Server side: strategies/representations/fedmekt.py.

Down: the server's embeddings of public samples. Up: this client's own. Private data and weights stay.
Axes: N samples, B batch, D width. Sources and every free choice: docs/methods/representations.md.
"""

from __future__ import annotations

from torch import Tensor

from client_app.batches import ClientError
from client_app.blocks.representing import Codes, RepresentingClient, answer, crossing, learn, recalled
from client_app.client import Client
from florilegium.config.fields import section, setting
from florilegium.learning.fit import LearningRate
from florilegium.learning.losses import feature_kl
from florilegium.protocol.payloads import Answers, Features, PublicSet, Report, Samples
from florilegium.protocol.phases import crosses


@section
class FedMEKTClientSettings:
    """Client settings of FedMEKT, as in its released code; "our choice" marks what our notes on it do not say."""

    transfer: float = setting(0.1, "eta: weight of KL_T with the server's embeddings", low=0, high=1e4)
    second_layer: float = setting(
        0.04,
        "gamma: weight of KL_T with what the server's bodies give, where widths agree; 0: clients send one layer only",
        low=0,
        high=1e4,
    )
    temperature: float = setting(3.0, "T: temperature of KL_T", low=1e-3, high=1e3)
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
        1, "private epochs before a client sends its embeddings in a round (our choice)", low=0, high=1_000_000
    )
    transfer_epochs: int = setting(
        2, "passes over the public samples in a round; 2 local epochs in the released code", low=0, high=1_000_000
    )
    mix_private: bool = setting(
        True,
        "learn a private batch beside each public batch, as the task is part of the objective; here the task is "
        "cross-entropy, in the paper reconstruction",
    )
    learning_rate: LearningRate = setting(
        help="learning rate of AdamW; 4e-3 in the released code", factory=LearningRate
    )
    weight_decay: float = setting(0.01, "weight decay of AdamW", low=0, high=10)
    batch: int = setting(32, "private rows in a batch", low=2, high=100_000)
    public_batch: int = setting(64, "public samples in a batch", low=2, high=100_000)


class FedMEKTClient(RepresentingClient):
    """Learns its task while its embeddings of public samples follow the server's."""

    Settings = FedMEKTClientSettings

    @crosses(crossing)
    def represent(self, client: Client, question: Samples | PublicSet) -> Answers | Features:
        return answer(client, question, second=self.settings.second_layer > 0)

    def distill(self, client: Client, down: Features) -> Report:
        """Task loss + eta KL_T(server's embedding, own) + gamma KL_T of the second layer."""
        s, width, inputs = self.settings, client.width, recalled(client, down)
        teacher = {"image": down.image.to(client.device), "text": down.text.to(client.device)}
        if bad := [side for side in inputs if teacher[side].shape[1] not in (0, width, 2 * width)]:
            raise ClientError(f"the server's {bad[0]} embeddings are {teacher[bad[0]].shape[1]} wide, not {width}")
        taught = any(teacher[side].shape[1] for side in inputs)  # the server leaves out what is one point
        private = s.mix_private and not client.protection.settings.training  # DP-SGD lets public samples alone pass
        if len(down.ids) < 2 or not (taught or private):
            return Report({}, len(down.ids))

        def terms(rows: Tensor, codes: Codes) -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            for side, layers in ((name, both) for name, both in codes.items() if teacher[name].shape[1]):
                pairs = zip(
                    ("transfer", "second"),
                    (s.transfer, s.second_layer),
                    teacher[side][rows].split(width, 1),
                    layers,
                    strict=False,
                )
                for name, weight, given, own in pairs:
                    if weight and own.shape[1] == width:
                        found[f"{name}_{side}"] = weight * feature_kl(
                            given * width**0.5, own * width**0.5, s.temperature
                        )
            return found

        return Report(learn(client, s, inputs, terms, s.transfer_epochs), len(down.ids))
