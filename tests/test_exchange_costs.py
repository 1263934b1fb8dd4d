"""bench/exchanges.py and bench/overlap.py count what a run records: worked by hand on small ledgers."""

import json
from dataclasses import replace

import pytest

from bench import overlap
from bench.exchanges import Cost, cost, table
from florilegium.runs.reader import Recorded


def run(tmp_path, name, phases):
    """Two clients, two rounds; a message is 100 bytes down and 50 up, and the second client answers after 3 s."""
    ledger = [
        {
            "arm": "method",
            "round": r,
            "step": step,
            "phase": phase,
            "client": k,
            "modality": "image",
            "down": 100,
            "up": 50,
            "seconds": 1.0 + 2.0 * k,
            "fault": None,
        }
        for r in (0, 1, 2)
        for step, phase in enumerate(["profile", *phases, "evaluate"])
        for k in (0, 1)
    ]
    ledger.append(ledger[-1] | {"phase": "train", "late": "asked in round 1; dropped"})
    return Recorded(tmp_path / name, {"method": {"name": "fedmmkt"}}, {}, [], ledger, {}, {}, 0.0)


def test_a_joined_round_is_a_third_of_the_exchanges(tmp_path):
    separate, together = (
        cost(run(tmp_path, name, phases), floor)
        for name, phases, floor in (("separate", ["train", "represent", "distill"], 6.0), ("joined", ["joined"], 6.0))
    )
    # 3 exchanges a round, each 3 s to its slower client and 6 s of polling
    assert separate == Cost("FedMMKT (separate)", 3.0, 3.0, 300.0, 150.0, 27.0)
    assert together == Cost("FedMMKT (joined)", 1.0, 1.0, 100.0, 50.0, 9.0)
    assert set(together.ratios(separate).values()) == {0.333}
    assert "(0.33)" in table([separate, together]).splitlines()[2]
    assert json.dumps(together.ratios(separate))


def test_a_run_without_exchanges_is_said_so(tmp_path):
    with pytest.raises(SystemExit, match="no exchange after round 0"):
        cost(run(tmp_path, "empty", []), 0.0)


def test_what_a_round_waits_for_and_what_samples_made_ahead_save(tmp_path):
    """The slower client answers each exchange after 3 s; of a round of 14 s the server takes 5 s alone, of 10 s 1 s."""
    three = run(tmp_path, "none", ["train", "represent", "distill"])
    arms = [{"arm": "method"}, {"arm": "standalone"}]
    now, ahead = (
        replace(three, path=tmp_path / name, rounds=[a | {"round": r, "seconds": s} for a in arms for r in (0, 1, 2)])
        for name, s in (("none", 14.0), ("distill", 10.0))
    )
    assert overlap.parts(now) == {"train": 3.0, "represent": 3.0, "distill": 3.0, "server alone": 5.0, "round": 14.0}
    lines = overlap.table([now, ahead]).splitlines()
    assert lines[2] == "| none | 3.0 | 3.0 | 3.0 | 5.0 | 14.0 | 1.00 |"
    assert lines[3] == "| distill | 3.0 | 3.0 | 3.0 | 1.0 | 10.0 | 0.71 |"
    assert overlap.ratios([now, ahead]) == {"distill": 10 / 14, "ratio": 10 / 14}
    with pytest.raises(SystemExit, match="no round after round 0"):
        overlap.parts(replace(now, rounds=[]))
