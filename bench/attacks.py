"""Attacks against FedMMKT, with and without defences: the table of docs/robustness.md.

    python -m bench.attacks            # writes the table; about ten minutes of one core

Toy scale: eight clients of milliseconds in one process, over the real client app and a serialised wire. The server's
T2I model is replaced by the drawing of the toy data, so that a sample's true class is known and what is measured is
what clients' uploads do to labels and to each other. The drawn class has no vote (method.server.prompt_weight=0).
"""

from __future__ import annotations

import json
import logging
import re
import statistics
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from client_app.app import app
from florilegium import seeds
from florilegium.config import composition
from florilegium.config.run import ATTACKS
from florilegium.data import toy
from florilegium.federation.federation import Federation
from florilegium.resources import Resources
from server_app.evaluation import client_figures
from strategies.blocks.rounds import Journal
from strategies.fedmmkt import FedMMKT
from tests.local_grid import LocalGrid

DEFENCES = ("none", "bounded", "trimmed", "median", "reputation", "all")
SEEDS, ROUNDS, SIDE = (0, 1), 3, 16
PAGE = Path(__file__).resolve().parents[1] / "docs" / "robustness.md"
MIX = [
    ("image", "vit"),
    ("image", "vit"),
    ("image", "vit"),
    ("image", "vit"),
    ("text", "distilbert"),
    ("text", "distilbert"),
    ("text", "distilbert"),
    ("text", "distilbert"),
]
FIGURES = {"labels/accuracy": "right", "labels/kept": "kept", "honest": "clients"}
OVERRIDES = [
    "data=toy",
    "clients=toy",
    "diffusion=mini",
    "references=none",
    "timeouts.quorum=2",
    "clients.mix=[" + ",".join(f"{{modality: {m}, model: {x}}}" for m, x in MIX) + "]",
    "method.server.samples=48",
    "method.server.prompt_weight=0",
    "method.server.vote_threshold=0.5",
    "method.server.tune_t2i=false",
    "method.client.pretrain_epochs=12",
    "method.client.distill_epochs=2",
    "method.client.batch=8",
    "clients.partition.alpha=1.0",
]


class Drawing(Resources):
    """The toy data's own drawing as generator, captioner and judge: every sample shows the class it was drawn for."""

    def generator(self) -> Any:
        return SimpleNamespace(synthesize=self.draw)

    def draw(self, prompts: list[str], noise: list[int], guidance: float | None = None) -> Tensor:
        names = list(toy.CLASSES)
        self.drawn = [next(c for c, name in enumerate(names) if name in prompt) for prompt in prompts]
        self.colours = [list(toy.COLOURS)[n % len(toy.COLOURS)] for n in noise]
        return torch.stack(
            [
                toy.draw(names[c], toy.COLOURS[colour], SIDE, seeds.generator("bench", n))
                for c, colour, n in zip(self.drawn, self.colours, noise, strict=True)
            ]
        )

    def captioner(self) -> Any:
        return lambda images: [f"{colour} {toy.CLASSES[c]}" for c, colour in zip(self.drawn, self.colours, strict=True)]

    why_no_judge = ""

    def judge(self) -> Any:
        return SimpleNamespace(predict=lambda images: torch.tensor(self.drawn))


class Honest(Journal):
    """Judges the clients that play no attack, after the last round."""

    def __init__(self, bad: list[int]) -> None:
        self.bad = bad

    def evaluate(self, strategy: Any, r: int, last: bool, federation: Federation) -> dict[str, float]:
        from florilegium.protocol.payloads import Nothing, Report

        if not last:
            return {}
        asked = [client for client in federation.clients if client.id not in self.bad]
        return {
            "honest": client_figures(federation.ask("evaluate", Nothing(), Report, clients=asked))["client/accuracy"]
        }


def run(attack: str, defence: str, seed: int, bad: list[int]) -> dict[str, float]:
    """One federation; the figures of its last round."""
    with tempfile.TemporaryDirectory() as out:
        conf = composition.complete(
            composition.compose(
                [*OVERRIDES, f"attack={attack}", f"defence={defence}", f"seed={seed}", f"out={out}", f"rounds={ROUNDS}"]
            )
        )
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        grid = LocalGrid(app, len(MIX), {"settings": json.dumps(composition.plain(conf)), "overrides": ""})
        method = FedMMKT(conf.method.server, Drawing(conf))
        federation = Federation(grid, seed=seed, expected=len(MIX), quorum=2)
        result = method.start(grid, num_rounds=ROUNDS, federation=federation, journal=Honest(bad))
        told = {**result.train_metrics_clientapp[ROUNDS], **result.evaluate_metrics_serverapp[ROUNDS]}
        return {name: float(told.get(name, float("nan"))) for name in FIGURES}


def attackers(seed: int) -> list[int]:
    """Two of eight, the same for every attack of a seed."""
    from florilegium.config.run import Attack

    return Attack("collude").attackers(len(MIX), seed)


def table(found: dict[tuple[str, str], list[dict[str, float]]]) -> str:
    """Markdown: a row for each attack, a column for each defence, `right / kept / clients` in per cent."""
    lines = ["| attack | " + " | ".join(DEFENCES) + " |", "|---" * (len(DEFENCES) + 1) + "|"]
    for attack in ATTACKS:
        cells = []
        for defence in DEFENCES:
            runs = found.get((attack, defence))
            if runs is None:
                cells.append("")
                continue
            means = [statistics.fmean(r[name] for r in runs) for name in FIGURES]
            cells.append(" / ".join(f"{100 * value:.0f}" for value in means))
        lines.append(f"| {attack} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    logging.getLogger("flwr").setLevel(logging.ERROR)
    for attack in ATTACKS:
        for defence in DEFENCES if attack != "nan_representations" else ("none", "all"):
            found[attack, defence] = [run(attack, defence, seed, attackers(seed)) for seed in SEEDS]
            print(attack, defence, found[attack, defence], file=sys.stderr, flush=True)
    text = PAGE.read_text()
    PAGE.write_text(
        re.sub(
            r"(<!-- table -->\n).*?(<!-- end -->)", lambda m: m[1] + table(found) + "\n" + m[2], text, flags=re.DOTALL
        )
    )


if __name__ == "__main__":
    main()
