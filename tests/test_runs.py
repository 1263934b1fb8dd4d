"""A run directory is exact: what is rewound is gone, what is torn is healed, what fails says so in one line."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from florilegium.runs import lock
from florilegium.runs.pictures import read_raw
from florilegium.runs.reader import best, read_lines, recorded, validation
from florilegium.runs.writer import Run, RunError
from server_app import driver
from tests.synthetic_run import CLASSES, build, captions, conf, entry, figures, images


def lines(out, name):
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def test_a_record_is_one_line_and_comes_back_as_it_was(tmp_path):
    run = Run.open(tmp_path / "run", conf())
    run.record("method", 0, 12.34567, {"client/accuracy/image": np.float32(0.5), "loss": float("nan")})
    want = {"arm": "method", "round": 0, "seconds": 12.346, "metrics": {"client/accuracy/image": 0.5, "loss": None}}
    assert lines(run.out, "rounds.jsonl") == run.rounds("method") == [want]
    assert run.rounds("standalone") == []


def test_rewind_drops_the_later_rounds_of_one_arm_only(tmp_path):
    out = build(tmp_path / "run")
    before = {name: lines(out, name) for name in ("rounds.jsonl", "ledger.jsonl")}
    run = Run.open(out, conf(resume=True), resume=True)
    run.rewind("method", 1)
    for name, held in before.items():
        assert lines(out, name) == [x for x in held if x["arm"] != "method" or x["round"] <= 1]
    assert [r["round"] for r in run.rounds("standalone")] == [0, 1, 2]
    assert list(json.loads((out / "votes.json").read_text())["method"]["rounds"]) == ["1"]
    kept = sorted(p.name for p in (out / "samples").iterdir())
    assert "method-round-001.png" in kept and "method-round-001.npz" in kept and "self_label-round-002.png" in kept
    assert not [name for name in kept if name.startswith("method-round-002")]
    run.rewind("method", -1)
    assert run.rounds("method") == [] and len(run.rounds("standalone")) == 3


def test_rewind_then_the_same_round_again_gives_the_same_directory(tmp_path):
    out = build(tmp_path / "run")
    told = (out / "rounds.jsonl").read_text().splitlines()
    run, again = Run.open(out, conf(), resume=True), json.loads(told[2])
    run.rewind("method", 1)
    run.record("method", 2, again["seconds"], again["metrics"])
    assert sorted((out / "rounds.jsonl").read_text().splitlines()) == sorted(told)


def test_a_torn_last_line_is_dropped_and_the_file_healed(tmp_path):
    out = build(tmp_path / "run")
    whole = (out / "rounds.jsonl").read_bytes()
    (out / "rounds.jsonl").write_bytes(whole + b'{"arm": "method", "rou')
    assert len(read_lines(out / "rounds.jsonl")) == whole.count(b"\n")
    Run.open(out, conf(), resume=True).record("late", 0, 1.0, {})
    assert (out / "rounds.jsonl").read_bytes().startswith(whole)
    assert lines(out, "rounds.jsonl")[-1]["arm"] == "late"


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "rounds.jsonl").write_text('{"arm": 1}\nnonsense\n{"arm": 2}\n')
    with pytest.raises(RunError, match="rounds.jsonl line 2: not JSON"):
        read_lines(tmp_path / "rounds.jsonl")


def test_summary_has_first_best_and_last(tmp_path):
    # validation accuracy over rounds 0, 1, 2: (.3+.5)/2 = .40, (.4+.6)/2 = .50, (.35+.55)/2 = .45 -> round 1 is best
    told = json.loads((build(tmp_path / "run", lift=-0.15) / "summary.json").read_text())
    method = told["method"]
    assert [method[k]["round"] for k in ("first", "best_on_validation", "last")] == [0, 1, 2]
    assert method["best_on_validation"]["metrics"]["client/accuracy/image"] == pytest.approx(0.4)
    assert method["seconds"] == 10 + 11 + 12
    assert told["seconds"] == 33 + 3 * 1 + 2 * 5
    assert set(told["references"]) == {"standalone", "self_label", "centralised"}
    assert told["references"]["centralised"]["best_on_validation"] is None  # it has no clients, so no validation
    assert told["protocol"]["seed"] == 0 and told["protocol"]["judge_accuracy"] == 0.8


def test_the_earliest_of_equally_good_rounds_is_best():
    records = [{"round": r, "metrics": figures(a, a)} for r, a in ((0, 0.1), (1, 0.5), (2, 0.5))]
    assert best(records)["round"] == 1
    assert validation({"client/validation/image": 0.2, "client/validation/7": 0.9}) == 0.2
    assert validation({"client/accuracy/image": 0.2}) is None


def test_grids_keep_every_pixel(tmp_path):
    run, shown = Run.open(tmp_path / "run", conf()), images()
    run.grid("method", 3, shown, captions())
    back, names = read_raw(run.out / "samples" / "method-round-003.npz")
    assert np.array_equal(back, shown) and names == captions()
    with Image.open(run.out / "samples" / "method-round-003.png") as sheet:
        # a strip is 4 tiles of 8 pixels and 3 gaps = 35 wide, enlarged 3 times; three of them side by side
        assert sheet.size == (3 * (35 * 3 + 6) + 6, 8 * 3 + 18 + 2 * 6)
        assert sheet.getpixel((6, 6)) == tuple(shown[0, :, 0, 0])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros((2, 3, 8, 8), np.float32), "uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), "N,3,H,W"),
        (np.zeros((3, 3, 8, 8), np.uint8), "as many captions"),
    ],
)
def test_a_wrong_grid_is_refused(tmp_path, wrong, said):
    with pytest.raises(ValueError, match=said):
        Run.open(tmp_path / "run", conf()).grid("method", 0, wrong, ["a", "b"])


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be created") as why:
        Run.open(tmp_path / "file" / "run", conf())
    assert "\n" not in str(why.value) and str(tmp_path) in str(why.value)


def test_a_directory_that_vanishes_is_one_line(tmp_path):
    run = Run.open(tmp_path / "run", conf())
    (run.out / "samples").rmdir()
    with pytest.raises(RunError, match="cannot write .*method-round-001.png"):
        run.grid("method", 1, images(), captions())


def test_a_second_run_does_not_overwrite_the_first(tmp_path):
    out = build(tmp_path / "run")
    with pytest.raises(RunError, match="holds a run already"):
        Run.open(out, conf())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed=0, not 1"),
        ({"data": {"name": "fashion", "image_size": 8}}, "data.name=emoji, not fashion"),
        ({"rounds": 1}, "rounds=2"),
    ],
)
def test_resume_wants_the_same_settings(tmp_path, change, said):
    out = build(tmp_path / "run")
    with pytest.raises(RunError, match=said):
        Run.open(out, conf() | change, resume=True)


def test_resume_may_change_the_machine_and_add_rounds(tmp_path):
    out = build(tmp_path / "run")
    changed = conf(resume=True, out="elsewhere", rounds=5, runtime={"name": "deployment"})
    changed["clients"] = changed["clients"] | {"device": "cuda"}
    assert Run.open(out, changed, resume=True).rounds("method")[-1]["round"] == 2


def test_a_run_is_finished_when_all_its_arms_are(tmp_path):
    out = build(tmp_path / "run")
    assert not recorded(out).unfinished and recorded(out).open_arms == {}
    run = Run.open(out, conf(), resume=True)
    run.rewind("standalone", 1)
    run.rewind("self_label", -1)
    assert recorded(out).open_arms == {"standalone": 1, "self_label": None}
    (out / "partition.json").unlink()  # a kept record, which may leave out arms
    assert recorded(out).open_arms == {"standalone": 1} and recorded(out).standing == "at round 1 of 2 of Standalone"
    run.rewind("method", 0)
    assert recorded(out).unfinished and recorded(out).standing == "at round 0 of 2"
    lock.release(out / ".lock")


def test_rows_name_files_so_their_names_are_checked(tmp_path):
    with pytest.raises(RunError, match="an arm's name"):
        Run.open(tmp_path / "run", conf()).record("../up", 0, 1.0, {})


def test_progress_keeps_what_is_not_said_again(tmp_path):
    run = Run.open(tmp_path / "run", conf())
    run.progress(arm="method", round=1, rounds=2, phase="synthesize", done=0, total=9)
    run.progress(done=9, total=9)
    run.progress(phase="vote")
    told = lines(run.out, "progress.jsonl")
    assert [t["phase"] for t in told] == ["synthesize", "synthesize", "vote"]
    assert told[1] == {"arm": "method", "round": 1, "rounds": 2, "phase": "synthesize", "done": 9, "total": 9}
    run.progress(done=1, total=9)
    assert len(lines(run.out, "progress.jsonl")) == 3  # within a quarter of a second


def test_a_run_that_failed_leaves_no_progress(toy_conf, monkeypatch):
    """It says how far a run is that works."""
    conf, there = toy_conf(), []

    def failing(run, conf, grid):
        run.progress(phase="train", done=1, total=2)
        there.append((run.out / "progress.jsonl").exists())
        raise RuntimeError("no")

    monkeypatch.setattr(driver, "run_arms", failing)
    with pytest.raises(RuntimeError, match="no"):
        driver.drive(conf, None)
    lock.release(Path(conf.out, ".lock"))
    assert there == [True] and not Path(conf.out, "progress.jsonl").exists()


def test_votes_and_ledger_are_read_back(tmp_path):
    run = Run.open(tmp_path / "run", conf())
    run.votes("method", 2, np.eye(3, dtype=int), CLASSES)
    run.ledger([entry("method", 1, "represent", 0, 10, 20, "raised: x")])
    read = recorded(run.out)
    assert read.votes["method"] == {"rounds": {"2": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}, "classes": CLASSES}
    assert read.ledger[0]["fault"] == "raised: x"


def test_a_run_of_version_0_1_reads_its_rows_as_arms(tmp_path):
    (tmp_path / "rounds.jsonl").write_text('{"row": "method", "round": 0, "metrics": {}}\n')
    assert read_lines(tmp_path / "rounds.jsonl") == [{"arm": "method", "round": 0, "metrics": {}}]


def test_one_line_of_bitsandbytes_is_left_out_and_no_other(caplog) -> None:
    said = logging.getLogger("bitsandbytes.backends.cpu.ops")
    said.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "No module named 'kernels'")
    said.warning("another line")
    assert caplog.messages == ["another line"]
