"""The tables of docs/results.md are those that the kept records give, and records hold no path of a machine."""

import json
import re
from pathlib import Path

import pytest
import yaml

from florilegium.runs.reader import recorded
from tests.synthetic_run import build
from tools.keep_records import keep
from tools.result_tables import BLOCK, DOCS, PAGES, aims, written

RECORDS = sorted(path.parent for path in (DOCS / "records").rglob("settings.yaml"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_page_shows_what_the_records_give(page: Path):
    text = page.read_text(encoding="utf-8")
    assert BLOCK.search(text)
    assert written(text) == text, "run python tools/result_tables.py"


def test_every_record_stands_in_a_table():
    tables = "".join(m["arguments"] for page in PAGES for m in BLOCK.finditer(page.read_text("utf-8")))
    named = re.findall(r"records/[\w/-]+", tables)
    unused = [path for path in RECORDS if not any(path.is_relative_to(DOCS / name) for name in named)]
    assert not unused


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_record_is_a_finished_run_without_paths(path: Path):
    assert not recorded(path).unfinished
    assert not re.search(r"[\s\"']/\w+/", (path / "settings.yaml").read_text("utf-8"))


def test_a_table_from_kept_records(tmp_path):
    for seed, lift in enumerate((0.0, 0.03, 0.06)):  # gaps of images to Standalone: .20, .23, .26
        out = build(tmp_path / f"run-{seed}", seed=seed, lift=lift, assets=str(tmp_path / "assets"))
        keep(recorded(out), tmp_path / "docs" / "records" / str(seed))
    kept = tmp_path / "docs" / "records" / "0"
    assert yaml.safe_load((kept / "settings.yaml").read_text())["assets"] is None
    assert json.loads((kept / "rounds.jsonl").read_text().splitlines()[0])["metrics"]["client/accuracy/image"] == 0.3
    page = (
        "before\n<!-- compare records --against standalone --metric client/accuracy/image -->\nold\n<!-- end -->\nafter"
    )
    made = written(page, tmp_path / "docs")
    assert made.startswith("before\n") and made.endswith("<!-- end -->\nafter") and "\nold\n" not in made
    # mean .23, standard error .03 / sqrt(3) = .01732; t(.975, 2) = 4.3027
    assert re.search(r"FedMMKT\*?\*? \|.*\+23\.0\*?\*? \|.*\[\+15\.5, \+30\.5\]", made)
    assert written(made, tmp_path / "docs") == made


def test_aims_are_reached_only_where_they_are_decided(tmp_path):
    for seed, lift in enumerate((0.0, 0.03, 0.06)):  # as above: +23.0 points, interval 15.5 to 30.5
        keep(recorded(build(tmp_path / f"run-{seed}", seed=seed, lift=lift)), tmp_path / "records" / "few" / str(seed))
    keep(recorded(build(tmp_path / "alone", seed=0)), tmp_path / "records" / "one" / "0")

    def result(asked: float, arm: str = "FedMMKT", against: str = "Standalone", runs: str = "few") -> list[str]:
        aim = {"claim": "c", "runs": [f"records/{runs}"], "metric": "client/accuracy/image", "arm": arm}
        text = yaml.safe_dump({"it": aim | {"against": [against], "asked": asked}})
        (tmp_path / "records" / "aims.yaml").write_text(text)
        return [cell.strip() for cell in aims("it", tmp_path).splitlines()[-1].split("|")[1:-1]]

    assert result(20)[3:] == ["+23.0 [+15.5, +30.5]", "≥ 20", "3", "**reached**"]
    assert result(25)[-1] == "**higher**, but less than the aim"
    assert result(0, "Standalone", "FedMMKT")[3:] == ["-23.0 [-30.5, -15.5]", "> 0", "3", "**lower**"]
    assert result(0, runs="one")[4:] == ["> 0", "1", "one seed"]
    with pytest.raises(ValueError, match="no pair of 'FedAvg' and 'Standalone'"):
        result(0, "FedAvg")


def test_an_unfinished_run_is_not_kept(tmp_path):
    out = build(tmp_path / "run", rounds=1)
    with pytest.raises(ValueError, match="not finished"):
        keep(recorded(out), tmp_path / "kept")
