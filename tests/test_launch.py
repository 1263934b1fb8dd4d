"""The launcher with real Flower processes: one whole run, one that fails, one that is interrupted; nothing is left."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
import zipfile
from pathlib import Path

import psutil
import pytest

from florilegium import preflight
from florilegium import run as run_in_python
from florilegium.config import composition
from florilegium.runs.reader import read_lines
from florilegium.runtime import inprocess, launch, superlink
from server_app.provenance import LEFT_OUT, code
from tests import twins
from tests.tiers import first

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 420  # seconds until a launch counts as hung, on a machine that does much else


def florilegium(*arguments: str, where: Path = ROOT, **more: str) -> subprocess.Popen:
    """The command as a user's shell would start it, from any directory; `more` of the environment."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(where), **more}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "florilegium.cli.main", *arguments],  # -P: as the console script
        cwd=where,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def nothing_left(where: Path) -> bool:
    """No process whose launch had its temporary files below `where`, and none of those files."""

    def ours(process: psutil.Process) -> bool:
        try:
            environment = process.environ()
        except (psutil.Error, OSError):
            return False
        return superlink.MARK in environment and environment.get("TMPDIR") == str(where)

    return not any(map(ours, psutil.process_iter())) and not list(where.glob("flo*"))


@pytest.fixture
def toy(tiny_overrides: list[str], tmp_path: Path) -> list[str]:
    return ["run", "data=toy", "clients=toy", *tiny_overrides, "references=none", "rounds=1", f"out={tmp_path / 'run'}"]


def test_the_hash_of_the_code_leaves_out_what_the_bundle_leaves_out() -> None:
    app = tomllib.loads(inprocess.PROJECT.read_text())["tool"]["flwr"]["app"]
    assert {pattern.removesuffix("**") for pattern in app["fab-exclude"]} == set(LEFT_OUT)


@pytest.mark.flower
def test_a_run_through_flower_completes_and_leaves_nothing(toy: list[str], tmp_path: Path) -> None:
    """It writes what the same run in one process writes.

    From a folder with another checkout's code and a file named as a library, behind a company's proxy.
    """
    for name in ("client_app/__init__.py", "server_app/__init__.py", "datasets.py", "torch.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise RuntimeError('code of the working folder was run')\n")
    proxy = "http://127.0.0.1:9"  # nobody is there
    process = florilegium(*toy, where=tmp_path, http_proxy=proxy, https_proxy=proxy, no_proxy="", NO_PROXY="")
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, out + err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["protocol"]["code"] == code()["code"]
    assert out.splitlines()[-1] == "run"  # the directory, as seen from where it was started
    assert [record["round"] for record in read_lines(tmp_path / "run" / "rounds.jsonl")] == [0, 1]
    for name in ("settings.yaml", "partition.json", "summary.json", "ledger.jsonl", "report.html", "run.log"):
        assert (tmp_path / "run" / name).stat().st_size, name
    assert nothing_left(tmp_path)
    other = run_in_python(*toy[1:-1], runtime="inprocess", out=tmp_path / "other")
    assert twins.differences(tmp_path / "run", other.directory) == []


@pytest.mark.flower
@pytest.mark.long
def test_a_run_that_fails_says_why_and_leaves_nothing(toy: list[str], tmp_path: Path) -> None:
    process = florilegium(*toy, "timeouts.exchange=0.1", where=tmp_path)  # no client can answer in time
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert out.splitlines()[-1] == "run"
    assert "within 0 s" in err.splitlines()[-1] and "Traceback" not in err, err
    assert nothing_left(tmp_path)


@pytest.mark.flower
@pytest.mark.long
def test_ctrl_c_ends_everything(toy: list[str], tmp_path: Path) -> None:
    process = florilegium(*toy, "rounds=500", where=tmp_path)
    deadline = time.monotonic() + LIMIT
    while not read_lines(tmp_path / "run" / "rounds.jsonl") and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in err.splitlines()[-1], out + err
    assert nothing_left(tmp_path)


# the last one composes, so Flower's process is already starting when it is refused
@pytest.mark.parametrize(
    "override", first(["method.server.vote_treshold=1", "wire.projection=999", "rounds=x", "method=fedmkt"], 2)
)
def test_a_bad_setting_ends_the_command_with_one_line_and_leaves_nothing(override: str, tmp_path: Path) -> None:
    process = florilegium("run", override, where=tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == ""
    assert len(err.splitlines()) == 1 and err.startswith("florilegium: "), err
    assert not list(tmp_path.iterdir()) and nothing_left(tmp_path)


def test_an_unwritable_directory_and_one_that_holds_a_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    conf = composition.complete(composition.compose([f"out={tmp_path / 'file' / 'run'}"]))
    with pytest.raises(composition.SettingsError, match="out: cannot write to .*: Not a directory"):
        launch.open_directory(conf)
    conf.out = str(tmp_path / "held")
    assert launch.open_directory(conf).is_dir()
    Path(conf.out, "rounds.jsonl").write_text("{}\n")
    with pytest.raises(composition.SettingsError, match="already holds a run; resume=true goes on"):
        launch.open_directory(conf)
    conf.resume = True
    launch.open_directory(conf)


def test_the_bundle_is_complete_whatever_the_checkout_is_called(tmp_path: Path) -> None:
    from flwr.cli.build import build_fab_from_disk

    app = launch.bundle(tmp_path / "florilegium")
    held = {path.relative_to(app).as_posix() for path in app.rglob("*") if path.is_file()}
    assert {"pyproject.toml", "LICENSE", "server_app/app.py", "client_app/app.py", "conf/config.yaml"} <= held
    assert not [name for name in held if not re.search(r"\.(py|yaml|toml|md)$|^LICENSE$", name)]
    built = build_fab_from_disk(app)
    assert len(built) < 2_000_000  # Flower itself takes 10 MB
    with zipfile.ZipFile(io.BytesIO(built)) as packed:
        sent = set(packed.namelist())
    assert "florilegium/protocol/payloads.py" in sent
    assert not [name for name in sent if name.startswith(("florilegium/cli/", "florilegium/runtime/"))]


def test_no_more_actors_than_clients_or_cores() -> None:
    conf = composition.compose(["runtime.cpus=8"])
    assert f"num-supernodes={len(conf.clients.mix)}" in launch.federation(conf)
    assert f"init-args-num-cpus={min(8, len(conf.clients.mix))}" in launch.federation(conf)
    assert launch.federation(composition.compose(["runtime=deployment", "runtime.superlink=lab"])) is None


def test_a_gpu_that_ray_hides_from_the_clients_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*given: str) -> str | None:
        return preflight.hidden_gpu(composition.compose(["clients.device=auto", "runtime.client_gpus=0", *given]))

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert told() is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert "clients.device=auto" in told() and "runtime.client_gpus is 0" in told() and "\n" not in told()
    assert told("clients.device=cuda:0") and told("clients.device=cpu") is None
    assert told("runtime.client_gpus=0.5") is None and told("runtime=inprocess") is None
    assert told("runtime.client_gpus=null") is None


def test_four_clients_share_a_gpu_unless_it_is_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(*given: str) -> str:
        parts = launch.federation(composition.compose(given)).split()
        return next(part for part in parts if "resources-num-gpus" in part).split("=")[1]

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert share("clients.device=auto") == "0.25" and share() == "0.0"  # by default clients learn on the CPU
    assert share("clients.device=auto", "runtime.client_gpus=0.5") == "0.5"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert share("clients.device=auto") == "0.0"


def test_the_reason_is_the_servers_own_words(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    log.write_text("ERROR :     x\nTraceback\nValueError: told in the log\n")
    failed = "finished:failed"
    details = "Simulation failed with exception: the worker of client 2 died"
    assert launch.reason(superlink.Status(failed, details), log) == "the worker of client 2 died"
    assert "died" in launch.reason(superlink.Status(failed, "No heartbeat received from the task"), log)
    assert launch.reason(superlink.Status(failed, "N/A"), log) == "ValueError: told in the log"
    log.write_text(
        "florilegium.federation.federation.FederationError: too few replies\n\nThe above exception was the direct cause"
        " of the following exception:\nRuntimeError: Simulation Runtime crashed.\nERROR :     Exit Code: 700\n"
        "An exception occurred.\n\nFor more information, visit: <https://example.org/700.html>\n"
    )
    crashed = "Simulation failed with exception: Simulation Runtime crashed."
    for said in (crashed, "Task failed with unknown error.", "Task failed because the run finished", ""):
        assert launch.reason(superlink.Status(failed, said), log) == "FederationError: too few replies"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("", "no output"),
        ("INFO : one\nERROR :   two\n\n", "ERROR :   two"),
        ("x\n\x1b[91mERROR \x1b[0m:     Exit Code: 201\nthe port is taken\n\nFor more information, visit: <u/201>\n",
         "the port is taken"),
        ("why it ended\nERROR :     Exit Code: 700\n\nFor more information, visit: <u/700.html>\n", "why it ended"),
        ("ERROR :     Exit Code: 603\na\nb\n", "a b"),
    ],
)  # fmt: skip
def test_no_exit_code_of_flowers_stands_in_the_place_of_a_reason(output: str, words: str) -> None:
    assert superlink.last_words(output) == words


def test_processes_that_detach_are_found_by_their_mark_and_ended() -> None:
    mark = "test-" + os.urandom(8).hex()
    sleeper = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import signal, time; "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)'], start_new_session=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", sleeper], env={**os.environ, superlink.MARK: mark})
    deadline = time.monotonic() + 10
    while len(superlink.marked_processes(mark)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(superlink.marked_processes(mark)) == 2
    superlink.end_processes(mark, patience=1.0)
    assert not superlink.marked_processes(mark)
    process.wait()


@pytest.fixture
def no_flower(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command up to the point where Flower would start, from an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "run_job", lambda conf, early: False)
    monkeypatch.setattr(launch, "started_early", lambda conf: contextlib.nullcontext())
    monkeypatch.setattr(launch.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["florilegium"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")


def test_a_guard_ends_the_launch_when_the_launcher_is_killed(tmp_path: Path) -> None:
    mark, home = "test-" + os.urandom(8).hex(), tmp_path / "home"
    home.mkdir()
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, superlink.MARK: mark}
    )
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from florilegium.runtime import superlink; "
            "superlink.start_guard(sys.argv[1], Path(sys.argv[2])); print('up', flush=True); time.sleep(60)",
            mark,
            str(home),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert launcher.stdout.readline() == b"up\n" and sleeper.poll() is None
    launcher.kill()
    launcher.communicate()
    assert sleeper.wait(timeout=20) == -signal.SIGTERM
    deadline = time.monotonic() + 10
    while home.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not home.exists()


def test_loopback_never_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that answers nothing is set; a server of this machine is reached all the same."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    for key in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(key, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "intranet.example, 10.0.0.1")
    environment = superlink.quiet_environment({})
    assert environment["no_proxy"] == environment["NO_PROXY"] == "intranet.example,10.0.0.1,127.0.0.1,localhost,::1"
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert superlink.answers(f"http://127.0.0.1:{server.server_port}/health")
        server.shutdown()
    assert not superlink.answers(f"http://127.0.0.1:{server.server_port}/health")


def test_what_a_marked_process_started_is_ended_with_it() -> None:
    """Ray's agents overwrite their environment, and our mark with it; they are found as children."""
    mark = "test-" + os.urandom(8).hex()
    code = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
        "env={}); print(child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, superlink.MARK: mark}, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    superlink.end_processes(mark)
    assert parent.wait(timeout=10) is not None and not psutil.pid_exists(child)


@pytest.mark.usefixtures("no_flower")
@pytest.mark.parametrize(
    ("given", "directories"),
    [
        (["out=one"], ["one"]),
        (["-m", "seed=0,1", "label=a", "out=sweep"], ["sweep/seed=0_label=a", "sweep/seed=1_label=a"]),
        (["-m", "seed=0,1", "out=sweep/s${seed}"], ["sweep/s0", "sweep/s1"]),
        (["-m", "out=a,b"], ["a", "b"]),
    ],
)
def test_every_job_has_a_directory_and_the_last_lines_name_them(
    given: list[str],
    directories: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert launch.main(given) == 0
    assert capsys.readouterr().out.splitlines()[-len(directories) :] == directories
    assert all(Path(directory).is_dir() for directory in directories)


@pytest.mark.usefixtures("no_flower")
def test_a_sweep_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Finished jobs are left alone, one that was killed goes on in its folder, and one that never began starts."""
    began = []

    def run_job(conf: composition.Settings, early: object) -> bool:
        out = Path(str(conf.out))
        began.append(out.name)
        reached = conf.rounds if conf.resume or conf.seed == 0 else 1
        records = [{"arm": arm, "round": n, "metrics": {}} for arm in conf.arms() for n in range(reached + 1)]
        (out / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (out / "settings.yaml").write_text(json.dumps(composition.plain(conf)))
        (out / "summary.json").write_text("{}")
        return False

    monkeypatch.setattr(launch, "run_job", run_job)
    monkeypatch.setattr(launch.preflight, "validate", lambda conf: None)
    given = ["-m", "label=a", "references=none", "out=sweep"]
    assert launch.main([*given, "seed=0,1", "rounds=2", "timeouts.exchange=99"]) == 0
    names = [f"label=a_references=none_seed={n}" for n in range(3)]
    assert began == names[:2]
    capsys.readouterr(), began.clear()
    assert launch.main([*given, "seed=0,1,2", "rounds=2", "resume=true", "clients.threads=1"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert began == names[1:] and f"sweep/{names[0]} is finished" in told
    assert told[-3:] == [f"sweep/{name}" for name in names]
    began.clear()
    assert launch.main(["-m", "label=b", "seed=0", "out=sweep", "resume=true"]) == 1 and not began
    assert "there is no run in sweep/label=b_seed=0 to go on with" in capsys.readouterr().err


def test_what_a_resumed_run_may_change_names_a_job_only_where_jobs_differ_in_it() -> None:
    fixed = ["out=sweep", "resume=true", "runtime.warm=false", "rounds=3"]
    assert launch.job_directory([*fixed, "seed=1"], fixed) == "seed=1"
    assert launch.job_directory([*fixed, "seed=1"], fixed[:3]) == "rounds=3_seed=1"


@pytest.mark.usefixtures("no_flower")
def test_one_bad_job_does_not_stop_the_others_but_fails_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["-m", "timeouts.quorum=99,2", "out=sweep"]) == 1
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "sweep/timeouts.quorum=2" and "timeouts.quorum is 99" in told.err
    table = [line for line in told.out.splitlines() if line.strip().startswith("timeouts.quorum=")]
    assert "timeouts.quorum is 99" in table[0] and "done in" in table[1]


@pytest.mark.usefixtures("no_flower")
def test_a_job_that_does_not_compose_ends_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["-m", "data=nowhere,toy", "diffusion=mini", "out=sweep"]) == 1
    told = capsys.readouterr()
    assert "no data 'nowhere'" in told.err and Path("sweep/data=toy_diffusion=mini").is_dir()


def test_names_that_are_cut_do_not_collide() -> None:
    """The first 100 characters are the same; at 120 such jobs once shared a directory."""
    fixed = ["out=sweep", *(f"clients.partition.alpha_{n}=0.5" for n in range(6))]
    jobs = [[*fixed, f"seed={n}"] for n in range(2)]
    names = {launch.job_directory(job, fixed) for job in jobs}
    assert len(names) == 2 and all(len(name) == 109 for name in names)


@pytest.mark.usefixtures("no_flower")
@pytest.mark.parametrize("name", ["My Drive (1)", "a=b", "it's", 'a "b"', "a,b", "né"])
def test_a_directory_of_any_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main([f"out={name}"]) == 0
    assert Path(name).is_dir() and capsys.readouterr().out.splitlines()[-1] == name
