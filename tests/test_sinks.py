"""Sinks hear what a run records and can harm nothing: Prometheus, TensorBoard, MLflow and the run's own log."""

import json
import logging
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from florilegium.config import composition
from florilegium.config.sinks import SinkSettings
from florilegium.runs.logs import JsonLog, LoggedRounds
from florilegium.runs.observers import Observer, Observers
from florilegium.runs.sinks.opening import open_sinks
from florilegium.runs.writer import Run
from tests.synthetic_run import captions, conf, entry, images

FIGURES = {"client/accuracy/image": 0.5, "loss": float("nan")}


def tell_all(run):
    """Two rounds of one arm, one fault, one late reply, one grid."""
    run.progress(arm="method", round=0, rounds=2, phase="train", done=1, total=4)
    run.record("method", 0, 1.5, FIGURES)
    run.ledger(
        [
            entry("method", 1, "train", 0, 100, 40),
            entry("method", 1, "train", 1, 100, 0, "raised: x"),
            entry("method", 1, "train", 2, 0, 7) | {"late": "asked in round 0; dropped"},
        ]
    )
    run.grid("method", 1, images(), captions())
    run.record("method", 1, 2.5, {"client/accuracy/image": 0.75})
    run.progress(arm="method", round=1, rounds=2, phase="evaluate", done=2, total=4)


def got(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def settled(run):
    """Until every observer has heard everything."""
    deadline = time.monotonic() + 10
    while any(one.events.qsize() for one in run.observers.watched) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)


@pytest.fixture
def prometheus(tmp_path):
    pytest.importorskip("prometheus_client")
    given = composition.typed(SinkSettings, {"prometheus": {"enabled": True, "port": 0, "stalled": 50.0}}, "sinks")
    run = Run.open(tmp_path / "run", conf())
    (sink,) = open_sinks(given, run.out, run.settings)
    run.observe(sink)
    yield run, sink
    run.silence()


def test_prometheus_has_the_last_round_and_counts_faults_and_bytes(prometheus):
    run, sink = prometheus
    tell_all(run)
    settled(run)
    status, text = got(sink.port, "/metrics")
    told = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    told = {name: float(value) for name, value in told.items()}
    assert status == 200 and told['florilegium_metric{arm="method",name="client/accuracy/image"}'] == 0.75
    assert 'florilegium_metric{arm="method",name="loss"}' not in told  # NaN is no figure
    assert told['florilegium_round{arm="method"}'] == 1 and told["florilegium_rounds_planned"] == 2
    assert told['florilegium_rounds_total{arm="method"}'] == 2
    assert told['florilegium_bytes_total{arm="method",phase="train",way="down"}'] == 200
    assert told['florilegium_bytes_total{arm="method",phase="train",way="up"}'] == 47
    assert told['florilegium_messages_total{arm="method",phase="train"}'] == 2
    assert told['florilegium_faults_total{arm="method",phase="train"}'] == 1
    assert told['florilegium_late_replies_total{arm="method",phase="train"}'] == 1
    assert 0 <= told["florilegium_seconds_since_progress"] < 10


def test_health_says_where_the_run_is_and_whether_it_moves(prometheus):
    run, sink = prometheus
    tell_all(run)
    settled(run)
    status, text = got(sink.port, "/healthz")
    told = json.loads(text)
    assert status == 200 and told.pop("seconds_since_progress") < 10
    assert told == {
        "status": "running",
        "arm": "method",
        "round": 1,
        "rounds": 2,
        "phase": "evaluate",
        "done": 2,
        "total": 4,
    }
    sink.heard -= 51
    status, text = got(sink.port, "/healthz")
    assert status == 503 and json.loads(text)["status"] == "stalled" and json.loads(text)["seconds_since_progress"] > 50
    assert got(sink.port, "/else")[0] == 404


def test_tensorboard_gets_scalars_and_the_grid(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run.open(tmp_path / "run", conf())
    run.observe(*open_sinks(composition.typed(SinkSettings, {"tensorboard": {"enabled": True}}, "sinks"), run.out, {}))
    tell_all(run)
    run.silence()
    held = EventAccumulator(str(run.out / "tensorboard" / "method"))
    held.Reload()
    assert [(e.step, e.value) for e in held.Scalars("client/accuracy/image")] == [(0, 0.5), (1, 0.75)]
    assert [(e.step, e.value) for e in held.Scalars("seconds")] == [(0, 1.5), (1, 2.5)] and "loss" not in held.Tags()
    (picture,) = held.Images("t2i/samples")
    assert picture.step == 1 and (picture.width, picture.height) == (3 * (35 * 3 + 6) + 6, 8 * 3 + 18 + 2 * 6)


def test_mlflow_has_a_run_for_each_arm_and_goes_on_with_it(tmp_path):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    given = composition.typed(SinkSettings, {"mlflow": {"enabled": True}}, "sinks")
    for figures in ({0: 0.5, 1: 0.75}, {2: 0.8}):
        run = Run.open(tmp_path / "run", conf(), resume=True)
        run.observe(*open_sinks(given, run.out, {"seed": 3, "data": {"name": "emoji"}}))
        assert run.observers.watched
        for r, value in figures.items():
            run.record("method", r, 1.0, {"client/accuracy/image": value, "loss": float("nan")})
        run.silence()
    client = MlflowClient(f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    (held,) = client.search_runs([client.get_experiment_by_name("florilegium").experiment_id])
    assert held.data.tags["arm"] == "method" and held.data.params == {"seed": "3", "data.name": "emoji"}
    told = client.get_metric_history(held.info.run_id, "client/accuracy/image")
    assert sorted((m.step, m.value) for m in told) == [(0, 0.5), (1, 0.75), (2, 0.8)]
    assert "loss" not in held.data.metrics


class Broken(Observer):
    calls = 0

    def record(self, *_):
        self.calls += 1
        raise OSError("connection refused\nand more")


class Counts(Observer):
    def __init__(self):
        self.heard = []

    def record(self, arm, round, seconds, metrics):
        self.heard.append(round)


def test_a_sink_that_fails_says_so_once_and_the_others_go_on(tmp_path, caplog):
    run, broken, counts = Run.open(tmp_path / "run", conf()), Broken(), Counts()
    run.observe(broken, counts)
    with caplog.at_level(logging.WARNING, "flwr"):
        for r in range(3):
            run.record("method", r, 1.0, {})
        run.silence()
    said = [r.getMessage() for r in caplog.records]
    assert said == ["the sink Broken is left out from here on: OSError: connection refused"]
    assert broken.calls == 1 and counts.heard == [0, 1, 2] and len(run.rounds("method")) == 3


def test_a_slow_sink_holds_up_nothing():
    class Slow(Observer):
        def record(self, *_):
            time.sleep(60)

    observers, begun = Observers([Slow()]), time.monotonic()
    for r in range(100):
        observers.tell("record", "method", r, 1.0, {})
    observers.close(patience=0.2)
    assert time.monotonic() - begun < 5


def test_a_sink_that_cannot_start_is_left_out(tmp_path, caplog, prometheus):
    taken = prometheus[1].port
    given = composition.typed(SinkSettings, {"prometheus": {"enabled": True, "port": taken}}, "sinks")
    with caplog.at_level(logging.WARNING, "flwr"):
        assert open_sinks(given, tmp_path, {}) == []
    assert caplog.records[-1].getMessage().startswith("the sink prometheus is left out: OSError: ")


@pytest.mark.parametrize(
    "bad, line",
    [
        ({"prometheus": {"port": 70000}}, "port must lie between 0 and 65535, got 70000"),
        ({"prometheus": {"prot": 1}}, "sinks.prometheus.prot"),
        ({"grafana": {}}, "sinks.grafana"),
    ],
)
def test_settings_are_checked(bad, line):
    with pytest.raises(composition.SettingsError, match=line):
        composition.typed(SinkSettings, bad, "sinks")


@pytest.mark.parametrize(
    "choice, enabled",
    [
        ("none", []),
        ("prometheus", ["prometheus"]),
        ("mlflow", ["mlflow"]),
        ("tensorboard", ["tensorboard"]),
        ("all", ["prometheus", "tensorboard", "mlflow"]),
    ],
)
def test_the_group_turns_sinks_on(choice, enabled):
    given = composition.typed(SinkSettings, composition.compose([f"sinks={choice}"]).sinks, "sinks")
    assert [name for name, one in vars(given).items() if one.enabled] == enabled


def log_lines(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_the_log_says_run_arm_round_phase_and_client(tmp_path):
    run = Run.open(tmp_path / "mine", conf())
    run.observe(at_once=LoggedRounds(JsonLog(run.out, "info")))
    logger = logging.getLogger("flwr")
    run.progress(arm="method", round=3, rounds=4, phase="represent", done=0, total=4)
    logger.warning("client %d did not answer", 2, extra={"client": 2, "phase": "train"})
    logger.info("plain")
    run.record("method", 3, 1.25, {"loss": np.float32(0.5)})
    run.silence()
    logger.warning("after the run")
    fault, plain, finished = log_lines(run.out)
    assert {k: fault[k] for k in ("level", "message", "run", "arm", "round", "phase", "client")} == {
        "level": "WARNING",
        "message": "client 2 did not answer",
        "run": "mine",
        "arm": "method",
        "round": 3,
        "phase": "train",
        "client": 2,
    }
    assert plain["phase"] == "represent" and plain["client"] is None and "timestamp" in plain
    assert finished["message"] == "round finished" and finished["seconds"] == 1.25
    assert finished["metrics"] == {"loss": 0.5} and finished["round"] == 3


def test_the_log_keeps_its_level_and_heals_a_torn_line(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"message": "whole"}\n{"mess')
    log = JsonLog(tmp_path, "warning")
    logging.getLogger("flwr").info("too little")
    logging.getLogger("flwr").error("enough")
    log.close()
    assert [x["message"] for x in log_lines(tmp_path)] == ["whole", "enough"]


def test_a_log_that_cannot_be_written_is_left_out(tmp_path, caplog):
    log = JsonLog(tmp_path / "gone", "info")
    with caplog.at_level(logging.WARNING, "flwr"):
        logging.getLogger("flwr").warning("first")
        logging.getLogger("flwr").warning("second")
    log.close()
    assert [r.getMessage() for r in caplog.records if "left out" in r.getMessage()] == [
        f"{tmp_path / 'gone' / 'log.jsonl'} is left out from here on: "
        f"[Errno 2] No such file or directory: '{tmp_path / 'gone' / 'log.jsonl'}'"
    ]


def test_a_run_with_all_sinks_through_the_real_apps(toy_conf, federated):
    """The numbers are those of a run without sinks, a client's fault is in the log by its number."""
    from flwr.app import Error, Message

    given = ("method=standalone", "rounds=1", "method.client.pretrain_epochs=1", "evaluation.images_per_class=1")

    def fails(question, reply):
        wrong = question.metadata.message_type == "train" and question.metadata.dst_node_id == 101
        return Message(Error(2, "no memory"), reply_to=question) if wrong else reply

    figures = []
    for choice in ("none", "all"):
        made = toy_conf(*given, f"sinks={choice}", "sinks.prometheus.port=0")
        made.out += choice
        made.clients.state_dir = made.out + "/state"
        run = federated(made, fails)
        figures.append([(r["round"], r["metrics"]) for r in map(json.loads, open(run / "rounds.jsonl"))])
    assert figures[0] == figures[1] and len(figures[0]) == 2
    (fault, *_) = [x for x in log_lines(run) if x["level"] == "WARNING" and x["client"] is not None]
    assert fault["client"] == 1 and fault["phase"] == "train" and "no memory" in fault["message"]
    assert [x["round"] for x in log_lines(run) if x["message"] == "round finished"] == [0, 1]
    if (run / "tensorboard").exists():
        assert list((run / "tensorboard" / "method").iterdir())
