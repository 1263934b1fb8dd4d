"""How a round of samples, answers and targets crosses the wire: in three exchanges, or joined to the next round's.

`separate` is the algorithm as written: train, represent and distill are asked one after the other. With `joined`,
targets wait for the next round's samples and one message carries both: the client learns the targets, trains and
answers. It does the same work in the same order; only an evaluation between two rounds meets it one lesson behind.
What is still owed after the last round is taught in an exchange of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from florilegium.federation.federation import Client, Exchange, Federation, Reply
from florilegium.learning.averaging import named, part
from florilegium.protocol.payloads import Joined, Nothing, Report, Samples, Targets

EXCHANGES = ("separate", "joined")


class Exchanges:
    """`answers`, then `teach`, then `taught` in every round; `kind` is one of EXCHANGES."""

    def __init__(self, kind: str) -> None:
        self.joined = kind == "joined"
        self.lessons: dict[int, Targets] = {}  # round -> its targets, while somebody is owed them
        self.owed: dict[int, int] = {}  # client -> the round whose targets it is owed

    def answers(self, federation: Federation, sent: dict[str, Samples], *expect: type, **how: Any) -> list[Reply]:
        """The cohort's answers to the samples of their modality, after a private training."""
        if not self.joined:
            federation.ask("train", Nothing(), Nothing, Report)
            return federation.ask("represent", lambda client: sent[client.modality], *expect, **how)
        bodies: dict[tuple[str, int], Joined] = {}

        def both(client: Client) -> Joined:
            r = self.owed.get(client.id, 0)
            if (client.modality, r) not in bodies:  # one object for all who get the same
                bodies[client.modality, r] = joined(sent[client.modality], r, self.lessons.get(r))
            return bodies[client.modality, r]

        exchange = federation.send("joined", both, *expect, **how)
        for client in exchange.clients.values():  # taught at most once, whatever becomes of the reply
            self.owed.pop(client.id, None)
        return federation.collect(exchange)

    def teach(
        self,
        federation: Federation,
        r: int,
        last: bool,
        targets: Targets,
        replies: list[Reply],
    ) -> list[Exchange]:
        """Send round `r`'s targets to those who answered, or owe them; after the `last` round nothing stays owed."""
        if self.joined:
            self.owed |= {reply.client.id: r for reply in replies}
            self.lessons = {n: t for n, t in {**self.lessons, r: targets}.items() if n in self.owed.values()}
            if not last:
                return []
            due = {n: [c for c in federation.clients if self.owed.get(c.id) == n] for n in sorted(self.lessons)}
            owed, self.lessons, self.owed = self.lessons, {}, {}
            return [federation.send("distill", owed[n], Report, Nothing, clients=due[n], needed=0) for n in due]
        return [federation.send("distill", targets, Report, Nothing, clients=[x.client for x in replies])]

    def taught(self, federation: Federation, exchanges: list[Exchange]) -> list[Reply]:
        """What the clients that were taught report."""
        return [reply for exchange in exchanges for reply in federation.collect(exchange)]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        for r, targets in self.lessons.items():
            tensors |= named(f"lesson{r}", vars(targets))
        return tensors, {"owed": {str(client): r for client, r in self.owed.items()}}

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.owed = {int(client): r for client, r in meta["owed"].items()}
        self.lessons = {r: Targets(**part(tensors, f"lesson{r}")) for r in set(self.owed.values())}


def joined(samples: Samples, r: int, targets: Targets | None) -> Joined:
    """Samples and round `r`'s targets, where there are any, in one payload."""
    t = targets or Targets(samples.ids[:0], samples.ids[:0], torch.zeros(0, 0))
    return Joined(r if targets else 0, samples.ids, t.ids, t.labels, t.representations, samples.images, samples.texts)
