"""A federation that says three things in one message: what to learn from the last round, to train, and to answer.

A method asks for `train`, `represent` and `distill` as its paper does. Wrapped in `Joining`, its targets wait for the
next round's samples, and one message carries both: the client learns the targets, trains on its own data, and answers
the samples. It does the same work in the same order. Only an evaluation between two rounds finds a client before it
has learnt the last targets. After the last round, what is still owed goes out in an exchange of its own.

A method can be wrapped when it asks for training with `Nothing`, sends `Samples` and teaches `Targets`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from florilegium.federation.exchange import Client, Exchange, Reply
from florilegium.federation.federation import Federation, FederationError
from florilegium.learning.averaging import named, part
from florilegium.protocol.payloads import Joined, Nothing, Report, Samples, Targets

EXCHANGES = ("separate", "joined")  # what the setting `exchanges` of a method may be


@dataclass(frozen=True)
class Later:
    """What stands for an exchange whose message waits; `sent` are those that went out in its place."""

    sent: tuple[Exchange, ...] = ()

    @property
    def clients(self) -> dict[str, Client]:
        """The clients at work, by message id."""
        return {name: client for one in self.sent for name, client in one.clients.items()}


class Joining:
    """The federation `inner`, with one message a round from round 1 up to the `last`.

    Everything else a federation has is the inner one's.
    """

    def __init__(self, inner: Federation, last: int) -> None:
        self.inner, self.last = inner, last
        self.train_waits = False
        self.targets: dict[int, Targets] = {}  # round -> its targets, while somebody is owed them
        self.owed: dict[int, int] = {}  # client -> the round whose targets it is owed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def ask(self, phase: str, payload: Any, *expect: type, **how: Any) -> list[Reply]:
        """`send`, then `collect`."""
        return self.collect(self.send(phase, payload, *expect, **how))

    def send(self, phase: str, payload: Any, *expect: type, **how: Any) -> Exchange | Later:
        """As of a federation; a message that can wait for another gives a `Later`."""
        if phase == "train" and isinstance(payload, Nothing) and not how and self.inner.round:
            self.train_waits = True
            return Later()
        if phase == "represent" and self.train_waits:
            return self._send_joined(payload, expect, how)
        self._send_training(self.inner.cohort)
        if phase == "distill" and isinstance(payload, Targets):
            return self._owe(payload, self.inner.cohort if how.get("clients") is None else how["clients"])
        return self.inner.send(phase, payload, *expect, **how)

    def collect(self, exchange: Exchange | Later) -> list[Reply]:
        """The replies of an exchange; of one that waits, those of what went out in its place."""
        if isinstance(exchange, Later):
            return [reply for one in exchange.sent for reply in self.inner.collect(one)]
        return self.inner.collect(exchange)

    def _send_training(self, clients: list[Client]) -> None:
        """Ask for the training that waits, of clients that get no samples to answer."""
        if self.train_waits and clients:
            self.inner.ask("train", Nothing(), Nothing, Report, clients=clients)
        self.train_waits = False

    def _send_joined(self, payload: Any, expect: tuple[type, ...], how: dict[str, Any]) -> Exchange:
        asked = self.inner.cohort if how.get("clients") is None else how["clients"]
        self._send_training([client for client in self.inner.cohort if client not in asked])
        bodies: dict[tuple[int, int], Joined] = {}

        def both(client: Client) -> Joined:
            samples = payload(client) if callable(payload) else payload
            r = self.owed.get(client.id, 0)
            if (id(samples), r) not in bodies:  # one object for all who get the same
                bodies[id(samples), r] = joined(samples, r, self.targets.get(r))
            return bodies[id(samples), r]

        exchange = self.inner.send("joined", both, *expect, **how)
        for client in exchange.clients.values():  # taught at most once, whatever becomes of the reply
            self.owed.pop(client.id, None)
        return exchange

    def _owe(self, targets: Targets, clients: list[Client]) -> Later:
        """Keep this round's targets for their clients; in the last round send all that is owed."""
        r = self.inner.round
        self.owed |= {client.id: r for client in clients}
        self.targets = {n: t for n, t in {**self.targets, r: targets}.items() if n in self.owed.values()}
        if r < self.last:
            return Later()
        due = {n: [c for c in self.inner.clients if self.owed.get(c.id) == n] for n in sorted(self.targets)}
        owed, self.targets, self.owed = self.targets, {}, {}
        return Later(tuple(self.inner.send("distill", owed[n], Report, Nothing, clients=due[n], needed=0) for n in due))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The inner federation's, and what is owed."""
        tensors, meta = self.inner.state()
        for r, targets in self.targets.items():
            tensors |= named(f"targets{r}", vars(targets))
        return tensors, meta | {"owed": {str(client): r for client, r in self.owed.items()}}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Put back what `state` gave."""
        self.inner.restore(tensors, meta)
        self.owed = {int(client): r for client, r in meta["owed"].items()}
        self.targets = {r: Targets(**part(tensors, f"targets{r}")) for r in set(self.owed.values())}


def joined(samples: Samples, r: int, targets: Targets | None) -> Joined:
    """Samples and round `r`'s targets, where there are any, in one payload. FederationError for another question."""
    if not isinstance(samples, Samples):
        raise FederationError(f"exchanges: joined needs samples to send, the method sends {type(samples).__name__}")
    t = targets or Targets(samples.ids[:0], samples.ids[:0], torch.zeros(0, 0))
    return Joined(r if targets else 0, samples.ids, t.ids, t.labels, t.representations, samples.images, samples.texts)
