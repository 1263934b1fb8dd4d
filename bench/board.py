"""The figures that `make bench` measures: which script gives each, and the bar that it should reach.

A script prints one JSON object last. What it printed is kept in bench/results/<script>.json with the machine, the
versions of the libraries and the cores that other programs kept busy before. docs/performance.md is made of these
files alone.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
LIBRARIES = ("flwr", "torch", "diffusers", "transformers", "ray", "numpy")
QUIET = 0.25  # more busy cores than this, before a measurement, make its figures provisional


@dataclass(frozen=True)
class Script:
    """A program below bench/ and its arguments. One that takes long is `asked` for by name, and else not run.

    Other programs on the machine change the figures of one that is `timed`.
    """

    file: str
    arguments: tuple[str, ...] = ()
    asked: bool = False
    timed: bool = True

    @property
    def name(self) -> str:
        return Path(self.file).with_suffix("").as_posix().replace("/", "-")

    @property
    def result(self) -> Path:
        return RESULTS / f"{self.name}.json"


@dataclass(frozen=True)
class Bar:
    """One figure: its title, where it stands in what its script prints, and the number that it should reach.

    `key` names it in the object that the script prints; a tuple goes down into objects in it. `why` says what keeps the
    figure from its bar, where it misses; `missing` what is needed for a figure that was not measured.
    """

    title: str
    script: Script
    key: str | tuple[str, ...]
    bar: float
    higher: bool = False  # whether more is better
    unit: str = ""
    why: str = ""
    missing: str = ""

    def value(self, found: Mapping[str, Any]) -> float | None:
        """The figure in what the script printed, None where it is not there."""
        at: Any = found
        for part in (self.key,) if isinstance(self.key, str) else self.key:
            if not isinstance(at, Mapping) or part not in at:
                return None
            at = at[part]
        return float(at) if isinstance(at, int | float) else None

    def met(self, value: float) -> bool:
        return value >= self.bar if self.higher else value <= self.bar

    def share(self, value: float) -> float:
        """How much of the bar is used up: 1 is just met, and less is better."""
        return self.bar / value if self.higher else value / self.bar


BYTES = Script("paper_bytes.py", timed=False)
ROUNDS = Script("rounds.py", ("fedmmkt",))
SCALE = Script("scale.py")
FUSION = Script("fusion.py")
SYNTHESIS = Script("synthesis.py")
FIRST = Script("first_message.py")
BUSY = Script("busy.py", ("method=fedavg", "data=fashion", "clients=ten", "references=none", "rounds=2"))
FEATURES = Script("features.py")
AVERAGING = Script("averaging.py")
RECORDS = Script("wire_records.py", timed=False)
OVERLAP = Script("overlap.py", ("--measure",), asked=True)  # three default runs of three rounds
NODES = Script("deployment.py", ("nodes", "--nodes", "50", "--rounds", "20"), asked=True)  # 50 processes: much memory
PEER = Script("peers/whole.py", ("--methods", "fedavg", "scaffold"), asked=True)
HTFL = Script("peers/htfl.py", asked=True)  # a clone of it is named by the variable HTFLLIB
GPU = Script("gpu.py", asked=True)  # a card of 24 GiB or more

SAME_TRAINING = (
    "with one thread each and no evaluation in between, both sides spend their time on the same training. The bar "
    "comes from an earlier measurement of the peer (379 s, here 97 s), whose threads and evaluations are not known. "
    "Ours writes each message, checks it, keeps checkpoints and loads diffusers and transformers."
)
BARS = (
    Bar("FedMMKT at the paper's N, d and C, `wire=small`: up (paper 2.35)", BYTES, "up", 0.60, unit="MB"),
    Bar("FedMMKT at the paper's N, d and C, `wire=small`: down (paper 7.13)", BYTES, "down", 1.8, unit="MB"),
    Bar("l-FedMMKT, `wire=small`: up (paper 0.31)", BYTES, "logits up", 0.05, unit="MB"),
    Bar("accuracy that `wire=small` loses, image clients", RECORDS, "image clients", 0.5, unit="points"),
    Bar("accuracy that `wire=small` loses, text clients", RECORDS, "text clients", 0.5, unit="points"),
    Bar(
        "accuracy that `wire=small` loses, T2I model",
        RECORDS,
        "T2I model",
        0.5,
        unit="points",
        why="lossy images change what image clients answer, and the loss builds up over rounds; int8 vectors change "
        "nothing (docs/wire.md). It is not decided over four seeds. `wire.images=webp wire.quality=null` is lossless.",
    ),
    Bar(
        "round of FedMMKT, samples made ahead / synchronous",
        OVERLAP,
        "ratio",
        0.7,
        why="on two cores that server and clients share, making samples ahead saves at most the time in which one core "
        "is idle: 0.83 (docs/operations.md). The bar needs clients with cores of their own.",
        missing="on two cores no overlap can be below 0.83, by the parts of a round (docs/operations.md).",
    ),
    Bar("round of FedMMKT / the same mathematics in a bare loop", ROUNDS, ("round / its mathematics", "fedmmkt"), 1.2),
    Bar("peak memory, 1,000 simulated clients with 20 in a cohort / 10 clients", SCALE, "memory ratio", 1.2),
    Bar("time per participating client, 1,000 / 10 clients", SCALE, "time ratio", 1.2),
    Bar("LabVote and MultiRepFusion, N = 8,000, d = 768, 64 clients / its matrix products", FUSION, "ratio", 2.0),
    Bar(
        "LabVote and MultiRepFusion at that size: peak memory",
        FUSION,
        "peak_mb",
        2000.0,
        unit="MB",
    ),
    Bar("mini synthesis / bare U-Net and VAE loop, images a second", SYNTHESIS, "ratio", 0.9, higher=True),
    Bar(
        "`florilegium run` to the first message handled / Flower's own quickstart",
        FIRST,
        "ratio",
        1.3,
        why="the launcher checks the settings and deals the rows to clients before it starts Flower. For that it loads "
        "torch, and flwr-datasets, whose drawing module loads seaborn, matplotlib and scipy: four seconds of a core. "
        "The quickstart checks and deals nothing, and its images are drawn.",
    ),
    Bar("a run beside two busy processes / alone", BUSY, "ratio", 2.5),
    Bar(
        "cold diffusion features / bare VAE and U-Net forward, images a second",
        FEATURES,
        "cold throughput / bare VAE + U-Net (bar 0.9)",
        0.9,
        higher=True,
    ),
    Bar(
        "50 SuperNodes on one machine, 20 rounds: replies that came / asked for",
        NODES,
        "replies / asked",
        1.0,
        higher=True,
        missing="50 processes need much memory and an idle machine; 36 nodes for 8 rounds lost none.",
    ),
    Bar("a client step of FedAvg / bare loop", AVERAGING, ("client step / bare loop", "fedavg"), 1.1),
    Bar(
        "whole process, FedAvg, 10 clients, 16 rounds: ours / fluke 0.8.1",
        PEER,
        ("fedavg", "ratio"),
        0.12,
        why=SAME_TRAINING,
    ),
    Bar(
        "whole process, SCAFFOLD, 10 clients, 16 rounds: ours / fluke 0.8.1",
        PEER,
        ("scaffold", "ratio"),
        0.12,
        why=SAME_TRAINING,
    ),
    Bar(
        "whole process, FedProto, 10 clients, 16 rounds: ours / HtFLlib",
        HTFL,
        ("fedproto", "ratio"),
        0.5,
        why="both spend their time on the same training: of our round 70 % are forward, backward and the optimiser, "
        "which no framework takes away. We train once more, in round 0, take the prototypes in a pass of their own "
        "after the training, and judge validation and test rows at the start and at the end.",
    ),
    Bar("GPU, Stable Diffusion 1.5's size, synthesis: ours / bare diffusers", GPU, ("ratios", "synthesis"), 0.97, True),
    Bar("GPU, the same with `compile=default` / bare diffusers", GPU, ("ratios", "synthesis, compiled"), 1.0, True),
    Bar("GPU, its peak memory: ours / bare diffusers", GPU, ("ratios", "synthesis, peak"), 1.1),
    Bar(
        "GPU, features at 224 pixels: ours / bare VAE and U-Net",
        GPU,
        ("ratios", "features"),
        0.95,
        True,
        why="a batch of 32 takes 70 ms, 4 more than the bare forward, whose pixels lie on the card before. Ours brings "
        "bytes to the card, draws each row's noise by its id, and brings the features back.",
    ),
    Bar(
        "GPU, U-Net call, `compile=reduce-overhead`: share of the rate of a large product",
        GPU,
        ("ratios", "decoder"),
        0.5,
        True,
        why="0.34 without compilation. It is 0.38 of the data sheet's rate (989 TFLOP/s). What is left are norms, "
        "activations and small products at the deep levels; `max-autotune` was not tried.",
    ),
    Bar("GPU, tuning with LoRA 16, batch 16: peak memory", GPU, ("ratios", "LoRA, GiB"), 14, unit="GiB"),
    Bar("GPU, tuning the whole decoder, batch 16: peak memory", GPU, ("ratios", "whole, GiB"), 24, unit="GiB"),
    Bar("checkpoint of the whole decoder / its trained weights", GPU, ("ratios", "checkpoint"), 2.0),
)


def busy_cores(seconds: float = 3.0) -> float:
    """How many cores are busy while this process waits."""
    return psutil.cpu_percent(interval=seconds) / 100 * (psutil.cpu_count() or 1)


def scripts() -> list[Script]:
    """The scripts of all figures, each once."""
    return list(dict.fromkeys(bar.script for bar in BARS))


def usual() -> list[Script]:
    """Those that run when none is named."""
    return [script for script in scripts() if not script.asked]


def read(script: Script) -> dict[str, Any]:
    """What was measured last with a script; {} where nothing was."""
    return json.loads(script.result.read_text(encoding="utf-8")) if script.result.exists() else {}


def machine() -> dict[str, Any]:
    """What the machine is, without its name."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's name as Linux gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def versions() -> dict[str, str]:
    """The versions of the libraries that the figures depend on."""
    return {name: metadata.version(name) for name in LIBRARIES}


def last_object(text: str) -> dict[str, Any]:
    """The JSON object at the end of what a script printed. ValueError without one."""
    lines = text.rstrip().splitlines()
    for first in range(len(lines) - 1, -1, -1):
        if lines[first].startswith("{"):
            found = json.loads("\n".join(lines[first:]))
            return dict(found)
    raise ValueError("it printed no JSON object")
