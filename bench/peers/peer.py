"""One run of the peer, in its own environment: `python bench/peers/peer.py GIVEN.json`; prints accuracy and seconds.

GIVEN has our complete settings (data, partition, model and start are taken of them), the peer's class and its settings.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from fluke import DDict, FlukeENV
from fluke.data import FastDataLoader
from fluke.evaluation import ClassificationEval
from fluke.nets import EncoderHeadNet

from client_app.client import Client
from client_app.opening import open_client
from florilegium.config import composition
from florilegium.data.datasets import Rows
from florilegium.protocol.codec import Header


class Encoder(torch.nn.Module):
    """Our model without its classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.classifier = torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.encode(x)


class Net(EncoderHeadNet):
    """Our model in the peer's form."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x))


def net(client: Client) -> Net:
    """The start of all clients: the fresh model of client 0."""
    return Net(Encoder(client.model), client.model.classifier)


class Split:
    """What the peer asks of a data splitter."""

    def __init__(self, clients: list[Client]) -> None:
        self.clients = clients

    def assign(self, n_clients: int, batch_size: int) -> Any:
        train = [
            FastDataLoader(*tensors(c, c.data.train), num_labels=c.classes, batch_size=batch_size, shuffle=True)
            for c in self.clients
        ]
        return (train, [None] * n_clients), None


def tensors(client: Client, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of rows, as our clients see them without augmentation."""
    return client.rows_as_inputs(rows, torch.arange(len(rows))), rows.labels


@torch.no_grad()
def accuracy(model: torch.nn.Module, x: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1 accuracy in evaluation mode."""
    model.eval()
    return (torch.cat([model(part) for part in x.split(256)]).argmax(-1) == labels).float().mean().item()


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    conf = composition.load({"settings": json.dumps(given["settings"]), "overrides": ""})
    with tempfile.TemporaryDirectory() as folder:
        clients = [
            open_client(conf, {"partition-id": k, "state-dir": folder}, Header("method", 0, 0))
            for k in range(len(conf.clients.mix))
        ]
    environment = FlukeENV()
    environment.set_seed(conf.seed)
    environment.set_device("cpu")
    environment.set_evaluator(ClassificationEval(eval_every=10**9, n_classes=clients[0].classes))
    environment.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=False)
    start = net(clients[0])
    client = given["client"] | ({"model": start} if given["own_model"] else {})
    module, name = given["peer"].split(".")
    made = getattr(import_module(f"fluke.algorithms.{module}"), name)(
        len(clients),
        Split(clients),
        DDict(client=client, server=given["server"], model=start.encoder if given["own_model"] else start),
    )
    if given["own_model"]:  # the peer makes a model of a name for each client, but gives all of them one that exists
        for one in made.clients:
            one.model = copy.deepcopy(one.model)
    seconds = run(made, given["rounds"])
    x, labels = tensors(clients[0], clients[0].data.test)
    judged = [c.model for c in made.clients] if given["personal"] else [made.server.model]
    found = [accuracy(model, x, labels) for model in judged]
    print(json.dumps({"accuracy": sum(found) / len(found), "seconds": seconds}))


def run(made: Any, rounds: int) -> float:
    """The rounds, and then the last global weights at every client; seconds of the rounds."""
    started, ended = time.perf_counter(), []

    def finish() -> None:
        ended.append(time.perf_counter())
        made.server.broadcast_model(made.clients)
        for client in made.clients:
            client.receive_model()

    made.finalize = finish
    made.run(rounds, 1.0)
    return ended[0] - started


if __name__ == "__main__":
    main()
