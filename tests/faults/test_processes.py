"""Processes of a federation that are killed: the round keeps its deadline, the run resumes, clients need no hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from florilegium.runs import files
from florilegium.runs.reader import read_lines
from tests.faults.conftest import Deployment, alive, ended, until

pytestmark = pytest.mark.faults
DEADLINE = 90  # seconds; more than two toy clients need on a busy machine


def trained_times(state: Path, client: int) -> int:
    """How often the newest private model of a client says it was trained."""
    versions = sorted(state.rglob(f"client-{client}/model-*.safetensors"), key=lambda path: path.name)
    return int(files.load(versions[-1])[1]["trained"])


def test_a_node_killed_in_a_phase_costs_its_round_and_comes_back_with_its_model(
    deployment: Callable[[int], Deployment],
) -> None:
    federation = deployment(2)
    run = federation.launch(
        "method=standalone", "rounds=4", "timeouts.quorum=1", f"timeouts.exchange={DEADLINE}", "evaluation.every=100"
    )
    records, ledger = (federation.folder / "run" / f"{name}.jsonl" for name in ("rounds", "ledger"))
    until("round 0 to be over", lambda: read_lines(records), process=run)
    working = federation.working("site-1", run, "round 1")
    federation.descendants("site-1", "flower-supernode")[0].kill()
    killed = time.monotonic()
    until("round 1 to be over", lambda: len(read_lines(records)) >= 2, process=run)
    assert time.monotonic() - killed < DEADLINE + 15  # the round waited its deadline, no longer
    assert not any(map(alive, working))  # nobody works on for a node that is gone
    ended(run)

    entries = [e for e in read_lines(ledger) if e["phase"] == "train"]
    faults = {(e["client"], e["round"]) for e in entries if e["fault"]}
    assert (1, 1) in faults and {client for client, _ in faults} == {1}
    assert [r["round"] for r in read_lines(records)] == [0, 1, 2, 3, 4]
    answered = [e["round"] for e in entries if e["client"] == 1 and not e["fault"]]
    assert answered[-1] == 4  # it was back
    # one that forgot would count anew; a round that was cut off may have been trained
    assert trained_times(federation.state / "site-1", 1) >= len(answered) >= 2
    assert trained_times(federation.state / "site-0", 0) == sum(e["client"] == 0 for e in entries)


def test_a_superlink_killed_and_restarted_costs_nothing_but_time(
    deployment: Callable[[int], Deployment],
    toy_conf: Callable,
    federated: Callable,
    tmp_path: Path,
) -> None:
    federation = deployment(2)
    settings = ["method=standalone", "rounds=1", "timeouts.exchange=120", "evaluation.every=100"]
    run = federation.launch(*settings)
    records, ledger = (federation.folder / "run" / f"{name}.jsonl" for name in ("rounds", "ledger"))
    until("the last round", lambda: read_lines(records), process=run)
    nodes = [federation.descendants(site, "flower-supernode")[0] for site in federation.sites]
    killed = federation.descendants("superlink", "flower-superlink")
    assert killed
    for process in killed:
        process.kill()
    ended(run)  # nobody had to lend a hand
    assert all(map(alive, nodes))
    assert not any(entry["fault"] for entry in read_lines(ledger))
    assert [r["round"] for r in read_lines(records)] == [0, 1]

    whole = federated(toy_conf(federation.toy[2], *settings, f"out={tmp_path / 'whole'}"))
    for a, b in zip(read_lines(whole / "rounds.jsonl"), read_lines(records), strict=True):
        assert b["metrics"] == pytest.approx(a["metrics"], abs=1e-5)  # nor did a number change
