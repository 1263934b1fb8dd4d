"""The federation in one process, and the door from Python: messages, deadlines, errors, records as tables."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from hydra.core.override_parser.overrides_parser import OverridesParser

import florilegium
from florilegium.config.composition import SettingsError
from florilegium.report.results import RunResults
from florilegium.runs import lock
from florilegium.runs.reader import RunError
from florilegium.runtime import from_python, inprocess, launch
from florilegium.runtime.inprocess import FIRST_NODE, InProcessGrid
from florilegium.runtime.superlink import LaunchError
from tests import twins
from tools import traces

ROOT = Path(__file__).resolve().parents[1]


def asked(node: int = FIRST_NODE, value: float = 1.0) -> Message:
    array = ArrayRecord({"x": torch.tensor([value])})
    return Message(RecordDict({"array": array}), node, "train")


def value(message: Message) -> float:
    return float(message.content["array"].to_torch_state_dict()["x"])


@pytest.fixture
def doubling() -> tuple[ClientApp, list[Message]]:
    """An app that doubles the number it gets, and the messages it got. 3 raises, a negative number is slow."""
    app, came = ClientApp(), []

    @app.train()
    def train(message: Message, context) -> Message:
        came.append(message)
        torch.set_num_threads(1)
        if (x := value(message)) == 3.0:
            raise ZeroDivisionError("three")
        if x < 0:
            time.sleep(-x)
        return Message(RecordDict({"array": ArrayRecord({"x": torch.tensor([2 * x])})}), reply_to=message)

    return app, came


def test_clients_work_when_the_server_waits_and_get_copies_of_the_messages(doubling) -> None:
    app, came = doubling
    grid = InProcessGrid(app, 2, {})
    question = asked(FIRST_NODE + 1, 21.0)
    (name,) = grid.push_messages([question])
    assert came == []
    (reply,) = grid.pull_messages([name])
    assert value(reply) == 42.0 and reply.metadata.reply_to_message_id == name
    assert reply.metadata.src_node_id == FIRST_NODE + 1
    assert came[0] is not question and came[0].content["array"] is not question.content["array"]
    assert grid.pull_messages([name]) == []


def test_a_client_that_raises_gives_an_error_reply_and_the_others_answer(doubling) -> None:
    replies = InProcessGrid(doubling[0], 2, {}).send_and_receive([asked(value=3.0), asked(FIRST_NODE + 1, 1.0)])
    failed = [reply for reply in replies if reply.has_error()]
    assert len(replies) == 2 and len(failed) == 1
    assert failed[0].error.code == 2 and "three" in failed[0].error.reason


def test_debugging_lets_the_exception_of_a_client_through(doubling) -> None:
    with pytest.raises(ZeroDivisionError, match="three"):
        InProcessGrid(doubling[0], 1, {}, debug=True).send_and_receive([asked(value=3.0)])


def test_a_reply_after_the_deadline_comes_one_look_later(doubling) -> None:
    grid = InProcessGrid(doubling[0], 1, {}, timeout=0.05)
    (name,) = grid.push_messages([asked(value=-0.1)])
    assert grid.pull_messages([name]) == []
    assert value(grid.pull_messages([name])[0]) == pytest.approx(-0.2)


def test_a_node_that_is_not_there_gives_an_error_reply(doubling) -> None:
    (reply,) = InProcessGrid(doubling[0], 1, {}).send_and_receive([asked(7)])
    assert reply.has_error() and "not connected" in reply.error.reason


def test_a_clients_threads_are_not_the_servers(doubling) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        InProcessGrid(doubling[0], 1, {}).send_and_receive([asked()])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_apps_are_those_that_flower_loads() -> None:
    from client_app.app import app as client_app
    from server_app.app import app as server_app

    assert inprocess.load_app("serverapp") is server_app and inprocess.load_app("clientapp") is client_app


# -- settings from Python ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rounds": 2}, ["rounds=2"]),
        ({"out": Path("a/b")}, ["out='a/b'"]),
        ({"resume": True, "label": None}, ["resume=true", "label=null"]),
        ({"clients": {"width": 64, "augment": {"crop": 0}}}, ["clients.width=64", "clients.augment.crop=0"]),
        ({"privacy": ["gaussian", "gnmax"]}, ["privacy=['gaussian', 'gnmax']"]),
        ({"lr": 1e-05}, ["lr=1e-05"]),
    ],
)
def test_keywords_become_overrides(given: dict, expected: list[str]) -> None:
    assert list(from_python.keywords(given)) == expected


@pytest.mark.parametrize(
    "held",
    [
        "plain",
        "it's",
        "a, b=c: [d] {e}",
        'say "so"',
        "ends in \\",
        "\\'",
        "C:\\x\\",
        "true",
        "12",
        "",
        [1, 2.5, None, True, "x'y"],
        {"modality": "image", "sizes": [1, 2]},
    ],
)
def test_hydra_reads_the_value_that_was_given(held: object) -> None:
    text = f"key={from_python.written(held, 'key')}"
    read = OverridesParser.create().parse_override(text).value()
    plain = json.loads(json.dumps(read, default=lambda quoted: quoted.text))
    assert plain == held and type(plain) is type(held)


def test_a_setting_that_yaml_does_not_have_is_named() -> None:
    with pytest.raises(TypeError, match=r"clients\.mix\[0\]: a setting is .* got object"):
        list(from_python.keywords({"clients": {"mix": [object()]}}))


def test_errors_are_one_line_and_come_as_exceptions(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="did you mean 'fedmmkt'"):
        florilegium.run("method=fedmkt", out=tmp_path / "run")
    with pytest.raises(SettingsError, match="timeouts.quorum is 99"):
        florilegium.run(timeouts={"quorum": 99}, out=tmp_path / "run")
    with pytest.raises(RunError, match="not a run directory"):
        florilegium.load(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_importing_florilegium_is_light_and_a_run_is_read_without_torch() -> None:
    code = (
        "import sys, florilegium; assert not {'torch', 'pandas', 'hydra', 'flwr'} & set(sys.modules); "
        "florilegium.load; florilegium.compare; assert 'pandas' in sys.modules and 'torch' not in sys.modules; "
        "assert {'run', 'load', 'compare'} <= set(dir(florilegium)); print('light')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "light\n", done.stderr


# -- a whole run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tiny_overrides: list[str]) -> list[str]:
    few = ["evaluation.images_per_class=2", "method.server.samples=12", "tuning.batch=8"]
    return ["data=toy", "clients=toy", *tiny_overrides, "references=none", *few, "method.client.pretrain_epochs=1"]


@pytest.fixture(scope="module")
def run(toy: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    """FedMMKT on toy data, two rounds."""
    return florilegium.run("method=fedmmkt", *toy, rounds=2, out=tmp_path_factory.mktemp("door") / "fedmmkt")


def test_a_run_gives_its_records_as_tables(run: RunResults) -> None:
    records = [json.loads(line) for line in (run.directory / "rounds.jsonl").read_text().splitlines()]
    assert [r["round"] for r in records] == [0, 1, 2] and run.finished and run.arms == ["method"]
    assert list(run.rounds.columns) == ["arm", "round", "metric", "value"]
    assert len(run.rounds) == sum(1 + len(r["metrics"]) for r in records)
    assert run.rounds["value"].dtype == float
    for record in records:
        for name, figure in record["metrics"].items():
            assert run.metrics.loc[("method", record["round"]), name] == pytest.approx(figure, abs=0)
    last = run.summary.query("at == 'last'").set_index("metric")["value"]
    assert last["t2i/accuracy"] == records[-1]["metrics"]["t2i/accuracy"]
    entries = [json.loads(line) for line in (run.directory / "ledger.jsonl").read_text().splitlines()]
    assert len(run.ledger) == len(entries) and run.ledger["up"].sum() == sum(e["up"] for e in entries)
    assert run.votes.groupby("round")["count"].sum().to_dict() == {1: 12, 2: 12}  # every sample is counted once
    assert list(run.partition["modality"]) == ["image", "image", "text", "text"]
    rows = [len(c["rows"]) for c in json.loads((run.directory / "partition.json").read_text())["clients"]]
    assert run.partition.drop(columns=["modality", "model"]).sum(axis="columns").tolist() == rows
    assert run.settings.rounds == 2 and run.settings.runtime.name == "inprocess"


def test_a_run_gives_its_pictures_curves_and_page(run: RunResults) -> None:
    assert set(run.pictures) == {("method", r) for r in (0, 1, 2)}
    assert run.pictures["method", 0].size == run.pictures["method", 2].size
    figure = run.curves()
    assert figure._repr_png_().startswith(b"\x89PNG")
    shown = [axes.get_title() for axes in figure.axes]
    assert "client/accuracy/image" in shown and "t2i/accuracy" in shown
    line = run.curves("client/accuracy/image").axes[0].get_lines()[0]
    assert list(line.get_xdata()) == [0, 1, 2]
    assert list(line.get_ydata()) == list(run.metrics["client/accuracy/image"])
    with pytest.raises(RunError, match="no metric 'accuracy'; there are"):
        run.curves("accuracy")
    assert run.report == run.directory / "report.html" and run.report.exists()


def test_a_run_shows_its_headline(run: RunResults) -> None:
    shown = run._repr_html_()
    accuracy = 100 * run.metrics.loc[("method", 2), "client/accuracy/image"]
    assert "FedMMKT on toy, 2 of 2 rounds, seed 0" in shown and f"{accuracy:.3f}" in shown
    assert "FedMMKT" in repr(run) and str(run.directory) in repr(run)


def test_what_flower_says_is_in_the_log_and_the_lock_is_given_up(run: RunResults) -> None:
    assert (run.directory / "log.jsonl").exists()
    assert (run.directory / ".lock").resolve() not in lock._held


def test_loading_and_comparing_runs(run: RunResults, monkeypatch: pytest.MonkeyPatch) -> None:
    pd.testing.assert_frame_equal(florilegium.load(run.directory).rounds, run.rounds)
    compared = florilegium.compare([run, str(run.directory)])
    assert list(compared.table.index) == ["FedMMKT", "Un-tuned T2I"]
    mean, std, error = compared.table.loc["FedMMKT", "T2I acc. %"]
    assert mean == pytest.approx(100 * run.metrics.loc[("method", 2), "t2i/accuracy"])
    assert math.isnan(std) and math.isnan(error)
    gap = compared.differences.set_index(["arm", "metric"]).loc[("Un-tuned T2I", "t2i/accuracy")]
    start, end = (run.metrics.loc[("method", r), "t2i/accuracy"] for r in (0, 2))
    assert gap["difference"] == pytest.approx(start - end) and gap["result"] == "one seed"
    monkeypatch.chdir(run.directory.parent)
    assert run.place == "fedmmkt"  # as the user would type it
    assert str(run.directory) not in repr(run) + run._repr_html_()
    assert "FedMMKT" in compared._repr_html_() and "FedMMKT" in repr(compared)


def test_the_command_runs_it_and_shows_a_line_a_round(toy: list[str], tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    given = ["runtime=inprocess", "method=standalone", *toy[: toy.index("method.server.samples=12")]]
    assert launch.main([*given, "rounds=1", f"out={out}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("standalone on toy: 4 clients, 1 rounds")
    assert [line.split(",")[0] for line in lines[1:-1]] == ["method: round 0 of 1", "method: round 1 of 1"]
    assert lines[-1] == str(out)


def test_a_run_without_a_quorum_ends_with_one_line(toy: list[str], tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("the disk is gone")

    monkeypatch.setattr("client_app.app.open_client", fail)
    with pytest.raises(LaunchError, match=r"0 of 2 needed replies to 'profile'.*the disk is gone.*\(log: ") as told:
        florilegium.run(*toy, out=tmp_path / "run")
    assert len(str(told.value).splitlines()) == 1
    monkeypatch.setenv("FLORILEGIUM_DEBUG", "1")
    with pytest.raises(ValueError, match="the disk is gone"):
        florilegium.run(*toy, out=tmp_path / "other")


def test_ctrl_c_ends_with_one_line(toy: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("client_app.app.open_client", interrupted)
    assert launch.main(["runtime=inprocess", *toy, f"out={tmp_path / 'run'}"]) == launch.INTERRUPTED
    said = capsys.readouterr()
    assert said.err.splitlines() == ["florilegium: interrupted; everything this run started has ended"]


@pytest.mark.flower
@pytest.mark.long
def test_a_simulation_writes_the_same_run(run: RunResults, toy: list[str], tmp_path: Path) -> None:
    # Ray's actors may start processes of their own: those that decode
    given = {"rounds": 2, "runtime": "simulation", "data.workers": 2}
    other = florilegium.run("method=fedmmkt", *toy, **given, out=tmp_path / "simulation")
    ours = traces.read(run.directory)
    assert len(ours["rounds"]) == 3 and len(ours["tensors"]) > 100
    assert twins.differences(other.directory, run.directory) == []
