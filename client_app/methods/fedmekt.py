"""FedMEKT, client half (arXiv 2307.13214). Server half: strategies/fedmekt.py.

Down: the server's embeddings of public samples. Up: this client's own. Private data and weights stay.
Axes: N samples, B batch, D width. Sources and every free choice: docs/methods/representations.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from client_app.batches import ClientError
from client_app.blocks.representing import Codes, answer, crossing, learn, recalled
from client_app.blocks.training import fit_private
from client_app.client import Client
from florilegium.config.bounds import between, one_of
from florilegium.learning.fit import LearningRate
from florilegium.learning.losses import feature_kl
from florilegium.protocol.payloads import Answers, Features, Nothing, PublicSet, Report, Samples
from florilegium.protocol.phases import crosses


@dataclass
class FedMEKTClientSettings:
    """Client settings; the released code's values as our notes have them, `ours` where these are silent."""

    transfer: float = 0.1  # of KL_T with the server's embeddings
    second_layer: float = 0.04  # of KL_T with its body's outputs, where widths agree; 0: these are not sent
    temperature: float = 3.0  # T
    public_set: str = "proxy"  # as the server has it: proxy (the client's own copy) | synthetic (samples come down)
    pretrain_epochs: int = 12  # private epochs at a client's first training; ours
    local_epochs: int = 1  # private epochs before a round's embeddings; ours
    transfer_epochs: int = 2  # passes over the public samples, a private batch beside each; 2 local epochs
    mix_private: bool = True  # the task is part of the objective; adapted: cross-entropy for reconstruction
    learning_rate: LearningRate = field(default_factory=LearningRate)
    weight_decay: float = 0.01
    batch: int = 32
    public_batch: int = 64

    def __post_init__(self) -> None:
        one_of("public_set", self.public_set, ("proxy", "synthetic"))
        between("transfer", self.transfer, 0, 1e4)
        between("second_layer", self.second_layer, 0, 1e4)
        between("temperature", self.temperature, 1e-3, 1e3)
        for key in ("pretrain_epochs", "local_epochs", "transfer_epochs"):
            between(key, getattr(self, key), 0, 1_000_000)
        between("weight_decay", self.weight_decay, 0, 10)
        for key in ("batch", "public_batch"):
            between(key, getattr(self, key), 2, 100_000)


class FedMEKTClient:
    """Learns its task while its embeddings of public samples follow the server's."""

    Settings = FedMEKTClientSettings

    def __init__(self, settings: FedMEKTClientSettings) -> None:
        self.settings = settings

    def train(self, client: Client, _: Nothing) -> Nothing:
        s = self.settings
        fit_private(client, s, s.local_epochs if client.trained else s.pretrain_epochs, "private")
        return Nothing()

    @crosses(crossing)
    def represent(self, client: Client, question: Samples | PublicSet) -> Answers | Features:
        return answer(client, question, second=self.settings.second_layer > 0)

    def distill(self, client: Client, down: Features) -> Report:
        """Task loss + eta KL_T(server's embedding, own) + gamma KL_T of the second layer."""
        s, width, inputs = self.settings, client.width, recalled(client, down)
        teacher = {"image": down.image.to(client.device), "text": down.text.to(client.device)}
        if bad := [side for side in inputs if teacher[side].shape[1] not in (width, 2 * width)]:
            raise ClientError(f"the server's {bad[0]} embeddings are {teacher[bad[0]].shape[1]} wide, not {width}")
        if len(down.ids) < 2:
            return Report({}, len(down.ids))

        def terms(rows: Tensor, codes: Codes) -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            for side, layers in codes.items():
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
