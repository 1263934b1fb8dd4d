"""bench/rounds.py: its clock leaves a run as it is and its parts fit into the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.rounds import METHODS, Clock, clocked, protocol
from florilegium import preflight
from florilegium.config import composition
from florilegium.runs.reader import read_lines


def test_the_ratio_is_all_that_rounds_took_to_the_mathematics_in_them() -> None:
    # 12 s of rounds; the server's own work is 5 s less the 3 s it waited, its clients worked 8 s
    assert Clock(rounds=12, asked=3, server=5, clients=8).ratio == 12 / (5 - 3 + 8)


def test_a_clock_changes_no_number_and_sees_both_halves(
    toy_conf: Callable,
    federated: Callable,
    tmp_path: Path,
) -> None:
    given = ("method=fedmd", "rounds=1", "references=none", "evaluation.images_per_class=1")
    plain = federated(toy_conf(*given, f"out={tmp_path / 'plain'}"))
    with clocked() as clock:
        measured = federated(toy_conf(*given, f"out={tmp_path / 'measured'}"))
    told = [[x["metrics"] for x in read_lines(run / "rounds.jsonl")] for run in (plain, measured)]
    assert told[0] == told[1] and len(told[0]) == 2
    assert clock.clients > 0 and clock.server > clock.asked > clock.clients  # clients answer inside the exchanges
    assert clock.rounds >= clock.server


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_a_round_that_may_start(method: str, tmp_path: Path) -> None:
    given = [f"method={method}", *protocol(method), "references=none", "rounds=1", f"out={tmp_path / 'run'}"]
    preflight.validate(composition.complete(composition.compose(given)))
