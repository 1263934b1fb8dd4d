"""The server's view of the clients: ask them something, get checked, typed replies.

Every exchange is counted in the ledger; a reply that breaks the contract, raises or never comes is named there, left
out, and the round goes on with the others as long as the quorum holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from logging import WARNING
from typing import Any

import torch
from flwr.app import Message
from flwr.common import log
from flwr.serverapp import Grid
from torch import Tensor

from florilegium import seeds, wire
from florilegium.guard import Guard
from florilegium.wire import Header, Nothing, Profile, Report, WireError

POLL = 0.05  # seconds between two looks at the grid; Flower's own send_and_receive waits 3
Check = Callable[[Any, Any], None]  # (client, body): raises WireError, naming what is wrong with the body
OVERHEAD = frozenset({"profile", "evaluate"})  # phases that the papers' byte counts leave out


class FederationError(RuntimeError):
    """The federation cannot go on: no quorum, or a worker that died."""


@dataclass(frozen=True)
class Client:
    """One client as the server knows it; `node` is Flower's, everything else its own profile."""

    node: int
    id: int = -1
    modality: str = "?"
    architecture: str = "?"
    examples: int = 0
    classes: tuple[int, ...] = ()
    guide: str = ""  # the version it keeps

    def __str__(self) -> str:
        return f"client {self.id} ({self.modality}, {self.architecture})" if self.id >= 0 else f"node {self.node}"


@dataclass(frozen=True)
class Reply:
    """A checked payload and who sent it."""

    client: Client
    body: Any


@dataclass
class Exchange:
    """Messages under way, and what a good reply looks like."""

    phase: str
    header: Header
    clients: dict[str, Client]  # message id -> client
    expect: tuple[type, ...]
    bounds: dict[str, int]
    ids: Tensor | None
    check: Check | None
    down: dict[int, int]  # node -> bytes
    needed: int
    patient: bool
    started: float = field(default_factory=time.monotonic)


class Federation:
    """Clients of one row of a run. `fatal` are Flower error codes that end the run at once (a dead Ray worker)."""

    def __init__(
        self, grid: Grid, row: str = "method", *, seed: int = 0, timeout: float = 600.0, quorum: int = 1,
        fraction: float = 1.0, expected: int = 1, fatal: Sequence[int] = (),
        progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    ) -> None:
        self.grid, self.row, self.seed = grid, row, seed
        self.timeout, self.quorum, self.fraction, self.expected = timeout, quorum, fraction, expected
        self.fatal, self.progress = frozenset(fatal), progress
        self.clients: list[Client] = []
        self.cohort: list[Client] = []
        self.ledger: list[dict[str, Any]] = []
        self.round, self.step = 0, 0
        self.guard = Guard()  # a strategy's own, once it starts

    def meet(self) -> None:
        """Wait for the expected clients and learn who they are. FederationError when they do not come."""
        deadline = time.monotonic() + self.timeout
        while len(nodes := sorted(self.grid.get_node_ids())) < self.expected:
            if time.monotonic() > deadline:
                raise FederationError(f"{len(nodes)} of {self.expected} clients connected within {self.timeout:.0f} s")
            time.sleep(POLL)
        met: dict[int, Client] = {}
        for reply in self.ask("profile", Nothing(), Profile, clients=[Client(node) for node in nodes]):
            p = reply.body
            if p.client in met:
                raise FederationError(f"two nodes call themselves client {p.client}")
            classes = tuple(p.classes)
            met[p.client] = Client(reply.client.node, p.client, p.modality, p.architecture, p.examples, classes,
                                   p.guide)
        self.clients = [met[k] for k in sorted(met)]
        self.begin(0)

    def begin(self, r: int) -> None:
        """Open round `r`: its cohort depends on the seed and the round alone, so every method meets the same one."""
        self.round, self.step = r, 0
        size = max(round(self.fraction * len(self.clients)), min(self.quorum, len(self.clients)))
        order = torch.randperm(len(self.clients), generator=seeds.generator(self.seed, "cohort", r)).tolist()
        self.cohort = [self.clients[i] for i in sorted(order[:size])]

    def ask(self, phase: str, payload: Any, *expect: type, **how: Any) -> list[Reply]:
        """`send`, then `collect`."""
        return self.collect(self.send(phase, payload, *expect, **how))

    def send(
        self, phase: str, payload: Any, *expect: type, clients: list[Client] | None = None,
        bounds: dict[str, int] | None = None, ids: Tensor | None = None, check: Check | None = None,
        needed: int | None = None, patient: bool = False,
    ) -> Exchange:
        """Send `payload` (or `payload(client)`) to the cohort (or `clients`) and return without waiting.

        A reply must be one of `expect` (default Nothing), keep the `bounds` of its axes, carry exactly `ids` and pass
        the method's own `check`. Fewer good replies than `needed` (default: the quorum) end the run.
        `patient`: the time to answer counts from the last reply, for work that clients of one machine do in turn.
        """
        self.step += 1
        header = Header(self.row, self.round, self.step)
        asked, messages = self.cohort if clients is None else clients, []
        packed: dict[int, tuple[Any, Any]] = {}
        needed = min(self.quorum if needed is None else needed, len(asked))
        exchange = Exchange(phase, header, {}, expect or (Nothing,), bounds or {}, ids, check, {}, needed, patient)
        for client in asked:
            body = payload(client) if callable(payload) else payload
            content = packed.setdefault(id(body), (body, wire.pack(body, header)))[1]  # one object for a broadcast
            exchange.down[client.node] = wire.size(content)
            messages.append(Message(content, client.node, wire.PHASES[phase], group_id=f"{self.row}-{self.round}"))
        message_ids = list(self.grid.push_messages(messages))
        exchange.clients = dict(zip(message_ids, asked, strict=True))
        return exchange

    def collect(self, exchange: Exchange) -> list[Reply]:
        """Wait for the replies of an exchange; the good ones, in the order of the clients' ids."""
        waiting, replies = dict(exchange.clients), []
        deadline = exchange.started + self.timeout
        while waiting:
            for message in self.grid.pull_messages(list(waiting)):
                client = waiting.pop(message.metadata.reply_to_message_id)
                if (body := self._check(exchange, client, message)) is not None:
                    replies.append(Reply(client, body))
                if exchange.patient:
                    deadline = time.monotonic() + self.timeout
                self.progress(exchange.phase, len(exchange.clients) - len(waiting), len(exchange.clients))
            if waiting and time.monotonic() > deadline:
                for client in waiting.values():
                    self._enter(exchange, client, 0, f"gave no answer within {self.timeout:.0f} s")
                break
            if waiting:
                time.sleep(POLL)
        if len(replies) < exchange.needed:
            faults = "; ".join(f"client {e['client']}: {e['fault']}" for e in self.ledger if e["fault"])
            raise FederationError(f"{len(replies)} of {exchange.needed} needed replies to {exchange.phase!r}: "
                                  f"{faults[-600:]}")
        return self.guard.cleaned(sorted(replies, key=lambda reply: (reply.client.id, reply.client.node)))

    def _check(self, exchange: Exchange, client: Client, message: Message) -> Any | None:
        if message.has_error():
            reason = " ".join(str(message.error.reason).split())[:300]
            if message.error.code in self.fatal:
                raise FederationError(f"the worker of {client} died in {exchange.phase!r}: {reason}")
            self._enter(exchange, client, 0, f"raised: {reason}")
            return None
        up = wire.size(message.content)
        try:
            if (got := wire.header(message.content)) != exchange.header:
                raise WireError(f"answers {got}, asked was {exchange.header}")
            body = wire.unpack(message.content, *exchange.expect, bounds=exchange.bounds)
            if exchange.ids is not None and not torch.equal(body.ids, exchange.ids):
                raise WireError(f"{type(body).__name__}.ids are not the ids that were sent")
            if exchange.check is not None:
                exchange.check(client, body)
            self.guard.spent(client.id, wire.spent(message.content))
        except WireError as error:
            self._enter(exchange, client, up, f"sent a bad reply: {error}")
            return None
        self._enter(exchange, client, up, None)
        return body

    def _enter(self, exchange: Exchange, client: Client, up: int, fault: str | None) -> None:
        if fault:
            log(WARNING, "%s, round %d: %s %s", self.row, exchange.header.round, client, fault)
        self.ledger.append({
            "row": self.row, "round": exchange.header.round, "step": exchange.header.step, "phase": exchange.phase,
            "client": client.id, "modality": client.modality, "down": exchange.down[client.node], "up": up,
            "seconds": round(time.monotonic() - exchange.started, 3), "fault": fault,
        })

    def traffic(self, r: int) -> dict[str, float]:
        """Measured bytes of round `r`, the mean over its clients, without profile and evaluation."""
        entries = [e for e in self.ledger if e["round"] == r and e["phase"] not in OVERHEAD]
        clients = {e["client"] for e in entries}
        if not clients:
            return {}
        total = {way: sum(e[way] for e in entries) for way in ("up", "down")}
        return {
            "bytes/up_per_client": total["up"] / len(clients),
            "bytes/down_per_client": total["down"] / len(clients),
            "clients/faults": float(sum(e["fault"] is not None for e in self.ledger if e["round"] == r)),
        }

    def attendance(self, r: int, alone: str = "") -> dict[str, float]:
        """How many modalities went through round `r`; a warning names one that gave no good answer to an exchange and
        says how the round goes on (`alone`: the method's form for one modality)."""
        entries = [e for e in self.ledger if e["round"] == r and e["phase"] not in OVERHEAD]
        asked = {(e["modality"], e["step"]): e["phase"] for e in entries}
        good = {(e["modality"], e["step"]) for e in entries if not e["fault"]}
        gone: dict[str, list[str]] = {}
        for (modality, step), phase in asked.items():
            if (modality, step) not in good:
                gone.setdefault(modality, []).append(phase)
        here = sorted({modality for modality, _ in asked} - gone.keys())
        for modality, phases in gone.items():
            log(WARNING, "%s, round %d: no %s client answered %s; it goes on with %s clients alone%s", self.row, r,
                modality, " and ".join(phases), " and ".join(here) or "no",
                f", {alone}" if alone and len(here) == 1 else "")
        return {"clients/modalities": float(len(here))} if asked else {}

    def take_ledger(self) -> list[dict[str, Any]]:
        """The entries since the last call, for the run's record."""
        taken, self.ledger = self.ledger, []
        return taken


def means_of(replies: Sequence[Reply], prefix: str = "distill") -> dict[str, float]:
    """The clients' reported figures as <prefix>/<name>: the mean over those that said it."""
    bodies = [x.body.metrics for x in replies if isinstance(x.body, Report)]
    names = sorted({name for b in bodies for name in b})
    return {f"{prefix}/{n}": sum(b[n] for b in bodies if n in b) / sum(n in b for b in bodies) for n in names}
