"""The files of a run directory, read and replaced; torch-free, so that a report starts at once.

docs/run-directory.md describes each file. The run may have been killed: then the incomplete last line of a .jsonl
file is dropped, and some files may be missing.
"""

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from florilegium import catalogue
from florilegium.runs import files

MAIN = "method"  # the name of a run's main arm; reference arms have their own names
OVERHEAD = frozenset({"profile", "evaluate"})  # phases that the papers' byte counts leave out
YAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C eight times as fast, where PyYAML has it
EVALUATED = ("client/", "t2i/", "server/")  # a round that was evaluated carries at least one of these


class RunError(RuntimeError):
    """A run directory that cannot be written, read or compared. One line that names the file or the row."""


def read_json(path: Path) -> dict:
    """The object in `path`, {} if there is no such file. RunError if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as why:
        raise RunError(f"{path}: not readable ({why})") from None


def read_lines(path: Path) -> list[dict]:
    """The objects of a .jsonl file. An incomplete last line (of a killed writer) is dropped; a broken line before it
    is an error.

    Runs of version 0.1 call an arm a row; they read as if they said arm.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as why:
        raise RunError(f"{path}: not readable ({why.strerror})") from None
    objects = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is empty, or torn
        try:
            found = json.loads(line)
            if isinstance(found, dict) and "row" in found and "arm" not in found:
                found = {"arm" if key == "row" else key: value for key, value in found.items()}
            objects.append(found)
        except ValueError:
            if number < len(lines) - 1:
                raise RunError(f"{path} line {number}: not JSON") from None
    return objects


def plain(value):
    """JSON's own types only: NumPy scalars and arrays become numbers and lists, NaN and infinities become null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # NumPy, and torch without importing it
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def replace(path: Path, data: bytes) -> None:
    """Write `data` to `path` in one step. RunError when the directory cannot be written."""
    try:
        files.write_bytes(path, data)
    except OSError as why:
        raise RunError(f"run directory: cannot write {path} ({why.strerror})") from None


def append(path: Path, objects: list[dict]) -> None:
    """Add whole lines to a .jsonl file."""
    lines = "".join(json.dumps(plain(o), separators=(", ", ": ")) + "\n" for o in objects)
    try:
        files.append_bytes(path, lines.encode())
    except OSError as why:
        raise RunError(f"run directory: cannot write {path} ({why.strerror})") from None


def finite(metrics: dict) -> dict[str, float]:
    """The metrics that are finite numbers."""
    return {k: v for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}


def mean(values: Iterable[float]) -> float | None:
    """Arithmetic mean, None of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else None


def validation(metrics: dict) -> float | None:
    """Mean of client/validation/<modality>; of client/validation/* where no modality is named; None without any."""
    found = {k.rsplit("/", 1)[1]: v for k, v in finite(metrics).items() if k.startswith("client/validation/")}
    return mean([found[m] for m in ("image", "text", "pair") if m in found] or found.values())


def best(records: list[dict]) -> dict | None:
    """The record with the highest validation accuracy, the earliest of equals; None if no record has one."""
    scored = [(validation(r["metrics"]), r) for r in records]
    scored = [(score, r) for score, r in scored if score is not None]
    return max(scored, key=lambda pair: (pair[0], -pair[1]["round"]))[1] if scored else None


def last(records: list[dict]) -> dict | None:
    """The last evaluated record; the last of all if none was evaluated."""
    held = [r for r in records if evaluated(r)] or records
    return held[-1] if held else None


def halved(records: list[dict]) -> dict[str, float]:
    """Each metric's mean over the evaluated rounds after half of all, of those that have it."""
    final = max((r["round"] for r in records), default=0)
    held = [finite(r["metrics"]) for r in records if evaluated(r) and 2 * r["round"] > final]
    names = dict.fromkeys(name for m in held for name in m)
    return {name: statistics.fmean(m[name] for m in held if name in m) for name in names}


def evaluated(record: dict) -> bool:
    return any(name.startswith(EVALUATED) for name in finite(record["metrics"]))


def summarise(rounds: list[dict]) -> dict[str, dict]:
    """Per arm: `first`, `best_on_validation` (None without validation figures) and `last`, each {round, metrics}."""
    arms: dict[str, list[dict]] = {}
    for record in sorted(rounds, key=lambda r: r["round"]):
        arms.setdefault(record["arm"], []).append(record)

    def brief(record: dict | None) -> dict | None:
        return record and {"round": record["round"], "metrics": finite(record["metrics"])}

    return {
        arm: {
            "first": brief(next(filter(evaluated, records), records[0])),
            "best_on_validation": brief(best(records)),
            "last": brief(last(records)),
            "seconds": round(sum(r.get("seconds") or 0 for r in records), 3),
        }
        for arm, records in arms.items()
    }


@dataclass(frozen=True)
class Recorded:
    """One run, as its directory tells it. Rounds are ordered by round within an arm."""

    path: Path
    settings: dict
    partition: dict
    rounds: list[dict]
    ledger: list[dict]
    votes: dict
    protocol: dict
    seconds: float

    @property
    def method(self) -> str:
        return str(self.get("method.name", "method"))

    @property
    def label(self) -> str:
        """The experiment's label, or the method's name (with its variant, where that is not the full method)."""
        if self.get("label"):
            return str(self.get("label"))
        return catalogue.title(self.method, self.get("method.variant"))

    @cached_property
    def arms(self) -> list[str]:
        """Arm names, the main arm first, reference arms in the order in which they ran."""
        names = list(dict.fromkeys(r["arm"] for r in self.rounds))
        return sorted(names, key=lambda name: name != MAIN)

    def get(self, key: str, default=None):
        """A setting by dotted key."""
        node = self.settings
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return default
            node = node[part]
        return node

    def of(self, arm: str) -> list[dict]:
        return [r for r in self.rounds if r["arm"] == arm]

    def metrics(self, arm: str, at: str = "last") -> dict[str, float]:
        """An arm's metrics at `first`, `last`, `best_on_validation` (arms without validation figures: last), or their
        means over the evaluated rounds of the `second_half`: where few clients are asked, one round is mostly luck."""
        records = self.of(arm)
        if at == "second_half":
            return halved(records)
        pick = {
            "first": lambda r: next(iter(r), None),
            "last": last,
            "best_on_validation": lambda r: best(r) or last(r),
        }
        record = pick[at](records)
        return finite(record["metrics"]) if record else {}

    def untuned(self) -> dict[str, float]:
        """Generator metrics of the main arm before any training (round 0)."""
        start = [r for r in self.of(MAIN) if r["round"] == 0]
        return {k: v for k, v in finite(start[0]["metrics"]).items() if k.startswith("t2i/")} if start else {}

    @cached_property
    def open_arms(self) -> dict[str, int | None]:
        """Arms that lack the last planned round: the last that each has recorded, None for none; in their order.

        A kept record, which has no partition, may leave out whole reference arms (tools/judge_again.py).
        """
        planned = self.get("rounds") or 0
        done: dict[str, int] = {}
        for record in self.rounds:
            done[record["arm"]] = max(done.get(record["arm"], 0), record["round"])
        arms = [MAIN, *(name for name in self.get("references") or {} if name in done or self.partition)]
        return {arm: done.get(arm) for arm in arms if planned and done.get(arm, -1) < planned}

    @property
    def unfinished(self) -> bool:
        """Whether the run's own arm or one of its references lacks its last round."""
        return bool(self.open_arms)

    @property
    def standing(self) -> str:
        """Where an unfinished run stopped: `at round 1 of 4`, `at round 1 of 4 of ARM` or `before ARM`, a reference."""
        arm, done = next(iter(self.open_arms.items()), (MAIN, self.get("rounds")))
        if done is None and arm != MAIN:
            return f"before {self.title(arm)}"
        return f"at round {done or 0} of {self.get('rounds')}" + ("" if arm == MAIN else f" of {self.title(arm)}")

    def title(self, arm: str) -> str:
        """An arm's name for a reader."""
        if arm == MAIN:
            return self.label
        if arm in TITLES:
            return TITLES[arm]
        method = self.method_of(arm)
        return catalogue.title(method) if arm == method else arm.replace("_", " ").replace("-", " ").capitalize()

    def method_of(self, arm: str) -> str:
        """The method of an arm; the arm's own name in a record that does not say."""
        return self.method if arm == MAIN else str(self.get(f"references.{arm}.name", arm))

    def with_role(self, role: catalogue.Role) -> list[str]:
        """The reference arms that stand for this in a comparison."""
        return [arm for arm in self.arms if arm != MAIN and catalogue.role(self.method_of(arm)) is role]


# of arms that no method is named after: round 0, and those of conf/references
TITLES = {
    "untuned": "Un-tuned T2I",
    "self_label": "Self-tuned, labels",
    "self_caption": "Self-tuned, captions",
    "self_representation": "Self-tuned, representations",
}


def recorded(path) -> Recorded:
    """Read a run directory, finished or not. RunError if it is not one."""
    path = Path(path)
    try:
        settings = yaml.load((path / "settings.yaml").read_text(encoding="utf-8"), YAML)
    except (OSError, yaml.YAMLError):
        raise RunError(f"{path}: not a run directory (no readable settings.yaml)") from None
    rounds = read_lines(path / "rounds.jsonl")
    if any(not {"arm", "round", "metrics"} <= r.keys() for r in rounds):
        raise RunError(f"{path / 'rounds.jsonl'}: a line lacks arm, round or metrics")
    summary = read_json(path / "summary.json")
    seconds = summary.get("seconds") or sum(r.get("seconds") or 0 for r in rounds)
    return Recorded(
        path,
        settings if isinstance(settings, dict) else {},
        read_json(path / "partition.json"),
        sorted(rounds, key=lambda r: r["round"]),
        read_lines(path / "ledger.jsonl"),
        read_json(path / "votes.json"),
        summary.get("protocol") or {},
        seconds,
    )
