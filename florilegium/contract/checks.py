"""Checks of one method: its facts, its settings, a run through the real apps, and a run that dies and is resumed.

Everything happens in this process, on toy data and with models of milliseconds (tiny_models.py). A check that fails
raises AssertionError; its message says what the method promised.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message

from florilegium import catalogue, preflight
from florilegium.catalogue import Upload
from florilegium.config import composition
from florilegium.config.settings import Settings
from florilegium.contract.tiny_models import toy_overrides
from florilegium.privacy.listing import listing
from florilegium.protocol import payloads, phases
from florilegium.runs import files
from florilegium.runs.reader import MAIN, evaluated, read_lines
from florilegium.runtime.inprocess import InProcessGrid, load_app, serve

ALIKE = "clients.mix=[{modality: image, model: resnet}, {modality: image, model: resnet}]"  # one architecture


class Killed(BaseException):
    """The server's process dies."""


class MortalGrid(InProcessGrid):
    """A grid that counts its messages, and ends the server with `Killed` at the answer number `die_at` (0: never)."""

    def __init__(self, *given: Any, die_at: int = 0) -> None:
        super().__init__(*given)
        self.answered, self.die_at = 0, die_at

    def answer(self, message: Message) -> Message | None:
        self.answered += 1
        if self.answered == self.die_at:
            raise Killed
        return super().answer(message)


def keeps_contract(method: str, folder: Path | str, *overrides: str) -> None:
    """All checks of a method. `overrides` are Hydra's, for example to make its training short.

    Runs write below `folder`, which should be empty. AssertionError for the first promise that is not kept; the
    errors of settings and of the catalogue as they are.
    """
    has_true_facts(method)
    has_typed_settings(method, *overrides)
    runs_and_resumes(method, folder, *overrides)


def has_true_facts(method: str) -> None:
    """The entry says of the client side what its code declares: which payloads it uploads, and whether it is there."""
    entry, client = catalogue.entry(method), catalogue.side(method, "client")
    assert entry.title and entry.paper and entry.exchanges, f"{method}: the entry lacks a title, a paper or exchanges"
    assert (client is None) == (not entry.modalities), f"{method}: a client side and modalities come together"
    assert entry.one_architecture == (Upload.WEIGHTS in entry.uploads), (
        f"{method}: clients upload Weights exactly where they need one architecture"
    )
    if client is None:
        return
    asked = [phase for phase in phases.phases_of(client) if phase not in phases.ALWAYS]
    kinds = {kind for phase in asked for kind in phases.declared(client, phase)[1]}
    declared = {kind.__name__ for kind in kinds - {payloads.Nothing, payloads.Report}}
    named = set(map(str, entry.uploads))
    assert declared == named, f"{method}: the client side declares {sorted(declared)}, the entry {sorted(named)}"


def has_typed_settings(method: str, *overrides: str) -> None:
    """The YAML file composes, bears the method's name, and passes every check made before a run; the privacy listing
    can be made of it."""
    conf = toy_settings(method, Path("not-written"), *overrides)
    assert conf.method.name == method, f"{method}: its YAML file is named {conf.method.name}"
    preflight.validate(conf)
    found = listing(conf)
    assert found.method == method and (found.fields or not catalogue.entry(method).client)


def runs_and_resumes(method: str, folder: Path | str, *overrides: str) -> None:
    """Two rounds end well, are judged and refuse nothing. A run that dies in its last round and is resumed gives the
    same figures and the same last checkpoint, bit for bit."""
    ran = [Path(folder, name) for name in ("whole", "part")]
    whole, part = (toy_settings(method, out, "rounds=2", *overrides) for out in ran)
    sent = federate(whole)
    rounds = recorded(ran[0])
    assert [r["round"] for r in rounds] == [0, 1, 2], f"{method}: rounds {[r['round'] for r in rounds]} are recorded"
    faults = [entry for entry in read_lines(Path(ran[0], "ledger.jsonl")) if entry["fault"]]
    assert evaluated(rounds[-1]), f"{method}: nothing of it was judged in the last round"
    for name in ("summary.json", "report.html"):
        assert Path(ran[0], name).exists(), f"{method}: its run has no {name}"
    assert not faults, f"{method}: {faults[0]['phase']} of client {faults[0]['client']}: {faults[0]['fault']}"
    try:
        federate(part, die_at=max(1, round(0.8 * sent)))
        died = False
    except Killed:
        died = True
    if died:  # a method that asks no client cannot die at a client's answer
        part.resume = True
        federate(part)
    for one, other in zip(rounds, recorded(ran[1]), strict=True):
        apart = [name for name in one["metrics"] if one["metrics"][name] != other["metrics"].get(name)]
        assert not apart, f"{method}: after a resume {apart[0]} of round {one['round']} is another"
    ends = [last_checkpoint(out) for out in ran]
    assert ends[0].keys() == ends[1].keys(), f"{method}: after a resume the checkpoint has other tensors"
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), f"{method}: after a resume {name} of the checkpoint is another"


# -- toy runs ----------------------------------------------------------------------------------------------------------


def toy_settings(method: str, out: Path, *overrides: str) -> Settings:
    """Complete settings of a method on toy data, clients and models, with `out` as the run directory."""
    alike = [ALIKE] if catalogue.entry(method).one_architecture else []
    given = ["data=toy", "clients=toy", *toy_overrides(), "references=none", "evaluation.images_per_class=2", *alike]
    conf = composition.complete(composition.compose([f"method={method}", *given, f"out={out}", *overrides]))
    for side in ("server", "client"):
        if guidance := conf.method.value(side, "guidance"):
            guidance["cache"] = str(Path(out, "features"))  # what an earlier version computed proves nothing
    return conf


def federate(conf: Settings, die_at: int = 0) -> int:
    """Run complete settings in this process to their end; how many messages were answered. Killed."""
    run_config = {"settings": json.dumps(composition.plain(conf)), "overrides": ""}
    grid = MortalGrid(load_app("clientapp"), len(conf.clients.mix), run_config, die_at=die_at)
    serve(load_app("serverapp"), grid, run_config)
    return grid.answered


def recorded(out: Path | str) -> Sequence[dict[str, Any]]:
    """The main arm's rounds."""
    return [r for r in read_lines(Path(out, "rounds.jsonl")) if r["arm"] == MAIN]


def last_checkpoint(out: Path | str) -> dict[str, torch.Tensor]:
    """The tensors of the main arm's newest checkpoint."""
    return files.load(sorted(Path(out, "checkpoints", MAIN).glob("*"))[-1])[0]
