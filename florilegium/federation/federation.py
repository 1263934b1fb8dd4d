"""The server's view of the clients: ask them something, get checked, typed replies.

Every exchange is counted in the ledger; a reply that breaks the contract, raises or never comes is named there, left
out, and the round goes on with the others as long as the quorum holds. A reply that comes after the deadline of its
exchange is dropped, or stands in for a missing one and counts less. Clients may come and go between rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from logging import INFO, WARNING
from typing import Any

import torch
from flwr.app import Message
from flwr.common import log
from flwr.serverapp import Grid
from torch import Tensor

from florilegium import seeds
from florilegium.federation.exchange import (
    Check,
    Client,
    Exchange,
    Overdue,
    Question,
    Reply,
    attended,
    called,
    entry,
    faults,
    fits,
    late_entry,
    traffic,
)
from florilegium.federation.guard import Guard
from florilegium.protocol import codec, phases
from florilegium.protocol.budget import Budget
from florilegium.protocol.codec import Header
from florilegium.protocol.forms import Form
from florilegium.protocol.payloads import Nothing, Profile, Report, SiteProfile
from florilegium.protocol.validation import WireError

PATIENCE = 10  # times the time to answer, after which a client that never answered is asked again
POLL = 0.05  # seconds between two looks at the grid; Flower's own send_and_receive waits 3


class FederationError(RuntimeError):
    """The federation cannot go on: no quorum, or a worker that died."""


class Federation:
    """Clients of one arm of a run. `fatal` are Flower error codes that end the run at once (a dead Ray worker).

    `late`: drop late replies, or let them count `decay` for every round they are late, where a method takes them.
    A client that never answered is asked again after `give_up` seconds. `resources` are the run's: their settings say
    how replies are guarded; without them nothing is.
    """

    def __init__(
        self,
        grid: Grid,
        arm: str = "method",
        *,
        seed: int = 0,
        timeout: float = 600.0,
        quorum: int = 1,
        fraction: float = 1.0,
        expected: int = 1,
        fatal: Sequence[int] = (),
        progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
        late: str = "drop",
        decay: float = 0.5,
        give_up: float | None = None,
        resources: Any = None,
    ) -> None:
        self.grid, self.arm, self.seed = grid, arm, seed
        self.timeout, self.quorum, self.fraction, self.expected = timeout, quorum, fraction, expected
        self.fatal, self.progress = frozenset(fatal), progress
        self.clients: list[Client] = []
        self.cohort: list[Client] = []
        self.ledger: list[dict[str, Any]] = []
        self.overdue = Overdue(give_up or PATIENCE * timeout)
        self.late, self.decay = late, decay
        self.round, self.step = 0, 0
        self.guard = Guard.of(resources)  # defences, and the privacy of votes
        conf = getattr(resources, "conf", None)
        self.fits = fits(conf.clients.mix, len(resources.classes)) if conf else None  # of profiles
        self.form = Form.of(conf)  # how messages are written
        self.budgets: dict[int, Budget] = {}  # by client: what it trained on so far

    def meet(self) -> None:
        """Wait for the expected clients and learn who they are. FederationError when they do not come."""
        deadline = time.monotonic() + self.timeout
        while len(nodes := sorted(self.grid.get_node_ids())) < self.expected:
            if time.monotonic() > deadline:
                raise FederationError(f"{len(nodes)} of {self.expected} clients connected within {self.timeout:.0f} s")
            time.sleep(POLL)
        met: dict[int, Client] = {}
        for reply in self._profiles([Client(node) for node in nodes]):
            client = known(reply)
            if client.id in met:
                raise FederationError(f"two nodes call themselves client {client.id}")
            met[client.id] = client
        self.clients = [met[k] for k in sorted(met)]
        self.begin(0)

    def _profiles(self, clients: list[Client], needed: int | None = None) -> list[Reply]:
        """Who these say they are, as far as it fits the settings."""
        how: dict[str, Any] = {"clients": clients, "check": self.fits, "needed": needed}
        return self.ask("profile", Nothing(), Profile, SiteProfile, **how)

    def follow(self) -> None:
        """Forget the clients whose nodes left and ask newcomers who they are. FederationError without a quorum."""
        deadline = time.monotonic() + self.timeout
        while len(nodes := set(self.grid.get_node_ids())) < self.quorum:
            if time.monotonic() > deadline:
                raise FederationError(f"{len(nodes)} clients are connected, {self.quorum} are needed")
            time.sleep(POLL)
        here = {client.id: client for client in self.clients if client.node in nodes}
        for client in self.clients:
            if client.node not in nodes:
                log(WARNING, "%s, round %d: %s left", self.arm, self.round, client)
        self.overdue.forget(q.client.node for q in list(self.overdue.questions.values()) if q.client.node not in nodes)
        strangers = [Client(node) for node in sorted(nodes - {client.node for client in here.values()})]
        replies = self._profiles(strangers, needed=0) if strangers else []
        busy = self.overdue.busy()
        for client in (known(reply) for reply in replies):
            # a node that came back under a new number, while the old one is not yet missed
            if client.id in here and here[client.id].node not in busy:
                log(WARNING, "%s: %s is connected already; node %d is not asked", self.arm, client, client.node)
                continue
            log(INFO, "%s, round %d: %s joined", self.arm, self.round, client)
            here[client.id] = client
        self.clients = [here[k] for k in sorted(here)]

    def begin(self, r: int) -> None:
        """Open round `r`: its cohort depends on the clients that are there, the seed and the round alone, so every
        method meets the same one."""
        self.round, self.step = r, 0
        self.follow()
        size = max(round(self.fraction * len(self.clients)), min(self.quorum, len(self.clients)))
        order = torch.randperm(len(self.clients), generator=seeds.generator(self.seed, "cohort", r)).tolist()
        self.cohort = [self.clients[i] for i in sorted(order[:size])]

    def ask(self, phase: str, payload: Any, *expect: type, **how: Any) -> list[Reply]:
        """`send`, then `collect`."""
        return self.collect(self.send(phase, payload, *expect, **how))

    def send(
        self,
        phase: str,
        payload: Any,
        *expect: type,
        clients: list[Client] | None = None,
        bounds: dict[str, int] | None = None,
        ids: Tensor | None = None,
        check: Check | None = None,
        needed: int | None = None,
        patient: bool = False,
        late: bool = False,
    ) -> Exchange:
        """Send `payload` (or `payload(client)`) to the cohort (or `clients`) and return without waiting.

        A reply must be one of `expect` (default Nothing), keep the `bounds` of its axes, carry exactly `ids` and pass
        the method's own `check`. Fewer good replies than `needed` (default: the quorum) end the run.
        `patient`: the time to answer counts from the last reply, for work that clients of one machine do in turn.
        `late`: a late reply to an earlier question of this phase may stand in for one that is missing. Clients that are
        still busy with an earlier question are not asked.
        """
        self.step += 1
        header = Header(self.arm, self.round, self.step)
        asked, messages = self.cohort if clients is None else clients, []
        packed: dict[int, tuple[Any, Any]] = {}
        needed = min(self.quorum if needed is None else needed, len(asked))
        asked = self._free(asked, needed)
        self.guard.may_ask(expect)
        exchange = Exchange(
            phase, header, {}, expect or (Nothing,), bounds or {}, ids, check, {}, needed, patient, late
        )
        for client in asked:
            body = payload(client) if callable(payload) else payload
            if id(body) not in packed:  # one object for a broadcast
                self.guard.may_send(body)
                packed[id(body)] = body, codec.pack(body, header, form=self.form)
            content = packed[id(body)][1]
            exchange.down[client.node] = codec.size(content)
            messages.append(Message(content, client.node, phases.PHASES[phase], group_id=f"{self.arm}-{self.round}"))
        message_ids = list(self.grid.push_messages(messages))
        exchange.clients = dict(zip(message_ids, asked, strict=True))
        return exchange

    def _free(self, clients: list[Client], needed: int) -> list[Client]:
        """Those that are not busy; as many as are `needed` are waited for."""
        deadline = time.monotonic() + self.timeout
        while True:
            self._pull({})
            busy = self.overdue.busy()
            free = [client for client in clients if client.node not in busy]
            if len(free) >= needed or time.monotonic() > deadline:
                return free
            time.sleep(POLL)

    def _pull(self, waiting: dict[str, Client]) -> list[tuple[Client, Message]]:
        """What has come of the messages `waiting`; late replies to earlier exchanges are put aside."""
        came = []
        names = [*waiting, *self.overdue.questions]
        for message in self.grid.pull_messages(names) if names else ():
            name = message.metadata.reply_to_message_id
            if name in waiting:
                came.append((waiting.pop(name), message))
            elif name in self.overdue.questions:
                self._put_aside(self.overdue.questions.pop(name), message)
        return came

    def collect(self, exchange: Exchange) -> list[Reply]:
        """Wait for the replies of an exchange; the good ones, in the order of the clients' ids."""
        waiting, replies = dict(exchange.clients), []
        deadline = exchange.started + self.timeout
        while waiting:
            for client, message in self._pull(waiting):
                if (body := self._check(exchange, client, message)) is not None:
                    replies.append(Reply(client, body))
                if exchange.patient:
                    deadline = time.monotonic() + self.timeout
                self.progress(exchange.phase, len(exchange.clients) - len(waiting), len(exchange.clients))
            if waiting and time.monotonic() > deadline:
                for name, client in waiting.items():
                    self._enter(exchange, client, 0, f"gave no answer within {self.timeout:.0f} s")
                    self.overdue.questions[name] = Question(exchange, client)
                break
            if waiting:
                time.sleep(POLL)
        if len(replies) < exchange.needed:
            faults = "; ".join(f"{called(e)}: {e['fault']}" for e in self.ledger if e["fault"])
            raise FederationError(
                f"{len(replies)} of {exchange.needed} needed replies to {exchange.phase!r}: {faults[-600:]}"
            )
        if exchange.late:
            replies += self._standing_in(exchange, {reply.client.id for reply in replies})
        return self.guard.cleaned(sorted(replies, key=lambda reply: (reply.client.id, reply.client.node)))

    def _put_aside(self, question: Question, message: Message) -> None:
        """A late reply frees its node. It is kept if it may count, else dropped and said to be late."""
        exchange, client = question.exchange, question.client
        if reason := self._raised(exchange, client, message):
            self._enter_late(question, 0, f"raised: {reason}")
        elif self.late == "decay" and exchange.late:
            self.overdue.held.append((question, message))
        else:
            self._enter_late(question, codec.size(message.content), "dropped")

    def _standing_in(self, exchange: Exchange, answered: set[int]) -> list[Reply]:
        """Late replies of clients without a timely one, if they pass what this exchange asks of a reply."""
        replies = []
        for question, message in self.overdue.take(exchange.phase):
            up, client = codec.size(message.content), question.client
            if client.id in answered:
                self._enter_late(question, up, "dropped for a newer one")
                continue
            try:
                body = self._body(exchange, client, message, question.exchange.header)
            except WireError as error:
                self._enter_late(question, up, f"dropped: {error}")
                continue
            weight = self.decay ** max(1, self.round - question.exchange.header.round)
            self._enter_late(question, up, f"counts {weight:g}")
            replies.append(Reply(client, body, weight))
        return replies

    def _raised(self, exchange: Exchange, client: Client, message: Message) -> str:
        """What an error reply says, '' for any other. FederationError when the error ends the run."""
        if not message.has_error():
            return ""
        reason = " ".join(str(message.error.reason).split())[:300] or "no reason given"
        if message.error.code in self.fatal:
            raise FederationError(f"the worker of {client} died in {exchange.phase!r}: {reason}")
        return reason

    def _body(self, exchange: Exchange, client: Client, message: Message, header: Header) -> Any:
        """The payload of a reply to `header`, checked as `exchange` asks. WireError."""
        if (got := codec.header(message.content)) != header:
            raise WireError(f"answers {got}, asked was {header}")
        body = codec.unpack(message.content, *exchange.expect, bounds=dict(exchange.bounds), form=self.form)
        if exchange.ids is not None and not torch.equal(body.ids, exchange.ids):
            raise WireError(f"{type(body).__name__}.ids are not the ids that were sent")
        if exchange.check is not None:
            exchange.check(client, body)
        if client.id >= 0:  # a stranger's account is entered with its first answer as a client
            self.guard.spent(client.id, codec.spent(message.content))
        self.budgets[client.id] = self.budgets.get(client.id, Budget()) + codec.budget(message.content)
        return body

    def _check(self, exchange: Exchange, client: Client, message: Message) -> Any | None:
        if reason := self._raised(exchange, client, message):
            self._enter(exchange, client, 0, f"raised: {reason}")
            return None
        up = codec.size(message.content)
        try:
            body = self._body(exchange, client, message, exchange.header)
        except WireError as error:
            self._enter(exchange, client, up, f"sent a bad reply: {error}")
            return None
        self._enter(exchange, client, up, None)
        return body

    def _enter(self, exchange: Exchange, client: Client, up: int, fault: str | None) -> None:
        if fault:
            log(
                WARNING,
                "%s, round %d: %s %s",
                self.arm,
                exchange.header.round,
                client,
                fault,
                extra=log_context(exchange, client),
            )
        self.ledger.append(entry(exchange, client, up, fault))

    def _enter_late(self, question: Question, up: int, fate: str) -> None:
        exchange, client = question.exchange, question.client
        log(
            WARNING,
            "%s, round %d: the reply of %s to %r of round %d came late: %s",
            self.arm,
            self.round,
            client,
            exchange.phase,
            exchange.header.round,
            fate,
            extra=log_context(exchange, client),
        )
        self.ledger.append(late_entry(exchange, client, up, Header(self.arm, self.round, self.step), fate))

    def traffic(self, r: int) -> dict[str, float]:
        """Measured bytes of round `r`, the mean over its clients, without profile and evaluation."""
        return traffic(self.ledger, r)

    def faults(self, r: int) -> dict[str, float]:
        """clients/faults, the refused and missing answers of round `r` so far; nothing without one."""
        count = faults(self.ledger, r)
        return {"clients/faults": float(count)} if count else {}

    def attendance(self, r: int, alone: str = "") -> dict[str, float]:
        """How many modalities went through round `r`; a warning names one that gave no good answer to an exchange and
        says how the round goes on (`alone`: the method's form for one modality)."""
        here, gone = attended(self.ledger, r)
        for modality, missed in gone.items():
            log(
                WARNING,
                "%s, round %d: no %s client answered %s; it goes on with %s clients alone%s",
                self.arm,
                r,
                modality,
                " and ".join(missed),
                " and ".join(here) or "no",
                f", {alone}" if alone and len(here) == 1 else "",
            )
        return {"clients/modalities": float(len(here))} if here or gone else {}

    def metrics(self, r: int, alone: str = "") -> dict[str, float]:
        """Round `r` in figures: traffic, attendance (`alone` as there), defences, what privacy was spent, budgets."""
        return self.traffic(r) | self.attendance(r, alone) | self.guard.metrics() | self.trained_rows()

    def trained_rows(self) -> dict[str, float]:
        """budget/private_rows and budget/shared_rows: what a client trained on since the start of the run.

        The mean over all clients, and over those of each modality.
        """
        figures: dict[str, float] = {}
        for kind in vars(Budget()) if self.budgets else ():
            for modality in ("", *sorted({client.modality for client in self.clients})):
                mine = [client.id for client in self.clients if client.modality == (modality or client.modality)]
                total = sum(getattr(self.budgets.get(k, Budget()), kind) for k in mine)
                figures[f"budget/{kind}_rows{'/' * bool(modality)}{modality}"] = total / max(len(mine), 1)
        return figures

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a resumed run must know of its clients: tensors and JSON-able values; hand both to `restore`."""
        return {}, {"guard": self.guard.state(), "budgets": {str(k): vars(one) for k, one in self.budgets.items()}}

    def restore(self, tensors: dict[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.guard.restore(meta["guard"])
        self.budgets = {int(k): Budget(**rows) for k, rows in meta.get("budgets", {}).items()}

    def take_ledger(self) -> list[dict[str, Any]]:
        """The entries since the last call, for the run's record."""
        taken, self.ledger = self.ledger, []
        return taken


def log_context(exchange: Exchange, client: Client) -> dict[str, Any]:
    """The arm, phase and client of a line in the log."""
    return {"arm": exchange.header.arm, "phase": exchange.phase, "client": client.id}


def known(reply: Reply) -> Client:
    """The client that a profile tells of."""
    p = reply.body
    own = isinstance(p, SiteProfile)
    return Client(reply.client.node, p.client, p.modality, p.architecture, p.examples, tuple(p.classes), p.guide, own)


def means_of(replies: Sequence[Reply], prefix: str = "distill") -> dict[str, float]:
    """The clients' reported figures as <prefix>/<name>: the mean over those that said it."""
    bodies = [x.body.metrics for x in replies if isinstance(x.body, Report)]
    names = sorted({name for b in bodies for name in b})
    return {f"{prefix}/{n}": sum(b[n] for b in bodies if n in b) / sum(n in b for b in bodies) for n in names}
