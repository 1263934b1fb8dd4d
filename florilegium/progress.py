"""Shows how a run stands, from the two files its server writes: progress.jsonl and rounds.jsonl.

On a terminal: a bar over all rounds with the time left, and the phase under way. Elsewhere: one line a round.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

LOOK_SECONDS = 0.5
SHOWN = ("client/accuracy/image", "client/accuracy/text", "t2i/accuracy", "t2i/clip_score")


class Tail:
    """The JSON objects appended to a file since the last look; a torn last line waits for its end."""

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, path.stat().st_size if path.exists() else 0

    def new(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        self.position = min(self.position, self.path.stat().st_size)  # a resumed run drops records
        with open(self.path, "rb") as file:
            file.seek(self.position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.position += len(line)
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


class Screen:
    """`with Screen(out, rows, rounds):` reports until the block ends; `rows` in the order they run."""

    def __init__(self, out: Path, rows: list[str], rounds: int, stream: TextIO | None = None) -> None:
        self.rows, self.rounds, self.stream = rows, rounds, stream or sys.stdout
        self.events, self.records = Tail(out / "progress.jsonl"), Tail(out / "rounds.jsonl")
        self.row, self.round = rows[0], 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.bars = self._bars() if self.stream.isatty() else None

    def _bars(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        bars = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                        console=Console(file=self.stream), speed_estimate_period=3600, transient=True)
        self.all = bars.add_task("starting Flower", total=len(self.rows) * (self.rounds + 1))
        self.phase = bars.add_task("", total=None)
        return bars

    def __enter__(self) -> Screen:
        if self.bars:
            self.bars.start()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()
        self._look()
        if self.bars:
            self.bars.stop()

    def _watch(self) -> None:
        while not self.stopped.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        for event in self.events.new():
            self.row, self.round = event.get("row", self.row), event.get("round", self.round)
            if self.bars:
                self._show(event)
        for record in self.records.new():
            self._say(record)

    def _show(self, event: dict[str, Any]) -> None:
        at = self.rows.index(self.row) if self.row in self.rows else 0
        self.bars.update(self.all, completed=at * (self.rounds + 1) + self.round,
                         description=f"{self.row}, round {self.round} of {self.rounds}")
        self.bars.update(self.phase, description=f"  {event.get('phase', '')}",
                         completed=event.get("done", 0), total=event.get("total"))

    def _say(self, record: dict[str, Any]) -> None:
        metrics = record.get("metrics", {})
        figures = "  ".join(f"{name} {metrics[name]:.3f}" for name in SHOWN if name in metrics)
        line = (f"{record.get('row', '?')}: round {record.get('round', '?')} of {self.rounds}, "
                f"{record.get('seconds', 0):.0f} s  {figures}").rstrip()
        if self.bars:
            self.bars.console.print(line, highlight=False)
        else:
            print(line, file=self.stream, flush=True)
