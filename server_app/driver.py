"""One driver owns what all methods share: arms, resume, evaluation, records."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from florilegium import catalogue
from florilegium.config import composition
from florilegium.config.settings import Settings
from florilegium.data.datasets import at_sites, classes_of
from florilegium.data.own import preparation
from florilegium.data.partition import partition
from florilegium.federation.exchange import Client
from florilegium.federation.federation import Federation
from florilegium.learning.averaging import named, part, without
from florilegium.report import page
from florilegium.resources import Resources
from florilegium.runs import files
from florilegium.runs.checkpoints import Checkpoints
from florilegium.runs.logs import JsonLog, LoggedRounds
from florilegium.runs.reader import read_json
from florilegium.runs.sinks import opening
from florilegium.runs.writer import Run
from server_app import provenance
from server_app.evaluation import Evaluation
from strategies.blocks.rounds import Journal, Rounds

LOG = logging.getLogger("flwr")  # Flower's log is where a server app is heard
FEDERATION = "federation"  # first name of its tensors in a checkpoint
KEEP_CHECKPOINTS = 2  # the newest could be the one a failing disk tore


class ArmJournal(Journal):
    """Evaluates, records and checkpoints one arm of a run."""

    def __init__(self, run: Run, arm: str, evaluation: Evaluation, every: int, resume: bool) -> None:
        self.run, self.arm, self.evaluation, self.every, self.resuming = run, arm, evaluation, every, resume
        self.checkpoints = Checkpoints(Path(run.checkpoints(arm)), KEEP_CHECKPOINTS)

    def resume(self, strategy: Rounds, federation: Federation) -> int | None:
        """Restore the newest readable checkpoint and forget the records after it."""
        if not self.resuming:
            return None
        for path in reversed(self.checkpoints.there()):
            try:
                tensors, meta = files.load(path)
            except Exception as error:  # a torn file is skipped, whatever the reader calls it
                LOG.warning("checkpoint %s of %s is unreadable (%s); trying the one before", path.name, self.arm, error)
                continue
            strategy.restore(without(tensors, FEDERATION), meta["strategy"])
            federation.restore(part(tensors, FEDERATION), meta["federation"])
            self.run.rewind(self.arm, meta["round"])
            return int(meta["round"])
        self.run.rewind(self.arm, -1)
        return None

    def evaluate(self, strategy: Rounds, r: int, last: bool, federation: Federation) -> dict[str, float]:
        main = self.arm == composition.MAIN
        if not last and (r % self.every or (not main and not strategy.asks_clients)):
            return {}
        figures: dict[str, float] = {}
        if strategy.asks_clients:
            figures |= self.evaluation.clients(federation, strategy.judged_model())
        figures |= self.evaluation.server(strategy)
        if strategy.generator is not None:
            judged = self.evaluation.generator(strategy.generator)
            figures |= judged.metrics
            if last or (main and r == 0):  # drawing thousands of images takes long
                figures |= self.evaluation.generic(strategy.generator)
            self.run.grid(self.arm, r, judged.images.numpy(), judged.captions)
        return figures

    def close(
        self, strategy: Rounds, r: int, seconds: float, metrics: dict[str, float], federation: Federation
    ) -> None:
        record_own_data(self.run, self.evaluation.resources.conf, federation.clients)
        tensors, meta = strategy.state()
        owed, about_clients = federation.state()
        self.checkpoints.wait()  # the round before is whole before this one is recorded
        self.run.ledger(federation.take_ledger())
        if (votes := getattr(strategy, "votes", None)) is not None:
            self.run.votes(self.arm, r, votes.tolist(), list(self.evaluation.class_names))
        self.run.record(self.arm, r, seconds, metrics)
        # last: a kill before the file is whole repeats the round, and `rewind` drops what was recorded of it
        about = {"round": r, "strategy": meta, "federation": about_clients}
        self.checkpoints.save(r, tensors | named(FEDERATION, owed), about)


def record_own_data(run: Run, conf: Settings, clients: Sequence[Client]) -> None:
    """Put what the sites with data of their own reported in the place of a partition that nobody trained on.

    Under `privacy` neither counts nor classes are recorded: no mechanism covers them.
    """
    own = {client.id: client for client in clients if client.own}
    if not own:
        return
    names = classes_of(conf.data)
    private = bool(conf.privacy.representations or conf.privacy.votes or conf.privacy.training)
    held = read_json(run.out / "partition.json")
    there = {entry["client"]: entry for entry in held.get("clients", [])}
    for k, client in own.items():
        there[k] = {"client": k, "modality": client.modality, "model": client.architecture, "data": "own data"}
        if not private:
            there[k] |= {"count": client.examples, "present": [names[label] for label in client.classes]}
    if all(entry.get("data") == "own data" for entry in there.values()):
        held = {}  # nobody was dealt anything
    run.partition(held | {"clients": [there[k] for k in sorted(there)]})


class Narrator:
    """Adds the arm and the round to the progress of a phase."""

    def __init__(self, run: Run, rounds: int) -> None:
        self.run, self.rounds = run, rounds
        self.arm = composition.MAIN
        self.federation: Federation | None = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        r = self.federation.round if self.federation is not None else 0
        self.run.progress(arm=self.arm, round=r, rounds=self.rounds, phase=phase, done=done, total=total)


def drive(conf: Settings, grid: Any) -> None:
    """Run the method and its reference arms, each resumed where it stopped, then write summary and report."""
    run = Run.open(conf.out, conf, resume=conf.resume)
    preparation.prepare(conf)  # where no launcher has done it
    watched(run, conf)
    try:
        run_arms(run, conf, grid)
    except Exception as error:
        LOG.error("the run failed: %s: %s", type(error).__name__, composition.first_line(error))
        raise
    finally:
        run.close()


def watched(run: Run, conf: Settings) -> None:
    """Connect the sinks of the settings and the run's own log."""
    log = LoggedRounds(JsonLog(run.out, conf.log_level))
    run.observe(*opening.open_sinks(conf.sinks, run.out, run.settings), at_once=log)


def run_arms(run: Run, conf: Settings, grid: Any) -> None:
    """Run each arm, one after another."""
    narrator = Narrator(run, conf.rounds)
    resources = Resources(conf, progress=narrator)
    run.partition({"clients": []} if at_sites(conf.data) else partition(conf))
    evaluation = Evaluation(conf, resources)
    for arm, node in composition.arms(conf).items():
        Half: Any = catalogue.side(node.name, "server")
        strategy = Half(node.server, resources)
        narrator.arm, narrator.federation = (
            arm,
            Federation(
                grid,
                arm,
                seed=conf.seed,
                timeout=conf.timeouts.exchange,
                quorum=conf.timeouts.quorum,
                fraction=conf.cohort.fraction,
                expected=len(conf.clients.mix),
                fatal=list(conf.runtime.fatal_codes),
                progress=narrator,
                late=conf.timeouts.late,
                decay=conf.timeouts.decay,
                give_up=conf.timeouts.give_up,
                resources=resources,
            ),
        )
        journal = ArmJournal(run, arm, evaluation, conf.evaluation.every, conf.resume)
        with journal.checkpoints:
            strategy.start(grid, num_rounds=conf.rounds, federation=narrator.federation, journal=journal)
        if arm == composition.MAIN and strategy.generator is not None:
            strategy.generator.save(run.model_dir)
        run.finish(conf, protocol=evaluation.protocol() | provenance.code())
        page.write(run.out)  # after each arm: a run killed later still has its page
