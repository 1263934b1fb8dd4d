"""The page and the tables: figures worked by hand, pictures that decode, a browser that does not complain."""

import ast
import base64
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from florilegium import catalogue
from florilegium.catalogue import CATALOGUE
from florilegium.report import charts, comparison, lead, many
from florilegium.report import page as report
from florilegium.report.markup import duration, size
from florilegium.runs import lock, reader
from florilegium.runs.reader import RunError
from florilegium.runs.writer import Run
from tests.synthetic_run import build, conf

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLORILEGIUM = Path(report.__file__).parents[1]
MODULES = [*FLORILEGIUM.glob("report/*.py"), *(FLORILEGIUM / f"runs/{n}.py" for n in ("reader", "writer", "pictures"))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    return (build(tmp_path_factory.mktemp("page") / "run") / "report.html").read_text()


def test_the_page_asks_nobody_for_anything(whole):
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["']?\s*(?!data:)[^\s"'>]""", whole)
    assert "://" not in whole and "<script" not in whole and "url(" not in whole and "@import" not in whole


def test_every_picture_decodes(whole):
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', whole)
    # first screen: before, after, one picture of each of three classes; then three classes x before, after, self-tuned,
    # centralised, four pictures each; pictures of 8 pixels with one between them
    assert len(found) == 2 + 3 * 4
    for text, count in zip(found, [3] * 2 + [4] * 12, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
            picture.load()
            assert picture.size == (count * 8 + count - 1, 8)


def test_the_headline_is_the_hand_worked_one(whole):
    # method, round 2: image 30 + 20 = 50, Standalone 30, so +20 points; T2I 40 beside un-tuned 20, centralised 60
    assert "50.0<small>%</small>" in whole and '30.0 <span class="up">+20.0</span>' in whole
    assert '20.0 <span class="up">+20.0</span>' in whole and '60.0 <span class="down">−20.0</span>' in whole
    assert "↑ 1.00 MB" in whole and "↓ 3.00 MB" in whole and "<dd>2.50 MB</dd>" in whole
    assert "<b>80.0 %</b>" in whole  # the judge on real images
    # one standard error of 40 % on 3 classes x 4 images: sqrt(.4 * .6 / 12) = 14.1 points
    assert "12 generated images" in whole and "14.1 points" in whole
    assert "9 of 12 samples (75.0 %)" in whole  # the diagonal 3 + 4 + 2 of the last vote


def test_the_first_screen_says_the_result_in_a_sentence_and_a_picture(whole):
    # 40 % after, 20 % before, 12 pictures each: sqrt((.4 * .6 + .2 * .8) / 12) = 18.3; clients .5 - .3 and .7 - .5
    first = whole[: whole.index("<div class=cards>")]
    assert "recognises <b>40.0&nbsp;%</b> of the generator’s pictures; before, it was 20.0&nbsp;%" in first
    assert "(+20.0 points, less than two standard errors of 18.3)" in first
    # diversity is 0.4 - accuracy / 2: 0.3 before, 0.2 after
    assert "have a mean CLIP distance of 0.20 from each other; before, it was 0.30." in first
    gain = "gain 20.0 points (standard error over 2 clients: 0.0)"
    assert f"Beside clients that learn alone, image clients {gain} and text clients {gain}." in first
    assert re.findall(r'alt="(before|round 2): bird, boat, heart"', first) == ["before", "round 2"]


def test_a_gain_of_clients_has_its_error_over_them(tmp_path):
    # gains of 4, 0 and 2 points: their standard deviation is 2, so the error of their mean is 2 / sqrt(3) = 1.2
    dealt = {"clients": [{"client": k, "modality": "image"} for k in range(3)] + [{"client": 3, "modality": "text"}]}
    run = reader.Recorded(tmp_path, {}, dealt, [], [], {}, {}, 0.0)
    after = {"client/accuracy/0": 0.44, "client/accuracy/1": 0.40, "client/accuracy/2": 0.42, "client/accuracy/3": 0.9}
    alone = {f"client/accuracy/{k}": 0.40 for k in range(4)}
    assert lead.spread(run, "image", after, alone) == " (standard error over 3 clients: 1.2)"
    assert lead.spread(run, "text", after, alone) == ""  # one client has no spread


def test_bytes_and_faults_are_counted(whole):
    text = re.sub(r"<[^>]+>", " ", whole)
    # represent, image clients: rounds 1 and 2, clients 0 and 1: 2 x (1000 + 2000) down, 4 x 500 up
    assert re.search(r"represent\s+image\s+4\s+1\.5 kB\s+500 B\s+5\.9 kB\s+2\.0 kB", text)
    assert "raised: &lt;b&gt;no disk&lt;/b&gt;" in whole
    assert re.search(r"client 3\s+FedMMKT\s+distill\s+1\s+1\s+raised", text)


def test_clients_are_what_the_partition_says(whole):
    text = re.sub(r"<[^>]+>", " ", re.sub(r"<title>.*?</title>", "", whole))
    assert re.search(r"client 0\s+image\s+resnet\s+5\s+1 of 3\s+50\.0 %\s+30\.0 %", text)
    assert re.search(r"client 3\s+text\s+distilbert\s+8\s+2 of 3\s+70\.0 %\s+50\.0 %", text)


def test_an_arm_has_one_colour_in_table_and_charts(whole):
    assert re.search(r'swatch s1"[^§]*?</svg>Standalone', whole)
    assert len(re.findall(r'<g class="s1">', whole)) >= 2


@pytest.mark.parametrize("how", [{"generator": False}, {"clients": False}, {"rounds": 1}, {"rounds": -1}])
def test_runs_without_a_part_have_a_page_without_it(tmp_path, how):
    page = (build(tmp_path / "run", **how) / "report.html").read_text()
    assert ("The generator, before and after" in page) == (how.get("generator", True) and how.get("rounds") != -1)
    assert ("The clients" in page) == (how.get("clients", True) and how.get("rounds") != -1)
    assert ("is not finished" in page) == ("rounds" in how)


def test_a_run_that_was_only_opened_has_a_page(tmp_path):
    Run.open(tmp_path / "run", conf())
    assert "FedMMKT" in report.write(tmp_path / "run").read_text()


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(RunError, match="not a run directory"):
        report.page(tmp_path)


SHOWN = [n for n, column in enumerate(comparison.COLUMNS) if column[1] not in comparison.SOMETIMES]


def three_seeds(tmp_path: Path) -> list[Path]:
    """Image accuracies .50, .53, .56 of the method, .30 of Standalone."""
    return [build(tmp_path / f"s{n}", seed=n, lift=0.03 * n) for n in range(3)]


def test_mean_and_standard_error_over_seeds(tmp_path):
    lines = {line.name: line for line in report.compare(three_seeds(tmp_path)).lines}
    # last round: .50, .53, .56: mean .53, sample std sqrt((.03^2 + 0 + .03^2) / 2) = .03, / sqrt(3) = .0173;
    # CLIP .2 + T2I / 10; diversity .4 - T2I / 2: .2, .185, .17, sample std .015, / sqrt(3) = .0087
    assert comparison.texts(lines["FedMMKT"], SHOWN) == [
        "53.0 ± 1.7",
        "73.0 ± 1.7",
        "43.0 ± 1.7",
        "0.243 ± 0.002",
        "0.185 ± 0.009",
        "1.00 ± 0.00",
        "3.00 ± 0.00",
    ]
    assert comparison.texts(lines["Standalone"], SHOWN)[:3] == ["30.0 ± 0.0", "50.0 ± 0.0", "–"]
    assert comparison.texts(lines["Un-tuned T2I"], SHOWN)[2] == "20.0 ± 0.0"
    assert comparison.texts(lines["Centralised T2I"], SHOWN)[2] == "60.0 ± 0.0"
    assert [line.reference for line in lines.values()] == [False, True, True, True, True]


def test_differences_are_paired_by_seed_and_decided_by_the_interval(tmp_path):
    found = report.compare(three_seeds(tmp_path))
    assert found.against.name == "Standalone"  # the arm that learns alone, without a word
    rows = {(row.column.key, row.line.name): row.difference for row in found.compared()}
    # gaps .20, .23, .26: mean .23, standard error .03 / sqrt(3) = .01732; t(.975, 2) = 4.3027: half .07452
    image = rows["client/accuracy/image", "FedMMKT"]
    assert image.seeds == (0, 1, 2) and image.mean == pytest.approx(0.23)
    assert image.interval == pytest.approx((0.15548, 0.30452), abs=1e-5) and image.verdict == "higher"
    # at 99.9 %: t(.9995, 2) = 31.599, half .5473: the same figures decide nothing
    strict = report.compare([tmp_path / f"s{n}" for n in range(3)], level=0.999)
    wide = next(iter(strict.compared())).difference
    assert wide.interval == pytest.approx((0.23 - 0.5473, 0.23 + 0.5473), abs=1e-4) and wide.verdict == "not decided"
    # Standalone has no T2I figure, so nothing is compared with it there; bytes are no matter of chance
    assert ("t2i/accuracy", "FedMMKT") not in rows and not [key for key, _ in rows if key.startswith("bytes/")]
    other = report.compare([tmp_path / "s0", tmp_path / "s1"], against="centralised")
    t2i = {row.line.name: row.difference for row in other.compared() if row.column.key == "t2i/accuracy"}
    assert t2i["Un-tuned T2I"].interval == pytest.approx((-0.4, -0.4)) and t2i["Un-tuned T2I"].verdict == "lower"
    assert t2i["Centralised T2I"] is None


def test_with_one_seed_nothing_is_decided(tmp_path):
    found = report.compare([build(tmp_path / "run")])
    row = next(row for row in found.compared() if row.line.name == "FedMMKT")
    assert row.difference.mean == pytest.approx(0.2) and row.difference.interval is None
    assert row.difference.verdict == "one seed" and "nothing is decided" in found.decides
    assert "one seed" in str(found) and "nothing is decided" in found.markdown()


def test_an_arm_to_compare_with_is_named_by_title_by_name_or_by_method(tmp_path):
    run = build(tmp_path / "run", label="mine")
    for word in ("mine", "fedmmkt"):
        assert report.compare([run], against=word).against.name == "mine"
    assert report.compare([run], against="self_label").against.name == "Self-tuned, labels"
    with pytest.raises(RunError, match="'fedavg' is no arm of these runs; there are mine, Standalone, "):
        report.compare([run], against="fedavg")
    other = build(tmp_path / "other", label="yours")
    with pytest.raises(RunError, match="'fedmmkt' is several arms; there are mine, yours"):
        report.compare([run, other], against="fedmmkt")
    with pytest.raises(RunError, match="level 1 is not between 0 and 1"):
        report.compare([run], level=1)


def test_budgets_that_differ_are_told():
    """A tenth more is still equal; an arm without shared rows is not compared in those."""

    def groups(**rows: tuple[float, float]) -> dict:
        return {
            (False, name): {0: [{"budget/private_rows": own, "budget/shared_rows": others}]}
            for name, (own, others) in rows.items()
        }

    assert comparison.unequal_budgets(groups(one=(100, 50), two=(110, 0))) == []
    (line,) = comparison.unequal_budgets(groups(one=(100, 50), two=(111, 50)))
    assert line == "budgets differ: a client of two trained on 111 private rows, one of one on 100"


def test_metrics_are_chosen_by_patterns(tmp_path):
    found = report.compare([build(tmp_path / "run")], metrics=["client/accuracy/*", "labels/kept"])
    keys = [column.key for column in found.columns]
    assert keys[:3] == ["client/accuracy/image", "client/accuracy/text", "client/accuracy/0"] and "labels/kept" in keys
    with pytest.raises(RunError, match="no metric of these runs is named 'recall'"):
        report.compare([tmp_path / "run"], metrics=["recall"])


def test_one_seed_has_no_spread_and_repeats_of_a_seed_count_once(tmp_path):
    runs = [build(tmp_path / "a"), build(tmp_path / "b", label="-LabVote", lift=0.1)]
    lines = {line.name: line for line in report.compare(runs).lines}
    assert comparison.texts(lines["-LabVote"], SHOWN)[0] == "60.0"
    assert comparison.texts(lines["FedMMKT"], SHOWN)[0] == "50.0"
    assert lines["Standalone"].seeds == (0,) and comparison.texts(lines["Standalone"], SHOWN)[0] == "30.0"


def test_best_on_validation_is_another_round(tmp_path):
    runs = [build(tmp_path / "run", lift=-0.15)]
    assert comparison.texts(report.compare(runs).lines[0], SHOWN)[0] == "35.0"
    assert comparison.texts(report.compare(runs, at="best_on_validation").lines[0], SHOWN)[0] == "40.0"


def test_second_half_is_the_mean_of_its_evaluated_rounds():
    def record(r: int, accuracy: float | None) -> dict:
        return {"round": r, "arm": "method", "metrics": {} if accuracy is None else {"client/accuracy/image": accuracy}}

    records = [record(0, 0.1), record(1, 0.2), record(2, 0.9), record(3, 0.3), record(4, None), record(5, 0.6)]
    assert reader.halved(records) == {"client/accuracy/image": pytest.approx(0.45)}  # rounds 3 and 5: 2 r > 5
    assert reader.halved(records[:1]) == {}


def test_forms_of_the_table(tmp_path):
    found = report.compare([build(tmp_path / f"s{n}", seed=n, lift=0.03 * n) for n in range(2)])
    # .50 and .53: std .0212, / sqrt(2) = .015; gaps .20 and .23: t(.975, 1) = 12.706, half 12.706 x .015 = .1906
    told = found.markdown()
    assert "| FedMMKT | 2 | 51.5 ± 1.5 |" in told
    assert (
        "| **Image acc. %** | **FedMMKT** | **2** | **51.5** | **1.5** | **+21.5** | **[+2.4, +40.6]** | **higher** |"
        in told
    )
    assert told.startswith("data emoji · clients 2 image + 2 text · rounds 2 · seeds 0, 1 · last round\n")
    lines = [line.split(",") for line in found.csv().splitlines()]
    first = dict(zip(lines[0], lines[1], strict=True))
    assert (first["arm"], first["metric"], first["seeds"]) == ("FedMMKT", "client/accuracy/image", "0 1")
    assert float(first["mean"]) == pytest.approx(0.515) and float(first["error"]) == pytest.approx(0.015)
    assert float(first["low"]) == pytest.approx(0.215 - 0.1906, abs=1e-4) and first["result"] == "higher"
    assert "51.5 ± 1.5" in str(found) and "[+2.4, +40.6]" in str(found) and found.text("csv") == found.csv()
    with pytest.raises(RunError, match="'tex' is none of table, markdown, csv"):
        found.text("tex")


def test_runs_of_different_protocols_are_not_mixed(tmp_path):
    one = build(tmp_path / "one")
    other = build(tmp_path / "other", data={"name": "fashion"})
    with pytest.raises(RunError, match="differs from .* in data.name") as why:
        report.compare([one, other])
    assert "\n" not in str(why.value)
    assert any("data.name" in w for w in report.compare([one, other], force=True).warnings)
    elsewhere = build(tmp_path / "gpu", clients_on="cuda", seed=1)
    assert not report.compare([one, elsewhere]).warnings


def test_runs_on_own_data_are_compared_wherever_their_rows_lie(tmp_path):
    """Each run directory has prepared rows of its own."""
    data = {"name": "folder", "own": True, "classes": ["a", "b"]}
    runs = [
        build(tmp_path / f"{n}", seed=n, data=data | {"prepared": str(tmp_path / f"{n}" / "own-data")}) for n in (0, 1)
    ]
    assert report.compare(runs).lines[0].seeds == (0, 1)
    assert len(many.alike([reader.recorded(run) for run in runs])) == 1


def test_a_run_whose_reference_arm_is_not_finished_is_told(tmp_path):
    run = build(tmp_path / "run")
    killed = Run.open(run, conf(), resume=True)
    for arm, rounds, where in (
        ("standalone", 1, "at round 1 of 2 of Standalone"),
        ("standalone", -1, "before Standalone"),
    ):
        killed.rewind(arm, rounds)
        assert f"{run} stopped {where}" in report.compare([run]).warnings
        assert f"not finished.</b> It stands {where};" in report.page(run)
        assert "2 of 2 (not finished)" in many.page([run])
    lock.release(run / ".lock")


def test_a_folder_stands_for_its_runs_and_a_stopped_run_is_told(tmp_path):
    build(tmp_path / "all" / "a")
    build(tmp_path / "all" / "b", seed=1, rounds=1)
    found = report.compare([tmp_path / "all"])
    assert found.lines[0].seeds == (0, 1) and "b stopped at round 1 of 2" in found.warnings[0]
    with pytest.raises(RunError, match="no run directory given"):
        report.compare([])


def test_the_methods_table_is_the_catalogue():
    table = catalogue.methods_markdown().splitlines()
    assert len(table) == 2 + len(CATALOGUE) and len({len(line) for line in table}) == 1
    assert all(any(line.startswith(f"| {name} ") for line in table) for name in CATALOGUE)
    first = ("fedmmkt", "arXiv 2510.12254", "answers on synthetic samples", "image, text, pair")
    assert catalogue.methods_table(CATALOGUE)[0] == first


def test_ticks_and_labels():
    assert charts.nice_ticks(0.22, 0.47) == [0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]
    assert charts.nice_ticks(0, 4, 8) == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    level = charts.nice_ticks(0.3, 0.3)
    assert level[0] < 0.3 < level[-1]
    assert charts.apart([10, 12, 40], 13, 100) == [10, 23, 40] and charts.apart([95, 99], 13, 100) == [87, 100]
    assert charts.tick_text(0.225, [0.2, 0.225], True) == "22.5" and charts.tick_text(0.2, [0.2, 0.25], True) == "20"


def test_sizes_and_times_for_readers():
    assert [size(n) for n in (None, 12, 2048, 2**20 * 2.35)] == ["–", "12 B", "2.0 kB", "2.35 MB"]
    assert [duration(n) for n in (59.6, 61, 3599.7, 3700)] == ["1 min 00 s", "1 min 01 s", "1 h 00 min", "1 h 01 min"]


def test_reading_and_reporting_need_no_torch():
    for name in MODULES:
        tree = ast.parse(name.read_text())
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not {m for m in imported if m and m.split(".")[0] in {"torch", "flwr", "hydra", "diffusers"}}, name
    said = subprocess.run(
        [sys.executable, "-c", "import sys, florilegium.report.page; print('torch' in sys.modules)"],
        text=True,
        capture_output=True,
        cwd=FLORILEGIUM.parent,
        check=True,
    )
    assert said.stdout.strip() == "False"


SCRIPT = """<script>window.addEventListener("load", () => {
const shown = [...document.images], bad = shown.filter(i => !i.complete || i.naturalWidth === 0).length;
const fit = document.documentElement.scrollWidth > innerWidth ? "too wide" : "fits";
document.body.dataset.seen = `${shown.length} pictures, ${bad} bad, ${fit}`; });</script>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_it(whole, tmp_path, width):
    (tmp_path / "page.html").write_text(whole.replace("</body>", SCRIPT + "</body>"))
    seen = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-first-run",
            "--disable-component-update",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900",
            "--virtual-time-budget=3000",
            "--enable-logging=stderr",
            "--v=0",
            "--dump-dom",
            (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert 'data-seen="14 pictures, 0 bad, fits"' in seen.stdout
    assert not [line for line in seen.stderr.splitlines() if "CONSOLE" in line]
