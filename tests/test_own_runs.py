"""Runs on own data: prepared once, split by content, used again on resume; nothing is asked that is not used."""

import json
import shlex
import shutil

import pytest

from florilegium import preflight
from florilegium.config import composition
from florilegium.config.errors import SettingsError
from florilegium.data.datasets import DataError, open_dataset
from florilegium.data.own import preparation
from florilegium.data.partition import partition
from florilegium.data.private import open_private
from florilegium.data.public import open_public
from florilegium.runtime import inprocess, launch
from server_app import driver
from server_app.app import app as server_app
from tests.field.inputs import put

KINDS = ("Red_kite", "mole", "newt")
TWO = "clients.mix=[{modality: image, model: resnet},{modality: image, model: resnet}]"


@pytest.fixture
def pictures(tmp_path):
    for k, name in enumerate(KINDS):
        for n in range(12):
            put(tmp_path / "pictures" / name / f"{n}.png", 100 * k + n)
    return tmp_path / "pictures"


@pytest.fixture
def own_overrides(tmp_path, tiny_overrides):
    """`own_overrides(path, ...)`: overrides of a small run on own data."""

    def listed(path, *more, data="folder"):
        models = [given for given in tiny_overrides if "judge" not in given]
        given = [f"data={data}", "clients=toy", *models, "references=none", "rounds=1", f"out={tmp_path / 'run'}"]
        small = ["data.image_size=16", "method=fedavg", TWO]
        return [*given, *small, f"data.path={path}", *more]

    return listed


@pytest.fixture
def own_conf(own_overrides):
    """`own_conf(path, ...)`: complete settings of a small run on own data."""
    return lambda *given, **how: composition.complete(composition.compose(own_overrides(*given, **how)))


def metrics(run):
    return [json.loads(line)["metrics"] for line in (run / "rounds.jsonl").read_text().splitlines()]


def test_fedavg_on_pictures_of_ones_own_needs_no_judge(pictures, own_conf, federated):
    conf = own_conf(pictures)
    facts = preparation.prepare(conf)
    preflight.validate(conf)
    run = federated(conf)
    assert facts["classes"] == ["mole", "newt", "Red kite"] and facts["prompts"][2] == "A picture of a Red kite."
    assert facts["rows"] == {"train": 27, "validation": 3, "test": 6}  # 12 of each class: 1 and 2 held out
    assert len(facts["public"]) == 3 * (2 + 0 + 1)  # of 9, 1 and 2 rows of a class; one alone stays private
    assert 0 <= metrics(run)[-1]["client/accuracy/image"] <= 1
    summary = json.loads((run / "summary.json").read_text())
    assert "judge_accuracy" not in summary["protocol"] or summary["protocol"]["judge_accuracy"] is None
    clients = json.loads((run / "partition.json").read_text())["clients"]
    assert sum(len(client["rows"]) for client in clients) == 27 - 6


def test_what_cannot_be_measured_is_named_once_and_the_run_ends_well(pictures, own_conf, federated):
    run = federated(own_conf(pictures, "method=fedmmkt", "method.server.samples=8", "evaluation.images_per_class=2"))
    last, protocol = metrics(run)[-1], json.loads((run / "summary.json").read_text())["protocol"]
    assert "t2i/accuracy" not in last and "t2i/clip_score" in last and "labels/accuracy" not in last
    assert (
        list(protocol["not_measured"]) == ["T2I accuracy"] and "data.judge" in protocol["not_measured"]["T2I accuracy"]
    )


def test_the_split_is_that_of_data_json_when_the_run_goes_on(pictures, own_conf, tmp_path):
    conf = own_conf(pictures)
    first = preparation.prepare(conf)
    put(tmp_path / "run" / "rounds.jsonl", [{"arm": "method", "round": 0}])
    assert preparation.prepare(own_conf(pictures, "data.split.test=0.4"), afresh=True) == first  # it trained on them
    shutil.rmtree(conf.data.prepared)
    (pictures / "mole" / "0.png").rename(pictures / "mole" / "zz.png")  # another order of the files
    again = preparation.prepare(conf)
    assert {split: sorted(rows) for split, rows in again["splits"].items()} == {
        split: sorted(rows) for split, rows in first["splits"].items()
    }
    assert again["public"] == first["public"]
    shutil.rmtree(conf.data.prepared)
    put(pictures / "mole" / "new.png", 999)
    with pytest.raises(DataError, match="1 rows that it did not have"):
        preparation.prepare(conf)


def test_data_of_a_run_that_recorded_no_round_are_read_anew(pictures, own_overrides, own_conf, monkeypatch, tmp_path):
    """Files and settings may have changed since it failed; the server process of one launch reads nothing twice."""
    monkeypatch.setattr(launch.preflight, "validate", lambda conf: None)
    first = launch.prepare(composition.compose(own_overrides(pictures)))[1]
    assert sum(preparation.prepare(first)["rows"].values()) == 36
    put(pictures / "mole" / "new.png", 999)
    assert sum(preparation.prepare(first)["rows"].values()) == 36
    again = launch.prepare(composition.compose(own_overrides(pictures)))[1]
    assert sum(preparation.prepare(again)["rows"].values()) == 37
    shutil.copytree(pictures / "mole", tmp_path / "others" / "mole")
    shutil.copytree(pictures / "newt", tmp_path / "others" / "newt")
    for changed in ((tmp_path / "others",), (pictures, "data.split.test=0.5")):
        conf = own_conf(*changed)
        facts = preparation.prepare(conf)  # of a server process that no launcher has prepared for
        assert facts == json.loads((tmp_path / "run" / "data.json").read_text())
        assert facts != preparation.prepare(again)
    preparation.prepare(again)
    assert preparation.prepare(own_conf("null", "data.classes=[mole,newt]", data="sites")) is None
    assert not (tmp_path / "run" / "own-data").exists() and not (tmp_path / "run" / "data.json").exists()


def test_data_of_a_run_that_another_process_writes_are_left_alone(pictures, own_conf, monkeypatch):
    conf = own_conf(pictures)
    first = preparation.prepare(conf)
    monkeypatch.setattr(preparation.lock, "hold", lambda path: False)
    with pytest.raises(DataError, match="another process writes it"):
        preparation.prepare(conf, afresh=True)
    assert preparation.prepare(conf) == first


def test_rows_that_were_half_written_are_removed(pictures, own_conf, monkeypatch, tmp_path):
    """They are private, and their folder is hidden."""

    def killed(scratch, *given):
        put(scratch / "train.pixels", b"private")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_write_splits", killed)
        with pytest.raises(KeyboardInterrupt):
            preparation.prepare(own_conf(pictures))
    assert not [*(tmp_path / "run").glob(f"{preparation.SCRATCH}*")]
    put(tmp_path / "run" / f"{preparation.SCRATCH}old" / "train.pixels", b"private")  # of a process that was killed
    preparation.prepare(own_conf(pictures))
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"own-data", "data.json", ".lock"}


def test_a_bare_flwr_run_reads_own_data_before_it_checks_the_settings(pictures, own_overrides, monkeypatch):
    driven = []
    monkeypatch.setattr(driver, "drive", lambda conf, grid: driven.append(conf))
    inprocess.serve(server_app, None, {"settings": "", "overrides": shlex.join(own_overrides(pictures))})
    assert driven[0].data.classes == ["mole", "newt", "Red kite"] and len(open_dataset(driven[0].data).train) == 27


def test_given_splits_are_kept_and_clients_have_paths_of_their_own(pictures, own_conf, tmp_path):
    for split in ("Train", "Test"):
        for k, name in enumerate(KINDS):
            for n in range(6):
                number = 5000 + 100 * k + n + (50 if split == "Test" else 0)
                put(tmp_path / "site" / split / name / f"{n}.png", number)
    second = f"{{modality: image, model: resnet, data: {tmp_path / 'site'}}}"
    mix = f"clients.mix=[{{modality: image, model: resnet}},{second}]"
    conf = own_conf(pictures, mix)
    facts = preparation.prepare(conf)
    dealt = partition(conf)["clients"]
    assert facts["rows"]["test"] == 6 + 18 and len(dealt[1]["rows"]) == 15  # of 18 train rows 3 for validation
    owners = dict(zip(*(open_dataset(conf.data).train[name][:] for name in ("id", "owner")), strict=True))
    assert {owners[row] for row in dealt[0]["rows"]} == {-1} and {owners[row] for row in dealt[1]["rows"]} == {1}
    assert len(open_private(conf, 1, "image", {}).train) == 15


def test_rows_that_show_or_say_the_same_stay_in_one_split_and_texts_are_pairs(own_conf, tmp_path):
    rows = []
    for k, name in enumerate(KINDS):
        for n in range(10):
            put(tmp_path / "own" / f"{name}{n}.png", 100 * k + n)
            rows += [{"file_name": f"{name}{n}.png", "text": f"{name} {n} {m}", "label": name} for m in range(3)]
    put(tmp_path / "own" / "metadata.jsonl", rows)
    conf = own_conf(tmp_path / "own", "clients.mix=[{modality: pair, model: resnet+bert}]", data="pairs")
    facts = preparation.prepare(conf)
    assert facts["kind"] == "pair" and all(count % 3 == 0 for count in facts["rows"].values())
    public = open_public(conf)
    assert len(public) == len(public.groups) and len(set(public.groups.tolist())) * 3 == len(public)
    assert len(open_private(conf, 0, "pair", {}).train) + len(public) == facts["rows"]["train"]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda place: put(place / "mole" / "bad.png", b"no picture"), "bad.png: image cannot be read"),
        (lambda place: [put(place / "mole" / f"{n}.png", n) for n in range(9)], "only class"),
        (lambda place: [put(place / name / "0.png", k) for k, name in enumerate(KINDS)], "too few rows"),
        (lambda place: None, "no such file"),
    ],
)
def test_data_that_cannot_be_used_are_refused_in_one_line(make, message, own_conf, tmp_path):
    make(tmp_path / "own")
    if message.startswith("bad"):
        put(tmp_path / "own" / "newt" / "0.png", 5)
    with pytest.raises(DataError, match=message) as caught:
        preparation.prepare(own_conf(tmp_path / "own"))
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)
    with pytest.raises(DataError, match="data.path is not set"):
        preparation.prepare(own_conf("null"))


@pytest.mark.parametrize("runtime", ["simulation", "inprocess", "local"])
def test_data_at_sites_need_a_deployment(runtime, own_conf):
    conf = own_conf("null", "data.classes=[mole,newt]", f"runtime={runtime}", data="sites")
    with pytest.raises(SettingsError, match=f"data=sites.*runtime=deployment.*runtime={runtime}"):
        preflight.validate(conf)


def test_a_site_needs_nothing_of_the_operators_files(pictures, own_conf):
    conf = own_conf("null", "data.classes=[mole,newt,red kite]", data="sites")
    assert preparation.prepare(conf) is None and len(open_dataset(conf.data).train) == 0
    data = open_private(conf, 0, "image", {"data-path": str(pictures)})
    assert data.classes == ("mole", "newt", "red kite")
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 6)
    again = open_private(conf, 1, "image", {"data-path": str(pictures), "test-path": str(pictures)})
    assert len(again.test) == 36 and len(again.validation) == 3


@pytest.fixture
def sites(monkeypatch):
    """`sites({client: path})`: nodes of the next run have data of their own."""

    def given(paths):
        opened = inprocess.InProcessGrid.__init__

        def with_paths(self, *args, **how):
            opened(self, *args, **how)
            for k, path in paths.items():
                self.contexts[inprocess.FIRST_NODE + k].node_config["data-path"] = str(path)

        monkeypatch.setattr(inprocess.InProcessGrid, "__init__", with_paths)

    return given


def test_records_say_what_the_sites_reported_and_nothing_that_was_not_used(pictures, own_conf, federated, sites):
    sites({0: pictures, 1: pictures})
    conf = own_conf("null", "data.classes=[mole,newt,red kite,ant]", data="sites")
    run = federated(conf)
    clients = json.loads((run / "partition.json").read_text())
    assert clients == {
        "clients": [
            {
                "client": k,
                "modality": "image",
                "model": "resnet",
                "data": "own data",
                "count": 27,
                "present": ["mole", "newt", "red kite"],
            }
            for k in (0, 1)
        ]
    }
    page = (run / "report.html").read_text()
    assert "own data of each site" in page and "dirichlet" not in page.split("Settings</h2>")[0]
    assert {"client/accuracy/0", "client/accuracy/1"} <= metrics(run)[-1].keys()  # each is judged on its own rows


def test_a_site_that_is_refused_is_named_with_its_reason(pictures, own_conf, federated, sites, tmp_path):
    put(tmp_path / "bad" / "mole" / "x.png", b"no picture")
    sites({0: pictures, 1: tmp_path / "bad"})
    run = federated(own_conf("null", "data.classes=[mole,newt,red kite]", "timeouts.quorum=1", data="sites"))
    (line,) = launch.remarks(run)
    assert line.startswith(f"left out: node {inprocess.FIRST_NODE + 1} raised: OwnDataError: own data are refused")
    assert "unreadable image: 1 in all" in line and str(tmp_path) not in line
    assert f"node {inprocess.FIRST_NODE + 1}" in (run / "report.html").read_text()
    assert len(json.loads((run / "partition.json").read_text())["clients"]) == 1


def test_a_run_that_left_out_a_refused_node_ends_with_code_3(own_overrides, pictures, sites, tmp_path, capsys):
    put(tmp_path / "bad" / "mole" / "x.png", b"no picture")
    sites({1: tmp_path / "bad"})
    given = own_overrides(pictures, "timeouts.quorum=1")
    assert launch.main([*given, "runtime=inprocess"]) == 3
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == str(tmp_path / "run") and said[-2].startswith(f"left out: node {inprocess.FIRST_NODE + 1} ")
    assert "own data are refused (unreadable image: 1 in all)" in said[-2]
    assert launch.main([*given, "runtime=inprocess", "timeouts.quorum=2", f"out={tmp_path / 'two'}"]) == 1
    assert (
        "unreadable image" in capsys.readouterr().err
    )  # without it there are too few: the reason is named all the same
