"""docs/performance.md: the page and its picture are what the generator makes of the kept figures; verdicts by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import board, gpu, performance, wire_records
from bench.board import Bar, Script
from bench.peers import table as peers


def test_the_page_and_its_picture_are_made_of_the_kept_figures() -> None:
    """`python bench/all.py --page` writes them again."""
    assert performance.PAGE.read_text(encoding="utf-8") == performance.markdown()
    assert performance.PICTURE.read_text(encoding="utf-8") == performance.picture()


def test_every_figure_has_a_script_and_kept_figures_say_where_they_are_from() -> None:
    for script in board.scripts():
        assert (board.ROOT / "bench" / script.file).is_file(), script
    timed = {script.file: script.timed for script in board.scripts()}
    for file in board.RESULTS.glob("*.json"):
        held = json.loads(file.read_text(encoding="utf-8"))
        assert {"script", "date", "load", "provisional", "machine", "versions", "found"} <= held.keys(), file
        assert held["provisional"] == (timed[held["script"]] and held["load"] > board.QUIET), file
        assert "/root" not in file.read_text() and "/work" not in file.read_text() and "/home" not in file.read_text()


def test_what_was_measured_has_each_of_its_figures() -> None:
    missing = [bar.title for bar in board.BARS if (held := board.read(bar.script)) and bar.value(held["found"]) is None]
    assert not missing


def test_the_small_form_loses_what_the_records_say() -> None:
    """By hand of docs/records/wire, exact - small of seeds 0, 1, 3 and 4."""
    lost = wire_records.lost()
    assert lost["image clients"] == pytest.approx((-0.76 - 1.73 - 1.05 - 1.52) / 4, abs=0.01)
    assert lost["T2I model"] == pytest.approx((2.5 + 6.11 + 13.61 + 3.06) / 4, abs=0.01)


LOW = Bar("a time", Script("a.py"), ("inner", "ratio"), 1.2, why="it polls")
HIGH = Bar("a speed", Script("b.py", ("--fast",)), "speed", 0.9, higher=True, unit="images/s")


def test_verdicts_by_hand() -> None:
    assert LOW.value({"inner": {"ratio": 1.5}}) == 1.5 and LOW.value({"inner": {}}) is None and LOW.value({}) is None
    assert LOW.met(1.2) and not LOW.met(1.21) and HIGH.met(0.9) and not HIGH.met(0.89)
    # 1.5 of 1.2 is a quarter too much; half the speed of the bar is twice the bar
    assert LOW.share(1.5) == pytest.approx(1.25) and HIGH.share(0.45) == pytest.approx(2)


def test_a_script_says_its_figures_last() -> None:
    assert board.last_object('{"part": 1}\nwords\n{\n "ratio": 2\n}\n') == {"ratio": 2}
    assert board.last_object('one\n{"a": {"b": 1}}') == {"a": {"b": 1}}
    with pytest.raises(ValueError, match="no JSON object"):
        board.last_object("nothing\n")


def kept(file: Path, found: dict, load: float) -> None:
    machine = {"processor": "P", "cores": 2, "memory_gib": 8, "system": "Linux x", "python": "3.11"}
    told = {"date": "2026-01-02", "seconds": 3.4, "load": load, "provisional": load > board.QUIET}
    file.write_text(json.dumps(told | {"machine": machine, "versions": {"torch": "2"}, "found": found}))


def test_the_page_has_verdicts_reasons_and_what_was_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "RESULTS", tmp_path)
    monkeypatch.setattr(board, "BARS", (LOW, HIGH))
    monkeypatch.setattr(performance, "BARS", (LOW, HIGH))
    page = performance.markdown()
    assert "- **a time**: `python bench/all.py a.py` measures it." in page
    assert page.count("| not measured |") == 4 and "<rect" not in performance.picture()
    kept(tmp_path / "a.json", {"inner": {"ratio": 1.5}}, load=3.0)
    kept(tmp_path / "b.json", {"speed": 0.95}, load=0.1)
    page = performance.markdown().replace(performance.NARROW, " ")
    assert "| a time | 1.50 * | ≤ 1.20 | **missed** |" in page
    assert "| a speed | 0.95 images/s | ≥ 0.90 images/s | met |" in page
    assert "- **a time** (1.50): it polls" in page and "Provisional" in page
    assert "| `python bench/b.py --fast` | 2026-01-02 | 3 | 0.1 |" in page and "P, 2 cores, 8 GiB" in page
    assert performance.picture().count("<rect") == 2 and "1.25 ✗" in performance.picture()


def test_the_table_of_peers_is_made_of_its_runs() -> None:
    """`python bench/peers/table.py` writes it again. 60 and 50 against 40 and 40: +15 with an error of 5, so a star."""
    page = peers.PAGE.read_text(encoding="utf-8")
    assert peers.written(page, json.loads(peers.KEPT.read_text(encoding="utf-8"))) == page

    def run(ours: float, peer: float) -> dict:
        return {
            "method": "m",
            "ours": {"accuracy": ours, "seconds": 3.0},
            "peer": {"accuracy": peer, "seconds": 2.0},
        }

    assert peers.line([run(0.6, 0.4), run(0.5, 0.4)]) == "| m | 55.0 ± 5.0 | 40.0 ± 0.0 | +15.0 ± 5.0 * | 3 | 2 |"
    assert peers.line([run(0.6, 0.4)]) == "| m | 60.0 | 40.0 | +20.0 | 3 | 2 |"


def test_ratios_of_a_gpu_by_hand() -> None:
    """Two figures of what was measured beside each other; nothing of what failed or was not measured."""
    figures = {
        "bare synthesis": {"images_per_s": 4.0, "peak_gib": 10.0},
        "our synthesis": {"images_per_s": 5.0, "peak_gib": 11.0},
        "our synthesis, compile default": {"error": "did not end"},
        "tuning, whole": {"peak_gib": 21.5, "of_trained": 2.0},
    }
    found = gpu.ratios(figures)
    assert found == {"synthesis": 1.25, "synthesis, peak": 1.1, "whole, GiB": 21.5, "checkpoint": 2.0}
