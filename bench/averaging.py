"""What a client's local training costs beside the same mathematics as a bare PyTorch loop: ratios in one run.

    python bench/averaging.py [repeats]          # default 3; two minutes

Each method's `train` (weights in, E epochs, weights, control variates, heads and figures out, memory written) against a
loop of forward, backward, clip and step over the same batches of the same client. One thread; CPU seconds, so that
another process on the machine does not change the ratios. The issue's bar is 1.1.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from client_app.app import client_side
from client_app.opening import open_client
from florilegium.config import composition
from florilegium.learning.averaging import named
from florilegium.protocol.codec import Header
from florilegium.protocol.payloads import Weights

METHODS = ("fedavg", "fedprox", "scaffold", "fednova", "moon", "fednh")


def contrast(model: nn.Module, s: Any, width: int) -> tuple[nn.Module, Callable[[Any, Any], Any]]:
    """MOON's projection head and its term between two frozen models."""
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, s.projection))
    frozen = [(copy.deepcopy(model).eval(), copy.deepcopy(head)) for _ in range(2)]

    def term(z: Any, x: Any) -> Any:
        with torch.no_grad():
            others = [h(m.encode(x)) for m, h in frozen]
        near = torch.stack([cosine_similarity(head(z), o) for o in others], 1)
        return s.contrast * cross_entropy(near / s.temperature, torch.zeros(len(z), dtype=torch.int64))

    return head, term


def proximal(model: nn.Module, s: Any) -> Callable[[Any, Any], Any]:
    """FedProx's term."""
    pairs = [(p, p.detach().clone()) for p in model.parameters()]
    return lambda z, x: s.proximal / 2 * sum(((p - start) ** 2).sum() for p, start in pairs)


def bare(client: Any, s: Any, method: str) -> None:
    """The method's mathematics and nothing else."""
    model, beside, term, score = client.model, [], None, client.model.head
    zeros = [torch.zeros_like(p) for p in model.parameters()]
    if method == "fedprox":
        term = proximal(model, s)
    elif method == "moon":
        head, term = contrast(model, s, client.width)
        beside = list(head.parameters())
    elif method == "fednh":
        scale, w = nn.Parameter(torch.tensor(20.0)), normalize(torch.randn(client.classes, client.width), dim=-1)
        beside = [scale]

        def score(z: Any) -> Any:
            return scale * normalize(z, dim=-1) @ w.T

    trained = [*model.parameters(), *beside]
    optimizer = torch.optim.SGD(trained, lr=s.learning_rate.image, momentum=s.momentum, weight_decay=s.weight_decay)
    model.train()
    for epoch in range(s.local_epochs):
        for batch in client.private_batches(s.batch, epoch, "private"):
            z = model.encode(batch.inputs)
            loss = cross_entropy(score(z), batch.labels)
            if term is not None:
                loss = loss + term(z, batch.inputs)
            optimizer.zero_grad()
            loss.backward()
            if method == "scaffold":
                torch._foreach_add_([p.grad for p in model.parameters()], zeros)
            nn.utils.clip_grad_norm_(trained, s.clip)
            optimizer.step()
    if method == "fednh":  # the class means are part of the method
        client.encoded(client.rows_as_inputs(client.data.train, torch.arange(client.examples)))


def seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def measured(method: str, repeats: int, folder: str) -> float:
    """Median ratio of our CPU seconds to the bare loop's."""
    given = [f"method={method}", "data=fashion", "clients=ten", "references=none", f"out={folder}/{method}"]
    conf = composition.complete(composition.compose([*given, "partition@clients.partition=nid2"]))
    half = client_side(conf, "method")

    def client(step: int) -> Any:
        return open_client(conf, {"partition-id": 0}, Header("method", 1, step))

    down = half.train(client(1), Weights({})).tensors
    if method == "fednh":
        one = client(1)
        down = {n: v for n, v in down.items() if not n.startswith("classifier")}
        down |= named("fednh", {"prototypes": normalize(torch.randn(one.classes, one.width), dim=-1)})
    ratios = []
    for step in range(repeats + 1):
        ours, theirs = client(2 * step + 2), client(2 * step + 3)
        ours.model, theirs.model  # noqa: B018  (built before the clock starts)
        pair = (
            seconds(lambda ours=ours: half.train(ours, Weights(down))),
            seconds(lambda theirs=theirs: bare(theirs, half.settings, method)),
        )
        ratios.append(pair[0] / pair[1])
    return statistics.median(ratios[1:])  # the first warms up


def main() -> None:
    torch.set_num_threads(1)
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as folder:
        found = {method: round(measured(method, repeats, folder), 3) for method in METHODS}
    print(json.dumps({"client step / bare loop": found}))


if __name__ == "__main__":
    main()
