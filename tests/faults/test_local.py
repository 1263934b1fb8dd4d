"""`florilegium deploy local` ends with the numbers of the simulation, and leaves no process."""

from __future__ import annotations

from pathlib import Path

import pytest

from florilegium.runs.reader import read_lines
from tests.faults.conftest import LIMIT, TWO
from tests.test_launch import florilegium, nothing_left

pytestmark = pytest.mark.faults


def test_a_deployment_over_loopback_ends_with_the_simulations_numbers(
    tiny_overrides: list[str],
    tmp_path: Path,
) -> None:
    toy = ["data=toy", "clients=toy", TWO, *tiny_overrides, "references=none", "rounds=1", "method=fedmmkt"]
    ways = {"simulated": ["run"], "deployed": ["deploy", "local"]}
    started = {
        out: florilegium(*command, *toy, f"out={tmp_path / out}", where=tmp_path) for out, command in ways.items()
    }
    for out, process in started.items():
        told, errors = process.communicate(timeout=2 * LIMIT)
        assert process.returncode == 0, told + errors
        assert told.splitlines()[-1] == out
    assert nothing_left(tmp_path)
    simulated, deployed = (read_lines(tmp_path / out / "rounds.jsonl") for out in ways)
    assert [r["round"] for r in deployed] == [0, 1]
    for a, b in zip(simulated, deployed, strict=True):
        assert b["metrics"] == pytest.approx(a["metrics"], abs=1e-5)
    assert sum(e["up"] for e in read_lines(tmp_path / "deployed" / "ledger.jsonl")) > 0
