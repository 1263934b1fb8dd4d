"""Shows the progress of a run from two files that its server writes: progress.jsonl and rounds.jsonl.

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
SHOWN = (
    "client/accuracy/image",
    "client/accuracy/text",
    "client/miou/image",
    "client/rsum/pair",
    "server/rsum",
    "t2i/accuracy",
    "t2i/clip_score",
)


class Tail:
    """The JSON objects appended to a file since the last look; an incomplete last line is read later."""

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
    """`with Screen(out, arms, rounds):` reports until the block ends; `arms` in the order they run.

    Without `bars` a terminal gets lines too: bars would be drawn over the prompt of a debugger.
    """

    def __init__(
        self, out: Path, arms: list[str], rounds: int, stream: TextIO | None = None, bars: bool = True
    ) -> None:
        self.arms, self.rounds, self.stream = arms, rounds, stream or sys.stdout
        self.states, self.records = Tail(out / "progress.jsonl"), Tail(out / "rounds.jsonl")
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.bars = self._bars() if bars and self.stream.isatty() else None

    def _bars(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(file=self.stream),
            speed_estimate_period=3600,
            transient=True,
        )
        self.all = bars.add_task("starting", total=len(self.arms) * (self.rounds + 1), count="")
        self.phase = bars.add_task("", total=None, count="")
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
        states = list(self.states.new())
        if self.bars and states:
            self._show(self.bars, states[-1])
        for record in self.records.new():
            self._say(record)

    def _show(self, bars: Any, state: dict[str, Any]) -> None:
        arm, r, done, total = (state.get(key) or 0 for key in ("arm", "round", "done", "total"))
        before = self.arms.index(arm) if arm in self.arms else 0
        bars.update(
            self.all,
            completed=before * (self.rounds + 1) + r,
            description=f"{arm}",
            count=f"round {r} of {self.rounds}",
        )
        bars.update(
            self.phase,
            completed=done,
            total=total or None,
            description=f"  {state.get('phase', '')}",
            count=f"{done} of {total}" if total else "",
        )

    def _say(self, record: dict[str, Any]) -> None:
        metrics = record.get("metrics", {})
        figures = "  ".join(f"{name} {metrics[name]:.3f}" for name in SHOWN if name in metrics)
        line = (
            f"{record.get('arm', '?')}: round {record.get('round', '?')} of {self.rounds}, "
            f"{record.get('seconds', 0):.0f} s  {figures}"
        ).rstrip()
        if self.bars:
            self.bars.console.print(line, highlight=False)
        else:
            print(line, file=self.stream, flush=True)
