"""One exchange with clients: who is asked, what a good reply looks like, its lines of the ledger, and replies that come
after it ended.

A node has at most one message in flight: it is not asked again before its late reply came, or was given up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from florilegium.protocol.codec import Header
from florilegium.protocol.validation import WireError
from florilegium.runs.reader import OVERHEAD

Check = Callable[[Any, Any], None]  # (client, body): raises WireError, naming what is wrong with the body


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
    own: bool = False  # its training rows are the site's own

    def __str__(self) -> str:
        return f"client {self.id} ({self.modality}, {self.architecture})" if self.id >= 0 else f"node {self.node}"


@dataclass(frozen=True)
class Reply:
    """A checked payload, who sent it, and what it counts beside the others: 1, or less for a late one."""

    client: Client
    body: Any
    weight: float = 1.0


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
    late: bool
    started: float = field(default_factory=lambda: time.monotonic())


def entry(exchange: Exchange, client: Client, up: int, fault: str | None) -> dict[str, Any]:
    """A reply, or its absence, as the ledger has it."""
    header = exchange.header
    return {
        "arm": header.arm,
        "round": header.round,
        "step": header.step,
        "phase": exchange.phase,
        "client": client.id,
        "modality": client.modality,
        "down": exchange.down[client.node],
        "up": up,
        "seconds": round(time.monotonic() - exchange.started, 3),
        "fault": fault,
        **({"node": str(client.node)} if client.id < 0 else {}),  # who it is was never said
    }


def called(entry: dict[str, Any]) -> str:
    """Whom an entry is about: a client, or the node of one that was never known."""
    return f"node {entry['node']}" if "node" in entry else f"client {entry['client']}"


def late_entry(exchange: Exchange, client: Client, up: int, now: Header, fate: str) -> dict[str, Any]:
    """A late reply, under the round in which it came; that it was missing then is entered already."""
    return entry(exchange, client, up, None) | {
        "round": now.round,
        "step": now.step,
        "down": 0,
        "late": f"asked in round {exchange.header.round}; {fate}",
    }


def fits(mix: Sequence[Any], classes: int) -> Check:
    """A check of profiles against the settings: `mix` as clients.mix, and the number of classes.

    What it lets pass may be looked up in lists of clients and classes.
    """

    def check(_: Client, body: Any) -> None:
        if body.client >= len(mix):
            raise WireError(f"Profile.client is {body.client}, but clients.mix has {len(mix)} clients")
        has, asked = (body.modality, body.architecture), (str(mix[body.client].modality), str(mix[body.client].model))
        if has != asked:
            raise WireError(
                f"Profile says that client {body.client} is {' '.join(has)[:80]}, clients.mix has {' '.join(asked)}"
            )
        if strange := [label for label in body.classes if label >= classes]:
            raise WireError(f"Profile.classes has {strange[0]}, but there are {classes} classes")

    return check


def faults(ledger: list[dict[str, Any]], r: int) -> int:
    """How many answers of round `r` were refused or never came, of all phases."""
    return sum(e["fault"] is not None for e in ledger if e["round"] == r)


def traffic(ledger: list[dict[str, Any]], r: int) -> dict[str, float]:
    """Measured bytes of round `r`, the mean over its clients, without profile and evaluation; faults, late replies."""
    entries = [e for e in ledger if e["round"] == r and e["phase"] not in OVERHEAD]
    clients = {e["client"] for e in entries}
    if not clients:
        return {}
    total = {way: sum(e[way] for e in entries) for way in ("up", "down")}
    late = sum("late" in e for e in ledger if e["round"] == r)
    return {
        "bytes/up_per_client": total["up"] / len(clients),
        "bytes/down_per_client": total["down"] / len(clients),
        "clients/faults": float(faults(ledger, r)),
        **({"clients/late": float(late)} if late else {}),
    }


def attended(ledger: list[dict[str, Any]], r: int) -> tuple[list[str], dict[str, list[str]]]:
    """The modalities that went through round `r`, and the phases to which each of the others gave no good answer.

    A late reply is a good answer where it stands in for a missing one.
    """
    entries = [e for e in ledger if e["round"] == r and e["phase"] not in OVERHEAD]
    asked = {(e["modality"], e["step"]): e["phase"] for e in entries if "late" not in e}
    good = {(e["modality"], e["step"]) for e in entries if not e["fault"] and "; dropped" not in e.get("late", "")}
    gone: dict[str, list[str]] = {}
    for (modality, step), phase in asked.items():
        if (modality, step) not in good:
            gone.setdefault(modality, []).append(phase)
    return sorted({modality for modality, _ in asked} - gone.keys()), gone


# -- late replies ------------------------------------------------------------------------------------------------------


@dataclass
class Question:
    """A message under way after its exchange ended."""

    exchange: Exchange
    client: Client
    given_up: bool = False


class Overdue:
    """Questions without a reply, by message id, and late replies that may still stand in for a missing one."""

    def __init__(self, give_up: float) -> None:
        self.give_up = give_up
        self.questions: dict[str, Question] = {}
        self.held: list[tuple[Question, Any]] = []  # (question, the message that answers it)

    def busy(self) -> set[int]:
        """Nodes that still work on an earlier question. Those that took too long are given up, and free again."""
        now = time.monotonic()
        for question in self.questions.values():
            question.given_up |= now - question.exchange.started > self.give_up
        return {q.client.node for q in self.questions.values() if not q.given_up}

    def forget(self, nodes: Iterable[int]) -> None:
        """These nodes are gone; nothing more comes of them."""
        gone = set(nodes)
        self.questions = {name: q for name, q in self.questions.items() if q.client.node not in gone}

    def take(self, phase: str) -> list[tuple[Question, Any]]:
        """The late replies to questions of this phase, each given out once."""
        taken = [(q, m) for q, m in self.held if q.exchange.phase == phase]
        self.held = [(q, m) for q, m in self.held if q.exchange.phase != phase]
        return taken
