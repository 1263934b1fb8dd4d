"""One page over many runs: figures worked by hand, tables that sort, a browser that can show them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from florilegium.cli import main
from florilegium.report import many, over_seeds, sortable
from florilegium.runs.reader import RunError, recorded
from tests.synthetic_run import build
from tests.test_report import CHROMIUM, three_seeds


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    return three_seeds(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def whole(runs) -> str:
    return many.write(runs).read_text()


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)))


def test_the_page_lies_beside_its_runs_and_asks_nobody_for_anything(runs, whole):
    assert (runs[0].parent / "report.html").read_text() == whole
    outside = re.findall(r"""(?:src|href|action)\s*=\s*["']?\s*(?!data:|#)[^\s"'>]""", whole)
    assert not outside and "://" not in whole and "url(" not in whole and "default-src 'none'" in whole


def test_the_tables_have_the_means_the_errors_the_bytes_and_the_seconds(whole):
    text = text_of(whole)
    # image .50, .53, .56: 53.0 with standard error .03 / sqrt(3) = 1.7; three seeds
    assert re.search(r"FedMMKT 3 53\.0 ± 1\.7 73\.0 ± 1\.7 43\.0 ± 1\.7", text)
    # rounds 1 and 2 take 11 and 12 s, round 0 took 10: 11.5 a round, 33 in all; errors of equal runs are 0
    assert re.search(r"FedMMKT 3 .{0,120}? 11\.5 ± 0\.0 33 ± 0 Standalone", text)
    assert re.search(r"FedMMKT Image acc\. % 3 \+23\.0 \[\+15\.5, \+30\.5\] higher", text)
    assert re.search(r"s1 FedMMKT emoji 1 2 of 2 53\.0 %", text)


def test_bytes_are_those_of_a_client_so_far(runs):
    run = recorded(runs[0])
    # a round of `represent` is 1000 + 2000 + 3000 + 4000 down and 4 x 500 up over 4 clients; 10 bytes of a fault in 1
    assert over_seeds.sent(run, "method", 0) == 0
    assert over_seeds.sent(run, "method", 1) * 2**20 == pytest.approx(12_010 / 4)
    assert over_seeds.sent(run, "method") * 2**20 == pytest.approx(24_010 / 4)
    arm = over_seeds.arms_of([recorded(path) for path in runs], 8)[0]
    line = over_seeds.over_bytes(arm, "client/accuracy/image")
    assert [x * 2**20 for x, _ in line.points] == pytest.approx([0, 12_010 / 4, 24_010 / 4])
    assert [y for _, y in line.points] == pytest.approx([0.3, 0.4, 0.53]) and line.errors[0] == 0
    assert line.errors[2] == pytest.approx(0.03 / 3**0.5)
    alone = over_seeds.over_bytes(over_seeds.arms_of([run], 8)[1], "client/accuracy/image")
    whole, level = over_seeds.levelled([line, alone])  # it sends nothing: a level at its last value
    assert whole is line and level.points == [(0, pytest.approx(0.3))] and len(alone.points) == 3


def test_runs_of_another_protocol_have_a_part_of_their_own(tmp_path):
    one, other = build(tmp_path / "one"), build(tmp_path / "other", data={"name": "fashion"})
    page = many.page([one, other])
    assert 'href="#group-2"' in page and '<h2 class="group" id="group-2">fashion, 4 clients</h2>' in page
    third = build(tmp_path / "third", evaluation={"every": 2, "images_per_class": 4})
    assert ">emoji, 4 clients (other evaluation.every)</h2>" in many.page([one, third])
    assert "2 runs on emoji and fashion" in page and page.count("<caption") == 2 * 2 + 1


def test_what_cannot_be_shown_is_named(tmp_path, runs):
    with pytest.raises(RunError, match="'fedavg' is no arm of these runs"):
        many.page(runs, against="fedavg")
    with pytest.raises(RunError, match="none of the 1 runs has an evaluated round"):
        many.page([build(tmp_path / "empty", rounds=-1)])
    with pytest.raises(RunError, match="no run directory given"):
        many.page([])


def test_the_command_writes_one_page_over_several_runs_and_each_where_it_is_asked(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "sweep"
    for n in range(2):
        (build(folder / f"s{n}", seed=n) / "report.html").unlink()

    def told(*given: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["florilegium", "report", *map(str, given)])
        main.main()
        return capsys.readouterr().out.split()

    assert told(folder) == [str(folder / "report.html")]
    assert not (folder / "s0" / "report.html").exists()
    assert told("--each", folder) == [str(folder / f"s{n}" / "report.html") for n in range(2)]
    assert told(folder / "s0", "--out", tmp_path / "here.html") == [str(tmp_path / "here.html")]
    monkeypatch.setattr(sys, "argv", ["florilegium", "report", "--each", "--out", "x.html", str(folder)])
    with pytest.raises(SystemExit, match="--each writes the page of each"):
        main.main()


def test_each_cell_says_what_it_is_sorted_by():
    rows = [[sortable.words("b <i>"), sortable.number(2.5, "2.5 %")], [sortable.words("a"), sortable.number(None, "–")]]
    made = sortable.table("T", ["Arm", "Value"], rows, main=[0])
    assert '<th scope="row" class=words data-value="b &lt;i&gt;">b &lt;i&gt;</th>' in made
    assert '<td data-value="2.5">2.5 %</td>' in made and "<td>–</td>" in made and "<tr class=main>" in made


# sorts by the image accuracies with the keyboard's button, twice, and looks whether the page fits
SCRIPT = """<script>window.addEventListener("load", () => {
const table = document.querySelector("table.sortable"), head = table.tHead.rows[0].cells[2], seen = [];
const look = () => seen.push([...table.tBodies[0].rows].map(row => row.cells[2].textContent.split(" ")[0]).join(" "));
head.querySelector("button").focus(); document.activeElement.click(); look();
document.activeElement.click(); look();
seen.push(head.getAttribute("aria-sort"), table.parentElement.nextElementSibling.textContent);
seen.push(document.documentElement.scrollWidth > innerWidth ? "too wide" : "fits");
document.body.dataset.seen = seen.join(" | "); });</script>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_sorts_it(whole, tmp_path, width):
    (tmp_path / "page.html").write_text(whole.replace("</body>", SCRIPT + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=3000"]
    seen = subprocess.run(
        [shutil.which(CHROMIUM), *options, "--enable-logging=stderr", "--dump-dom", (tmp_path / "page.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said = re.search(r'data-seen="([^"]*)"', seen.stdout)[1]
    # of five arms two have image accuracies, 53.0 and 30.0; dashes come last both ways
    assert said == "53.0 30.0 – – – | 30.0 53.0 – – – | ascending | Image acc. %: ascending | fits"
    assert not [line for line in seen.stderr.splitlines() if "CONSOLE" in line]
