"""What a round costs beside its mathematics alone: ratios in one run.

    python bench/rounds.py [method ...]          # default: all that exchange knowledge; minutes a method

The real apps run in one process (every message serialised and checked), one round on emoji with the paper's mix of
clients; methods that have nothing for clients with pairs run on the lexicon with eight clients. *Mathematics* is the
time in the client sides' phases, with the model already in memory, and in the server's round outside its exchanges:
what a loop over the same clients would do without a wire, checks, memory on disk, ledger and checkpoints. Evaluation
counts for neither. One thread; CPU seconds. The bar is 1.2.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch

from client_app import app as client_app
from florilegium import catalogue, preflight
from florilegium.config import composition
from florilegium.federation.federation import Federation
from server_app import app as server_app
from server_app.driver import ArmJournal
from strategies.blocks.rounds import Rounds
from tests.local_grid import run_apps

PHASES = ("train", "represent", "distill")
METHODS = ("fedafd", "creamfl", "fedmekt", "fedmd", "fedgems", "fedet", "fedmmkt")


@dataclass
class Clock:
    """CPU seconds of a run's rounds (without evaluation), of its exchanges and of its clients' phases."""

    rounds: float = 0.0
    asked: float = 0.0
    server: float = 0.0
    clients: float = 0.0

    @property
    def ratio(self) -> float:
        """All that the rounds took / the mathematics in them."""
        return self.rounds / (self.server - self.asked + self.clients)


def timed(work: Callable[..., Any], count: Callable[[float], None]) -> Callable[..., Any]:
    @wraps(work)  # a phase's annotations say what may cross
    def measured(*given: Any, **named: Any) -> Any:
        start = time.process_time()
        try:
            return work(*given, **named)
        finally:
            count(time.process_time() - start)

    return measured


@contextmanager
def clocked() -> Iterator[Clock]:
    """A clock that runs while apps run in this process."""
    clock, inside = Clock(), [False]
    client_side, open_client = client_app.client_side, client_app.open_client
    send, collect = Federation.send, Federation.collect  # what every exchange is made of
    evaluate, start = ArmJournal.evaluate, Rounds.start

    def add(name: str, sign: int = 1) -> Callable[[float], None]:
        return lambda seconds: setattr(clock, name, getattr(clock, name) + sign * seconds)

    def opened(*given: Any) -> Any:
        client = open_client(*given)
        client.model  # noqa: B018  (a bare loop has it in memory)
        return client

    def side_of(conf: Any, row: str) -> Any:
        half = client_side(conf, row)
        for phase in PHASES:
            if hasattr(half, phase):
                setattr(half, phase, timed(getattr(half, phase), add("clients")))
        return half

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def in_round(*given: Any) -> Any:
            inside[0] = True
            try:
                return work(*given)
            finally:
                inside[0] = False

        return timed(in_round, add("server"))

    def started(self: Rounds, *given: Any, **named: Any) -> Any:
        self.begin, self.round = counted(self.begin), counted(self.round)  # type: ignore[method-assign]
        return timed(start, add("rounds"))(self, *given, **named)

    def asking(work: Callable[..., Any]) -> Callable[..., Any]:
        return timed(work, lambda seconds: add("asked")(seconds if inside[0] else 0.0))

    client_app.client_side, client_app.open_client = side_of, opened
    Federation.send, Federation.collect = asking(send), asking(collect)  # type: ignore[method-assign]
    Rounds.start = started  # type: ignore[method-assign]
    ArmJournal.evaluate = timed(evaluate, add("rounds", -1))  # type: ignore[method-assign]
    try:
        yield clock
    finally:
        client_app.client_side, client_app.open_client = client_side, open_client
        Federation.send, Federation.collect = send, collect  # type: ignore[method-assign]
        ArmJournal.evaluate, Rounds.start = evaluate, start  # type: ignore[method-assign]


def measured(overrides: list[str]) -> Clock:
    """The clock of one run."""
    conf = composition.complete(composition.compose(overrides))
    preflight.validate(conf)
    with clocked() as clock:
        run_apps(
            server_app.app,
            client_app.app,
            len(conf.clients.mix),
            {"settings": json.dumps(composition.plain(conf)), "overrides": ""},
        )
    return clock


def protocol(method: str) -> tuple[str, str]:
    """The data and the clients of a method's round."""
    pairs = "pair" in catalogue.entry(method).modalities
    return ("data=emoji", "clients=paper_mixed") if pairs else ("data=lexicon", "clients=eight")


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in sys.argv[1:] or METHODS:
            clock = measured(
                [
                    f"method={method}",
                    *protocol(method),
                    "references=none",
                    "rounds=1",
                    f"out={folder}/{method}",
                ]
            )
            found[method] = {
                "ratio": round(clock.ratio, 3),
                "clients": round(clock.clients, 1),
                "server": round(clock.server - clock.asked, 1),
            }
            print(json.dumps({method: found[method]}), flush=True)
    print(json.dumps({"round / its mathematics": {method: each["ratio"] for method, each in found.items()}}))


if __name__ == "__main__":
    main()
