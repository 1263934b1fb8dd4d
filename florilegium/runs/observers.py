"""The interface of all sinks (florilegium/runs/sinks): they get what a run records. Methods do not know them.

Each sink has its own thread, so a slow sink does not delay a round. A sink that fails gives one warning and stops.
Torch-free.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterable
from typing import Any

LOG = logging.getLogger("flwr")
WAITING = 10_000  # events a sink may be behind
END: tuple[str, tuple, dict] = ("", (), {})


class Observer:
    """The events of a run. A sink overrides the methods of the events that it needs."""

    def progress(self, at: dict[str, Any]) -> None:
        """The progress of the run: arm, round, rounds, phase, done, total."""

    def record(self, arm: str, round: int, seconds: float, metrics: dict[str, float]) -> None:
        """A finished round of an arm."""

    def ledger(self, entries: list[dict[str, Any]]) -> None:
        """Messages that crossed the wire (docs/run-directory.md)."""

    def grid(self, arm: str, round: int, picture: bytes) -> None:
        """The generated images of a round, as a PNG."""

    def close(self) -> None:
        """The run is over, or has failed."""


class Watched:
    """An observer in its own thread. After its first error it is not called again."""

    def __init__(self, observer: Observer) -> None:
        self.observer, self.name = observer, type(observer).__name__
        self.events: queue.Queue[tuple[str, tuple, dict]] = queue.Queue(WAITING)
        self.alive = True
        self.thread = threading.Thread(target=self._work, name=f"sink-{self.name}", daemon=True)
        self.thread.start()

    def tell(self, what: str, *given: Any, **named: Any) -> None:
        if not self.alive:
            return
        try:
            self.events.put_nowait((what, given, named))
        except queue.Full:
            self._leave(f"it is {WAITING} events behind")

    def _work(self) -> None:
        while (event := self.events.get()) != END:
            what, given, named = event
            try:
                if self.alive:
                    getattr(self.observer, what)(*given, **named)
            except Exception as error:  # a sink is a courtesy: whatever its library raises, the run goes on
                self._leave(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}")

    def _leave(self, why: str) -> None:
        if self.alive:
            self.alive = False
            LOG.warning("the sink %s is left out from here on: %s", self.name, why)

    def close(self, patience: float) -> None:
        """Wait until it has handled its events, at most `patience` seconds."""
        self.tell("close")
        try:
            self.events.put_nowait(END)
        except queue.Full:
            return
        self.thread.join(patience)


class Observers:
    """All observers of a run. Each event goes to all of them."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self.watched = [Watched(observer) for observer in observers]

    def tell(self, what: str, *given: Any, **named: Any) -> None:
        """Pass on one event by the name of an Observer's method."""
        for one in self.watched:
            one.tell(what, *given, **named)

    def close(self, patience: float = 10.0) -> None:
        for one in self.watched:
            one.close(patience)
        self.watched = []
