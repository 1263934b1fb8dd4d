"""Clients of a few numbers and a federation without messages, for weight averaging worked by hand.

Each client is the real client side over real memory on disk; its data are points of two classes in the plane. Uploads
pass the same checks as in `Federation`, and a bad one is named in `faults`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from client_app.batches import Batch, shuffled
from client_app.memory import Memory
from florilegium import seeds
from florilegium.config.privacy import PrivacySettings
from florilegium.federation.federation import Client as Known
from florilegium.federation.federation import Reply
from florilegium.models.bodies import Classifier
from florilegium.protocol.budget import Budget
from florilegium.protocol.payloads import Nothing
from florilegium.protocol.validation import WireError

WIDTH, CLASSES = 4, 2


def classifier(norm: bool = False, seed: int = 0) -> Classifier:
    """Two numbers in, four wide, two classes; with `norm`, batch norm and its counters."""
    with seeds.scoped("toy", seed):
        body = nn.Sequential(nn.Linear(2, 6), *([nn.BatchNorm1d(6)] if norm else []), nn.Tanh())
        return Classifier(body, 6, WIDTH, CLASSES)


@dataclass
class Points:
    """Rows of toy data."""

    x: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


class ToyClient:
    """What client sides use of `client_app.client.Client`."""

    modality, width, classes, device, architecture = "image", WIDTH, CLASSES, torch.device("cpu"), "toy"
    protection = SimpleNamespace(settings=PrivacySettings())

    def __init__(self, id_: int, folder: Path, examples: int = 16, norm: bool = False, round_: int = 1) -> None:
        self.id, self.examples, self.round = id_, examples, round_
        self.budget = Budget()
        self.conf = SimpleNamespace(seed=0, clients=SimpleNamespace(mix=[], representation="layer_norm"))
        random = seeds.generator("toy", "data", id_)
        labels = (torch.arange(examples) + id_) % CLASSES
        x = torch.randn(examples, 2, generator=random) + labels[:, None] * 2.0 + id_
        self.x, self.labels = x, labels
        self.data = SimpleNamespace(train=Points(x, labels, torch.arange(examples)), own=())
        self.folder, self.norm = folder / f"client-{id_}", norm
        self.memory = Memory(self.folder, round_, 1)
        self.model = classifier(norm)
        found = self.memory.read("model")
        self.previous_state = found or ({}, {"trained": 0})
        if found:
            self.model.load_state_dict(found[0])

    @property
    def classifier(self) -> Classifier:
        return self.model

    @property
    def trained(self) -> int:
        return int(self.previous_state[1]["trained"])

    def load(self, tensors: Any) -> Classifier:
        self.model.load_state_dict(dict(tensors))
        return self.model

    def save(self) -> None:
        self.memory.write("model", self.model.state_dict(), {"trained": self.trained + 1})

    def seed(self, *names: object) -> int:
        return seeds.seed_of(0, "client", self.id, self.round, *names)

    def private_batches(self, size: int, epoch: int, name: str):
        random = torch.Generator().manual_seed(self.seed("batches", name, epoch))
        for chosen in shuffled(self.examples, size, random):
            yield Batch(self.x[chosen], self.labels[chosen], chosen)

    def rows_as_inputs(self, rows: Any, chosen: torch.Tensor) -> torch.Tensor:
        return rows.x[chosen]

    def inputs(self, samples: Any) -> torch.Tensor:
        """A sample of class c is the point (c, c)."""
        return samples.ids[:, None].float().expand(-1, 2)

    @torch.no_grad()
    def logits(self, z_ND: torch.Tensor) -> torch.Tensor:
        return self.model.eval().head(z_ND)

    @torch.no_grad()
    def encoded(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.model.eval().encode(inputs)

    def encoded_rows(self, rows: Any, chosen: torch.Tensor | None = None) -> torch.Tensor:
        return self.encoded(self.rows_as_inputs(rows, torch.arange(len(rows.x)) if chosen is None else chosen))


class ToyFederation:
    """Runs `half` of each client in turn. `tamper(client id, upload)` may change an upload."""

    def __init__(
        self,
        half: Any,
        folder: Path,
        sizes: tuple[int, ...] = (16, 24),
        norm: bool = False,
        cohort: tuple[int, ...] | None = None,
        tamper: Callable[[int, Any], Any] = lambda k, up: up,
    ) -> None:
        self.half, self.folder, self.norm, self.tamper = half, folder, norm, tamper
        self.seed, self.round, self.faults = 0, 0, []
        self.clients = [Known(100 + k, k, "image", "toy", n, (0, 1)) for k, n in enumerate(sizes)]
        self.cohort = self.clients if cohort is None else [self.clients[k] for k in cohort]

    def ask(self, phase: str, payload: Any, *expect: type, clients: Any = None, check: Any = None, **_: Any):
        replies = []
        for known in clients or self.cohort:
            client = ToyClient(known.id, self.folder, known.examples, self.norm, self.round)
            client.memory.begin()
            down = payload(known) if callable(payload) else payload
            body = self.tamper(known.id, getattr(self.half, phase)(client, down))
            client.save()
            assert isinstance(body, expect or (Nothing,))
            try:
                if check is not None:
                    check(known, body)
            except WireError as error:
                self.faults.append((known.id, str(error)))
                continue
            replies.append(Reply(known, body))
        return replies


def rounds(strategy: Any, federation: ToyFederation, count: int) -> list[dict[str, float]]:
    """Round 0 and `count` more; each one's metrics."""
    metrics = []
    for r in range(count + 1):
        federation.round = r
        metrics.append(strategy.begin(federation) if r == 0 else strategy.round(r, federation))
    return metrics


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], **close: float) -> bool:
    """Whether two state dicts have the same names and nearly the same values."""
    return a.keys() == b.keys() and all(torch.allclose(a[n].float(), b[n].float(), **close) for n in a)
