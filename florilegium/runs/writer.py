"""The run directory, written. Only the server writes one; docs/run-directory.md says what each file holds.

Every file is replaced whole (temporary file, then os.replace) or grows by whole lines, so that a killed run can be
read and resumed. Torch-free.
"""

import contextlib
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

from florilegium.config.instances import to_plain, to_yaml
from florilegium.config.settings import lasting
from florilegium.runs import files, lock, pictures
from florilegium.runs.observers import Observer, Observers
from florilegium.runs.reader import RunError, append, plain, read_json, read_lines, recorded, replace, summarise

__all__ = ["Run", "RunError"]
PLACE = ("arm", "round", "phase")


def to_json(value) -> bytes:
    return (json.dumps(plain(value), indent=1) + "\n").encode()


class Run:
    """One run directory, open for writing. Arms are independent: each is recorded, rewound and resumed by itself."""

    def __init__(self, out: Path, settings: dict) -> None:
        self.out, self.settings, self.model_dir = out, settings, out / "model"
        self._told = 0.0
        self.observers = Observers()
        self.log: Observer | None = None
        self._at: dict[str, Any] = {"arm": "method", "round": 0, "rounds": settings.get("rounds") or 0}

    @classmethod
    def open(cls, out, conf, resume: bool = False) -> "Run":
        """Create `out`, or go on in it. RunError: not writable, holds a run, or was made with other settings."""
        out = Path(out)
        settings = to_plain(conf)
        try:
            for folder in (out, out / "samples", out / "checkpoints"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as why:
            raise RunError(f"run directory {out}: cannot be created ({why.strerror})") from None
        if not lock.hold(out / ".lock"):
            raise RunError(f"run directory {out}: another server process writes it; wait for its end, or stop its run")
        if read_lines(out / "rounds.jsonl"):
            if not resume:
                raise RunError(f"run directory {out}: holds a run already; choose another out=, or resume=true")
            same_settings(recorded(out).settings, settings, out)
        files.sweep(out)  # what a killed server left half written
        replace(out / "settings.yaml", to_yaml(settings).encode())
        (out / "progress.jsonl").unlink(missing_ok=True)
        for name in ("rounds.jsonl", "ledger.jsonl"):  # heal a torn last line before growing the file
            if (out / name).exists():
                rewrite(out / name, read_lines(out / name))
        return cls(out, settings)

    def observe(self, *observers: Observer, at_once: Observer | None = None) -> None:
        """Let observers hear what is recorded from here on, each in a thread of its own; one may hear it `at_once`."""
        self.observers, self.log = Observers(observers), at_once

    def tell(self, what: str, *given: Any) -> None:
        """Pass an event on to the observers, by the name of an Observer's method."""
        self.observers.tell(what, *given)
        if self.log is not None:
            getattr(self.log, what)(*given)

    def partition(self, clients: dict) -> None:
        """Record which client holds which rows of the data: {client: [row ids]}, or {client: {...}}."""
        replace(self.out / "partition.json", (json.dumps(plain(clients)) + "\n").encode())

    def record(self, arm: str, round: int, seconds: float, metrics: dict[str, float]) -> None:
        """One finished round of an arm; round 0 is before any training. A metric that is not finite becomes null."""
        append(
            self.out / "rounds.jsonl",
            [{"arm": named(arm), "round": int(round), "seconds": rounded(seconds, 3), "metrics": metrics}],
        )
        self.tell("record", arm, int(round), rounded(seconds, 3), plain(metrics))

    def rounds(self, arm: str) -> list[dict]:
        """The records of an arm, by round."""
        held = [r for r in read_lines(self.out / "rounds.jsonl") if r["arm"] == arm]
        return sorted(held, key=lambda r: r["round"])

    def ledger(self, entries: list[dict]) -> None:
        """Messages that crossed the wire: arm, round, step, phase, client, modality, down, up, seconds, fault."""
        append(self.out / "ledger.jsonl", entries)
        self.tell("ledger", entries)

    def grid(self, arm: str, round: int, images_N3HW: np.ndarray, captions: list[str]) -> None:
        """Generated images of a round, as a PNG to look at and as an .npz for the report."""
        images_N3HW = np.asarray(images_N3HW)
        stem = self.out / "samples" / f"{named(arm)}-round-{int(round):03d}"
        picture = pictures.png(pictures.grid(images_N3HW, captions))
        replace(stem.with_suffix(".png"), picture)
        self.tell("grid", arm, int(round), picture)
        replace(stem.with_suffix(".npz"), pictures.raw(images_N3HW, captions))

    def votes(self, arm: str, round: int, matrix_CC, class_names: list[str]) -> None:
        """How often a sample drawn as class i (rows) got consensus label j (columns)."""
        held = read_json(self.out / "votes.json")
        held.setdefault(named(arm), {"rounds": {}})
        held[arm]["classes"] = list(class_names)
        held[arm]["rounds"][str(int(round))] = matrix_CC
        replace(self.out / "votes.json", (json.dumps(plain(held)) + "\n").encode())

    def checkpoints(self, arm: str) -> Path:
        folder = self.out / "checkpoints" / named(arm)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def rewind(self, arm: str, round: int) -> None:
        """Drop everything of `arm` after `round` (-1: all of it). Other arms stay as they are."""
        for name in ("rounds.jsonl", "ledger.jsonl"):
            held = read_lines(self.out / name)
            kept = [o for o in held if o.get("arm") != arm or o.get("round", 0) <= round]
            if kept != held:
                rewrite(self.out / name, kept)
        votes = read_json(self.out / "votes.json")
        if arm in votes:
            votes[arm]["rounds"] = {r: m for r, m in votes[arm]["rounds"].items() if int(r) <= round}
            replace(self.out / "votes.json", (json.dumps(votes) + "\n").encode())
        for path in (self.out / "samples").glob(f"{arm}-round-*.*"):
            stated = re.fullmatch(rf"{re.escape(arm)}-round-(\d+)\.(png|npz)", path.name)
            if stated and int(stated[1]) > round:
                path.unlink(missing_ok=True)

    def progress(self, **news) -> None:
        """Record the progress: arm, round, rounds, phase, done, total. A value that is not given keeps its last value.

        Grows progress.jsonl by a line, at most four a second; florilegium/runs/progress.py shows it on a terminal.
        """
        moved, now = any(self._at.get(k) != v for k, v in news.items() if k in PLACE), time.monotonic()
        self._at |= news
        self.tell("progress", dict(self._at))
        if not moved and self._at.get("done", 0) < self._at.get("total", 0) and now - self._told < 0.25:
            return
        self._told = now
        try:  # a courtesy: never a reason to fail
            with (self.out / "progress.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(plain(self._at)) + "\n")
        except OSError:
            pass

    def finish(self, conf=None, *, protocol: dict | None = None, seconds: float | None = None) -> None:
        """Write summary.json; `protocol` adds facts such as judge_accuracy."""
        if conf is not None:
            self.settings = to_plain(conf)
        rounds = read_lines(self.out / "rounds.jsonl")
        arms = summarise(rounds)
        before = read_json(self.out / "summary.json").get("seconds") or 0
        spent = sum(r.get("seconds") or 0 for r in rounds)
        summary = {
            "protocol": {**protocol_of(self.settings), **(protocol or {})},
            "seconds": rounded(seconds if seconds is not None else max(before, spent)),
            "method": arms.pop("method", None),
            "references": arms,
        }
        replace(self.out / "summary.json", to_json(summary))

    def close(self) -> None:
        """End the run, well or not, and remove its progress file."""
        with contextlib.suppress(OSError):  # a courtesy too: never in the place of the reason why a run failed
            (self.out / "progress.jsonl").unlink(missing_ok=True)
        self.silence()

    def silence(self) -> None:
        """Send nothing more to the observers."""
        self.observers.close()
        if self.log is not None:
            self.log.close()
            self.log = None


def rewrite(path: Path, objects: list[dict]) -> None:
    replace(path, "".join(json.dumps(o, separators=(", ", ": ")) + "\n" for o in objects).encode())


def named(arm: str) -> str:
    """`arm`, if it can be part of a file name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", arm):
        raise RunError(f"arm {arm!r}: an arm's name is letters, digits, '_', '-' and '.'")
    return arm


def rounded(value: float | None, digits: int = 1) -> float | None:
    return None if value is None else round(float(value), digits)


def protocol_of(settings: dict) -> dict:
    """The conditions of a run's numbers, from its settings."""
    data, clients, method = (settings.get(k) or {} for k in ("data", "clients", "method"))
    return {
        "method": method.get("name"),
        "variant": method.get("variant"),
        "label": settings.get("label"),
        "data": data.get("name"),
        "clients": clients.get("mix"),
        "partition": clients.get("partition"),
        "rounds": settings.get("rounds"),
        "seed": settings.get("seed"),
        "evaluation": settings.get("evaluation"),
    }


def same_settings(old: dict, new: dict, out: Path) -> None:
    """RunError naming the first setting in which a resumed run differs; `rounds` may grow."""
    for key, was, now in differing(lasting(old), lasting(new)):
        raise RunError(f"run directory {out}: was made with {key}={was}, not {now}; resume needs the same settings")
    if (new.get("rounds") or 0) < (old.get("rounds") or 0):
        raise RunError(f"run directory {out}: was made with rounds={old['rounds']}; a resumed run cannot have fewer")


def differing(old, new, key: str = ""):
    """(dotted key, old value, new value) of each difference."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from differing(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, old, new
