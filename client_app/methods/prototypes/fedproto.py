"""FedProto, client side (arXiv 2105.00243, Algorithm 1, LocalUpdate). Server side: strategies/prototypes/fedproto.py.

Down and up: prototypes, the mean representations of classes. The model stays. Axes: B batch, C classes, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from client_app import evaluation
from client_app.batches import Batch
from client_app.blocks.own_model import OwnModelSettings, train_own
from client_app.blocks.prototypes import prototypes
from client_app.client import Client
from florilegium.config.fields import section, setting
from florilegium.data.datasets import Rows
from florilegium.protocol.payloads import Nothing, Prototypes, Report

PART = "prototypes"  # of the memory
PREDICTIONS = ("classifier", "nearest")


@section
class FedProtoClientSettings(OwnModelSettings):
    """The local training, the pull towards the global prototypes, and how a client predicts."""

    pull: float = setting(
        1.0, "lambda: weight of the distance to the global prototype of a row's class", low=0, high=1e4
    )
    predict: str = setting(
        "classifier",
        "how clients are judged: classifier (their own) | nearest (the nearest global prototype, as in the paper)",
        choices=PREDICTIONS,
    )


class FedProtoClient:
    """Private epochs that also bring each row's representation to the global prototype of its class."""

    Settings = FedProtoClientSettings

    def __init__(self, settings: FedProtoClientSettings) -> None:
        self.settings = settings

    def train(self, client: Client, down: Nothing | Prototypes) -> Prototypes:
        if isinstance(down, Nothing):
            return prototypes(client, train_own(client, self.settings))
        client.memory.write(PART, {"classes": down.classes, "means": down.means})
        global_CD, known_C = spread(down.classes, down.means, client)

        def regulariser(z_BD: Tensor, batch: Batch) -> dict[str, Tensor]:  # lambda L_R
            known_B = known_C[batch.labels]
            square_BD = (z_BD - global_CD[batch.labels]).square() * known_B[:, None]
            return {"prototype": self.settings.pull * square_BD.mean()}

        return prototypes(client, train_own(client, self.settings, regulariser))

    def evaluate(self, client: Client) -> Report:
        found = client.memory.read(PART)
        if self.settings.predict == "classifier" or found is None:
            return evaluation.evaluate(client)
        global_CD, known_C = spread(found[0]["classes"], found[0]["means"], client)

        def scores(rows: Rows) -> Tensor:
            z_ND = client.encoded_rows(rows)
            return -torch.cdist(z_ND, global_CD.cpu()).masked_fill(~known_C.cpu(), 1e9)

        return evaluation.classified(client, scores)


def spread(classes_G: Tensor, means_GD: Tensor, client: Client) -> tuple[Tensor, Tensor]:
    """Prototypes as a table of all classes [C, D], and which of them there are [C], on the client's device."""
    means_CD = torch.zeros(client.classes, client.width)
    known_C = torch.zeros(client.classes, dtype=torch.bool)
    means_CD[classes_G], known_C[classes_G] = means_GD, True
    return means_CD.to(client.device), known_C.to(client.device)
