"""Every command that the documentation and the help print is run, or composed and checked as its run would be."""

import copy
import functools
import glob
import io
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from florilegium import preflight
from florilegium.cli import main
from florilegium.config import composition, overrides
from florilegium.config.composition import SettingsError
from florilegium.data.own import preparation
from florilegium.report import comparison
from florilegium.runs.reader import MAIN, Recorded
from florilegium.runtime import launch
from tests.field.inputs import picture, put
from tests.tiers import first

ROOT = Path(__file__).resolve().parents[1]
HELP = ROOT / "conf" / "hydra" / "help" / "florilegium.yaml"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(ROOT / "docs").rglob("*.md"),
    HELP,
]
LINE = re.compile(r"^ *(?:\$ )?(?:\w+=\S+ )*(?:\.venv/bin/)?((?:florilegium|flwr run) .*)", re.MULTILINE)
VARIABLE = re.compile(r' *(\w+)="([^"]*)"')  # a line that sets one of the shell's
INLINE = re.compile(r"`(florilegium (?:run|data check|privacy|methods|settings|deploy local)\b[^`]*)`")
PLACEHOLDER = re.compile(r"\.\.\.|\b(DIR|METHOD|RUN|PATH|KEY|X|THE_SAME|UPSAMPLER|UP)\b|\[overrides|<")
STAND_INS = {"PICTURES": "pictures", "TABLE.csv": "reports.csv"}
STAND_IN = re.compile("|".join(STAND_INS))
SUITE = "tests/test_other_packages.py runs the commands of this page, with the package that it writes"


def words(command: str) -> list[str]:
    """A line as a shell splits it, without a comment and what follows a semicolon."""
    command = STAND_IN.sub(lambda found: STAND_INS[found[0]], command.replace("$$", "$").split(";")[0])
    return shlex.split(command, comments=True)


def expanded(text: str) -> str:
    """A page whose lines are whole where a backslash parted them, with the variables that a code block sets put in."""
    lines, values = [], {}
    for line in re.sub(r"\\\n *", " ", text).splitlines():
        if given := VARIABLE.fullmatch(line):
            values[given[1]] = given[2]
        elif not line.strip():  # here the block ends
            values = {}
        lines.append(re.sub(r"\$(\w+)", lambda name, known=values: known.get(name[1], name[0]), line))
    return "\n".join(lines)


def commands(page: Path) -> list[str]:
    """The commands of a page, as they are printed."""
    text = expanded(page.read_text(encoding="utf-8"))
    return [*LINE.findall(text), *INLINE.findall(text)]


def printed() -> list[list[str]]:
    """The words of each printed command, once each."""
    found = {}
    for page in PAGES:
        if page.name == "your-own-method.md":  # SUITE
            continue
        for command in commands(page):
            if not PLACEHOLDER.search(command.split(" #")[0]) and command != "florilegium data check":
                found.setdefault(tuple(words(command)))
    return [list(each) for each in found]


PRINTED = printed()
RUNS = [
    line for line in PRINTED if line[:2] == ["florilegium", "run"] or line[:3] == ["florilegium", "deploy", "local"]
]
OTHERS = [line for line in PRINTED if line[0] == "florilegium" and line not in RUNS]


@functools.cache
def jpeg(seed, width, height):
    """An encoded JPEG of noise."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(seed, side=64))).resize((width, height)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A working directory, which is the home too, with the data that the documentation names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    for k, name in enumerate(("apple", "pear")):
        for n in range(40):
            put(tmp_path / "pictures" / name / f"{n:03}.jpg", jpeg(100 * k + n, 48, 48))
            put(tmp_path / "site-b" / name / f"{n:03}.jpg", jpeg(900 + 100 * k + n, 48, 48))
            put(tmp_path / "photos" / ("fruit", "plant")[k] / f"{n}.jpg", jpeg(n + 50 * k, 48, 48))
    put(tmp_path / "reports.csv", "text,label\n" + "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(90)))
    return tmp_path


@functools.cache
def composed_once(given: tuple[str, ...]) -> composition.Settings:
    return composition.compose(given)


def composed(given: list[str]) -> composition.Settings:
    """The settings of a run. Runs that differ in seed and directory alone are composed once: that takes half a second.
    (`resume=true` needs a run, which tests/test_continuation.py has.)"""
    of_one = {
        key: text.partition("=")[2] for text in given for key in ("seed", "out") if re.fullmatch(rf"{key}=[^,]*", text)
    }
    left = [text for text in given if text.partition("=")[0] not in (*of_one, "resume")]
    conf = copy.deepcopy(composed_once(tuple(text for text in left if not text.startswith("--") and text != "job")))
    conf.seed, conf.out = int(of_one.get("seed", conf.seed)), of_one.get("out", conf.out)
    return conf


def check(given: list[str]) -> None:
    """All that happens before a run starts."""
    conf = composition.complete(composed(overrides.readable(given)))
    if conf.data.own and (facts := preparation.prepare(conf)):
        conf.data.classes = facts["classes"]
    try:
        preflight.validate(conf)
    except SettingsError as error:
        # an extra that need not be installed, or a checkpoint of a hub, which tests cannot reach
        assert "opacus" in str(error) or "hf download" in str(error)


def every_job(given: list[str]) -> list[list[str]]:
    """One run, or all those of a sweep."""
    if "-m" not in given:
        return [given]
    swept = [text for text in given if text != "-m"]
    return overrides.jobs(composition.prepared(overrides.readable(swept, sweeping=True)))


def few(every: list[list[str]]) -> list[list[str]]:
    """Of a sweep the first job, and for each further value of a key the one that differs from the first in it alone."""
    return [job for job in every if sum(a != b for a, b in zip(job, every[0], strict=True)) < 2]


@pytest.mark.parametrize("line", first(RUNS, 30), ids=" ".join)
def test_a_printed_run_composes_and_passes_the_checks(line, there):
    if "data=folder" in line and "data: site-a" in line[-1]:
        (there / "pictures").rename(there / "site-a")
    jobs = few(every_job(line[2:] if line[1] == "run" else main.local(line[3:])))
    for job in {tuple(text for text in job if not text.startswith("seed=")): job for job in jobs}.values():
        check(job)


@pytest.mark.parametrize("line", [line for line in PRINTED if line[0] == "flwr"], ids=" ".join)
def test_a_printed_flwr_run_composes_and_passes_the_checks(line, there):
    given = re.fullmatch(r'overrides="(.*)"', line[line.index("--run-config") + 1])[1]
    conf = composition.load({"overrides": given})
    preflight.validate(conf)
    assert conf.out.startswith("/absolute/")


@pytest.mark.parametrize("line", OTHERS, ids=" ".join)
def test_every_other_printed_command_is_taken_and_run_where_it_needs_nothing_else(line, there, capsys):
    options = main.parse([word.replace("~", str(there)) for word in line[1:]])
    if line[1] in ("methods", "privacy", "settings") or line[1] == "data" and Path(options.path).exists():
        code = options.command(options)
        assert (not code or line[1] == "data") and len(capsys.readouterr().out.splitlines()) > 3


class Listed(launch.Jobs):
    """The jobs of a sweep by the folder of each, in the place of their runs."""

    def __init__(self):
        super().__init__()
        self.given: dict[str, list[str]] = {}

    def run(self, conf, name="", folder="", given=None):
        self.given[folder] = list(given or ())


def directories(given: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[Path, list[str]]:
    """Where a printed `florilegium run` with an `out` puts its runs, and their overrides; of a sweep `few`."""
    out = [text.removeprefix("out=") for text in given if text.startswith("out=")]
    listed = Listed()
    if "-m" in given:
        with monkeypatch.context() as patch:
            patch.setattr(composition, "compose", lambda job: None)
            launch.sweep(composition.prepared(overrides.readable([x for x in given if x != "-m"], True)), listed)
    else:
        listed.given[""] = given
    kept = few(list(listed.given.values()))
    return {Path(out[-1], folder): job for folder, job in listed.given.items() if out and job in kept}


def as_if_run(place: Path, job: list[str]) -> Recorded:
    """A finished run with these overrides, whose arms all have the same figures."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "settings.yaml").touch()
    conf = composed([text for text in job if not text.startswith("data.path=")])
    figures = {column.key: 0.5 for column in comparison.COLUMNS}
    rounds = [{"arm": arm, "round": n, "metrics": figures} for arm in conf.arms() for n in (0, conf.rounds)]
    return Recorded(place, composition.plain(conf), {}, rounds, [], {}, {}, 0.0)


COMPARES = {page: [line for line in commands(page) if line.startswith("florilegium compare ")] for page in PAGES}


@pytest.mark.parametrize("page", [page for page in PAGES if COMPARES[page]], ids=lambda page: page.name)
def test_a_printed_compare_reads_what_its_page_writes(page, there, monkeypatch):
    """Its runs are there (or kept) and of one protocol, it has the arm that is named, and no row mixes two of them."""
    printed = [words(line)[2:] for line in commands(page) if line.startswith("florilegium run ") and "..." not in line]
    written = [directories(given, monkeypatch) for given in printed if "--cfg" not in given]
    runs = {place: as_if_run(place, job) for each in written for place, job in each.items()}
    read = comparison.recorded
    monkeypatch.setattr(comparison, "recorded", lambda path: runs.get(path) or read(path))
    for line in COMPARES[page]:
        options = main.parse(words(line)[1:])
        names, options.runs = options.runs, []
        for name in map(str, names):  # as a shell expands them
            found = [ROOT / name] if name.startswith("docs/records") else [*map(Path, glob.glob(name))]
            assert found, f"{line}: no printed command writes {name}"
            options.runs += found
        options.command(options)
        arms = [(runs[x].title(MAIN), runs[x].get("seed")) for x in comparison.found(options.runs) if x in runs]
        assert len(arms) == len(set(arms)), f"{line}: runs of different settings are one arm in {sorted(arms)}"


def test_the_kinds_of_printed_commands_are_all_here():
    """The expressions above find what there is."""
    kinds = {line[1] for line in OTHERS}
    assert {"data", "privacy", "methods", "report", "compare", "deploy"} <= kinds and len(RUNS) > 50
    assert any("-m" in line for line in RUNS) and any(line[0] == "flwr" for line in PRINTED)
    assert not [line for line in RUNS if any(word.startswith("$") for word in line)]
    for page in PAGES:  # whatever stands before the command
        lines = re.findall(r"^ {4,}[^#\n`]*florilegium run .*", expanded(page.read_text("utf-8")), re.MULTILINE)
        assert len(LINE.findall("\n".join(lines))) == len(lines), page


def test_the_answers_of_data_check_are_those_of_the_page(there, capsys):
    own = there / "site-a"
    for name, seed, size in (("fruit/000", 1, (64, 48)), ("fruit/002", 2, (64, 48))):
        put(own / f"{name}.jpg", jpeg(seed, *size))
    put(own / "fruit" / "001.jpg", jpeg(5, 64, 48)[:-300])
    put(own / "fruit" / "003.jpg", (own / "fruit" / "000.jpg").read_bytes())
    put(own / "fruit" / "notes.txt", "a note")
    for n in range(5):
        put(own / "Aircraft" / f"{n:03}.jpg", jpeg(20 + n, 64, 48))
    put(own / "Aircraft" / "tiny.png", picture(40, side=12))
    put(own / "zeppelin" / "000.jpg", jpeg(30, 64, 48))
    put(own / "zeppelin" / "001.jpg", jpeg(31, 64, 48))
    put(there / "reports.csv", "text,label\na red apple,fruit\n ,fruit\na jet,aircraft\na red apple,fruit\n")
    put(there / "latin.csv", b"text,label\na caf\xe9,fruit\n")
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n\$ (florilegium data check .*?); echo \$\?\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for command, answer in blocks:
        options = main.parse(words(command)[1:])
        code = options.command(options)
        said = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        assert [*said, str(code)] == [line.rstrip() for line in answer.splitlines()]


def small(tiny_overrides: list[str]) -> list[str]:
    """Overrides that make a run one of seconds."""
    models = [given for given in tiny_overrides if "judge" not in given]
    return [*models, "architectures@clients.architectures=toy", "rounds=1", "data.image_size=16", "runtime=inprocess"]


def test_printed_runs_on_own_data_end_well(there, tiny_overrides, capsys):
    """Those of docs/own-data.md, and the line that `data check` prints."""
    options = main.parse(["data", "check", "pictures"])
    options.command(options)
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("run them: florilegium run data=folder data.path=pictures method=fedavg")
    lines = [line for line in RUNS if "data=folder" in line and "data.path=~/pictures" in line]
    lines += [line for line in RUNS if line[2:4] == ["data=table", "data.path=reports.csv"]]
    lines += [line for line in RUNS if "data: site-a" in line[-1]]
    lines += [words(told.removeprefix("run them: "))]
    (there / "pictures").rename(there / "site-a")
    (there / "pictures").symlink_to(there / "site-a")
    assert len(lines) >= 4
    for n, line in enumerate(lines):
        assert launch.main([*line[2:], *small(tiny_overrides), f"out=run-{n}"]) == 0, capsys.readouterr().err
        assert (there / f"run-{n}" / "report.html").is_file()


def test_the_printed_run_of_retrieval_on_toy_data_ends_well(there, tiny_overrides, capsys):
    (line,) = [line for line in RUNS if "data=toy" in line and "timeouts.quorum=1" in line]
    models = [given for given in tiny_overrides if "judge" not in given]
    assert launch.main([*line[2:], *models, "rounds=1", "runtime=inprocess", "out=run"]) == 0, capsys.readouterr().err


def test_the_help_is_short(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["florilegium"])
    with pytest.raises(SystemExit) as ended:
        launch.main(["--help"])
    said = capsys.readouterr().out
    assert not ended.value.code and said.startswith("Usage: florilegium run") and len(said.splitlines()) < 60
    assert "florilegium settings [KEY]" in said and len(re.findall(r"^  florilegium run", said, re.MULTILINE)) == 10
    assert {"method:", "data:", "clients:"} < set(said.split()) and "schema:" not in said and "threshold" not in said
