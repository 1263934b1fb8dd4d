"""`florilegium run`: compose, check, start Flower, follow the run, end everything, say how it went.

Hydra's conventions hold (-m, --cfg job, --help, --shell-completion). One run's path: `run_job` -> `follow`.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from rich.markup import escape
from rich.table import Table

from florilegium import assets, preflight
from florilegium.config import composition, overrides
from florilegium.config.composition import Settings, SettingsError
from florilegium.data import partition
from florilegium.data.datasets import DataError
from florilegium.data.own import preparation
from florilegium.diffusion.generator import device_of
from florilegium.federation.federation import FederationError
from florilegium.report import comparison
from florilegium.runs import reader
from florilegium.runs.progress import Screen
from florilegium.runs.reader import RunError
from florilegium.runs.terminal import console
from florilegium.runtime import continuation, inprocess, local
from florilegium.runtime.superlink import ANSI, Flower, LaunchError, OwnSuperLink, Status, quiet_environment

INTERRUPTED = 130
INCOMPLETE = 3  # exit code of a run that ended well without a node that was left out
LEFT_OUT = "left out: "
SCRATCH = "florilegium-"  # how the temporary folder of a launch is called
OWNED = ("simulation", "local")  # runtimes whose processes this launcher starts
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONGEST_NAME = 100  # of a job's directory; a longer one is cut and told apart by a hash
SILENCE_SECONDS = 120.0  # how long a SuperLink may be away (restarted, say) before its run is given up
# what Flower says of a run whose reason is in the log alone
WITHOUT_REASON = re.compile(
    r"^N/A$|^Task failed|An error was encountered. Ending simulation|Simulation Runtime crashed|Exit Code: \d"
)
EXPECTED = (SettingsError, LaunchError, RunError, DataError, assets.AssetError)  # written for the user


# -- the command -----------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Run Hydra's command line over `run_job`; return the exit code. Directories are the last lines on stdout."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's errors come to us, and leave as one line
    for number in ENDINGS:  # also where a shell started us with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    jobs = Jobs()
    sweeping = bool({"-m", "--multirun"} & set(arguments))
    try:
        arguments = composition.prepared(overrides.readable(arguments, sweeping))
        sys.argv = [sys.argv[0], *arguments]
        if sweeping and not any(text.startswith(("-c", "--", "hydra")) and text != "--multirun" for text in arguments):
            sweep([text for text in arguments if text not in ("-m", "--multirun")], jobs)
        else:
            hydra.main(version_base="1.3", config_path=str(composition.CONF), config_name="config")(jobs.run)()
    except KeyboardInterrupt:
        print("florilegium: interrupted; everything this run started has ended", file=sys.stderr)
        jobs.failures.append("interrupted")
        return INTERRUPTED
    except Exception as error:
        jobs.failures.append(say_failure(error))
    finally:
        jobs.tell()
    return 1 if jobs.failures else INCOMPLETE if jobs.incomplete else 0


class Jobs:
    """The runs of one command line: what each is called, where it lies, and why it failed, if it did."""

    def __init__(self) -> None:
        self.directories: list[Path] = []
        self.failures: list[str] = []
        self.incomplete = False  # a run has ended well, but without a node that was refused
        self.table: list[tuple[str, str, str]] = []  # (overrides, directory, how it went), of a sweep
        self.folders: Sequence[str] = ()  # below `out`, of all jobs of a sweep

    def run(self, conf: Any, name: str = "", folder: str = "", given: Sequence[str] | None = None) -> None:
        """One run, of the overrides `given` (None: those of the command line).

        In a sweep, `name` says what sets it apart and `folder` where it lies below `out`.

        A failure is told, kept, and ends no other run.
        """
        begun, where, failure = time.monotonic(), "", ""
        try:
            composed = composition.composed(conf)
            with started_early(composed) as early:
                given = sys.argv[1:] if given is None else given
                out, whole = prepare(composed, folder, given, self.folders)
                where = shown(out)
                self.directories.append(out)
                if folder and finished(out, whole):
                    print(f"{where} is finished", flush=True)
                else:
                    self.incomplete |= run_job(whole, early)
        except Exception as error:
            failure = say_failure(error)
            self.failures.append(failure)
        seconds = time.monotonic() - begun
        self.table.append((name or "-", where, failure or f"done in {seconds // 60:.0f} min {seconds % 60:02.0f} s"))

    def tell(self) -> None:
        """The directories, one a line; after a sweep first a table of all jobs, and one of their figures."""
        if len(self.table) > 1:
            summary = Table("job", "directory", "how it went", box=None, header_style="bold")
            for line in self.table:
                summary.add_row(*map(escape, line))
            console().print(summary)
            finished = [path for path in self.directories if (path / "summary.json").exists()]
            with contextlib.suppress(RunError):  # nothing to compare is no error here
                if len(finished) > 1:
                    console().print(comparison.compare(finished, force=True).table())
        for directory in self.directories:
            print(shown(directory), flush=True)


def sweep(given: list[str], jobs: Jobs) -> None:
    """Every combination of the overrides' choices, one run after the other; one that fails does not end the others."""
    combinations = overrides.jobs(given)
    fixed = [text for text in combinations[0] if all(text in job for job in combinations)]  # as Hydra writes them
    jobs.folders = [job_directory(job, fixed) for job in combinations]
    for n, job in enumerate(combinations):
        name = ",".join(text for text in job if text not in fixed) or str(n)
        print(f"job {n + 1} of {len(combinations)}: {name}", flush=True)
        try:
            conf = composition.compose(job)
        except SettingsError as error:
            jobs.failures.append(say_failure(error))
            jobs.table.append((name, "", jobs.failures[-1]))
            continue
        jobs.run(conf, name, jobs.folders[n], job)


def say_failure(error: BaseException) -> str:
    """Print the reason as one line (with FLORILEGIUM_DEBUG raise it, traceback and all) and return it."""
    if os.environ.get("FLORILEGIUM_DEBUG"):
        raise error
    line = composition.explained(error)
    if line is None and isinstance(error, EXPECTED):
        line = composition.first_line(error)
    elif line is None:
        line = f"{type(error).__name__}: {composition.first_line(error)} (FLORILEGIUM_DEBUG=1 shows where)"
    print(f"florilegium: {line}", file=sys.stderr, flush=True)
    return line


def shown(directory: Path) -> str:
    """The directory as the user would type it."""
    with contextlib.suppress(ValueError):
        return str(directory.relative_to(Path.cwd()))
    return str(directory)


# -- one run ---------------------------------------------------------------------------------------------------------


def prepare(
    conf: Settings, folder: str = "", given: Sequence[str] = (), sweep: Sequence[str] = ()
) -> tuple[Path, Settings]:
    """Check the settings and open the run directory, in `folder` below `out`: (directory, complete settings).

    `given` are the overrides that led to `conf`; a resumed run takes all others from its own directory. `sweep` are the
    folders of all jobs of its sweep.
    """
    if conf.resume:
        conf = continuation.continued(conf, given, folder, sweep)
    conf = composition.complete(conf, folder)
    if not conf.resume:
        conf = continuation.begun(conf)
    if conf.data.own:
        open_directory(conf)  # which is where they are kept
        if facts := preparation.prepare(conf, afresh=True):
            print(preparation.summary(facts), flush=True)
            conf.data.classes = facts["classes"]  # a site needs no file of ours to know them
    preflight.validate(conf)
    return open_directory(conf), conf


def job_directory(job: list[str], fixed: list[str]) -> str:
    """Jobs of a sweep that share one `out` get a directory each below it, named by their overrides; else nothing.

    What a resumed run may change is no part of the name, except where the jobs differ in it.
    """
    out = [text for text in job if overrides.key_of(text) == "out"]
    if not out or out[-1] not in fixed or re.search(r"\$\\?\{", out[-1]):  # ${key}; Hydra writes the jobs' as $\{key\}
        return ""
    free = [text for text in fixed if continuation.may_change(overrides.key_of(text))]
    name = ",".join(text for text in job if text not in out and text not in free)
    slug = re.sub(r"[^\w.=+-]+", "_", name)
    if len(slug) <= LONGEST_NAME:
        return slug
    return f"{slug[:LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def finished(out: Path, conf: Settings) -> bool:
    """Whether each arm of a resumed run has recorded its last round already."""
    if not conf.resume or not (out / "summary.json").exists():
        return False
    run = reader.recorded(out)
    return all(max((r["round"] for r in run.of(arm)), default=-1) >= conf.rounds for arm in composition.arms(conf))


def directory_of(conf: Settings) -> Path:
    """The run directory of settings that name one. SettingsError without."""
    if not conf.out:
        raise SettingsError("out: no run directory is given")
    return Path(conf.out)


def open_directory(conf: Settings) -> Path:
    """Make the run directory. SettingsError when it cannot be written or already holds a run."""
    out = directory_of(conf)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise SettingsError(f"out: cannot write to {out}: {error.strerror}") from error
    records = out / "rounds.jsonl"
    if records.exists() and records.stat().st_size and not conf.resume:
        raise SettingsError(f"out: {shown(out)} already holds a run; resume=true goes on with it, or choose another")
    return out


@dataclass(frozen=True)
class Early:
    """A SuperLink that starts while settings and data are still checked, and the folder that its processes know."""

    link: OwnSuperLink
    scratch: Path


@contextlib.contextmanager
def started_early(conf: Settings) -> Iterator[Early | None]:
    """The SuperLink of a simulation, already starting: its imports take as long as the checks. Afterwards it is gone.

    None where the run needs none, where it goes on with settings that are not read yet, or where Flower is missing,
    which the run itself will say.
    """
    if conf.runtime.name != "simulation" or conf.resume:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch:
        link = None
        with contextlib.suppress(LaunchError, assets.AssetError):
            link = OwnSuperLink(shared_environment(str(assets.root()), scratch))
            link.begin()
        try:
            yield Early(link, Path(scratch)) if link and link.process else None
        finally:
            if link:
                link.end()


def run_job(conf: Settings, early: Early | None = None) -> bool:
    """Start one run and see it to its end; whether a node was left out. LaunchError with the reason when it fails.

    `early` is the SuperLink that is already starting for it.
    """
    out, arms = directory_of(conf), list(composition.arms(conf))
    print(
        f"{conf.method.name} on {conf.data.name}: {len(conf.clients.mix)} clients, {conf.rounds} rounds, "
        f"arms {', '.join(arms)}, seed {conf.seed}",
        flush=True,
    )
    if bad := conf.attack.attackers(len(conf.clients.mix), conf.seed):
        print(f"simulated attack: {conf.attack.kind} by client {', '.join(map(str, bad))}", flush=True)
    if said := preflight.hidden_gpu(conf):
        print(said, flush=True)
    if conf.runtime.name == "inprocess":
        run_here(conf, out, arms)
    else:
        run_flower(conf, out, arms, early)
    lines = remarks(out)
    for line in lines:
        print(line, flush=True)
    return any(line.startswith(LEFT_OUT) for line in lines)


def run_here(conf: Settings, out: Path, arms: list[str]) -> None:
    """The run in this process. A bug of ours is raised as it is; a run that cannot go on is a LaunchError."""
    try:
        with Screen(out, arms, conf.rounds, bars=not inprocess.debugging()):
            inprocess.federate(conf)
    except FederationError as error:
        raise LaunchError(f"{composition.first_line(error)} (log: {shown(out / 'run.log')})") from error


def run_flower(conf: Settings, out: Path, arms: list[str], early: Early | None = None) -> None:
    """The run in Flower's own processes."""
    with contextlib.ExitStack() as stack:
        scratch = early.scratch if early else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=SCRATCH)))
        if conf.runtime.name in OWNED:  # its processes are on this machine
            partition.keep(conf, scratch)
        run_config = scratch / "run.toml"
        run_config.write_text(f"settings = {json.dumps(json.dumps(composition.plain(conf)))}\n")
        app = bundle(scratch / "florilegium")
        if early:
            flower = stack.enter_context(early.link)
        else:
            flower = stack.enter_context(connection(conf, str(scratch)))
        with Screen(out, arms, conf.rounds):
            run_id = flower.submit(app, run_config, federation(conf))
            status = follow(flower, run_id, out / "run.log")
    if not status.completed:
        raise LaunchError(f"{reason(status, out / 'run.log')} (log: {shown(out / 'run.log')})")


def remarks(out: Path) -> list[str]:
    """What a user should know of a run beside its figures: those that could not be measured, and who was left out."""
    missing = reader.read_json(out / "summary.json").get("protocol", {}).get("not_measured", {})
    lines = [f"not measured: {figure}: {why}" for figure, why in missing.items()]
    faults = [entry for entry in reader.read_lines(out / "ledger.jsonl") if "node" in entry and entry.get("fault")]
    return lines + list(dict.fromkeys(f"{LEFT_OUT}node {entry['node']} {entry['fault']}" for entry in faults))


def shared_environment(assets_root: str | None, scratch: str) -> dict[str, str]:
    """What the processes of a launch find in their environment: where the assets and the partition are."""
    return {partition.KEPT: scratch, **({assets.VARIABLE: assets_root} if assets_root else {})}


@contextlib.contextmanager
def connection(conf: Settings, scratch: str) -> Iterator[Flower]:
    """Our own SuperLink for a simulation, our own federation over loopback, or the SuperLink the user named.

    The processes that we start find the partition in the folder `scratch`.
    """
    extra = shared_environment(conf.assets, scratch)
    if conf.runtime.name == "simulation":
        with OwnSuperLink(extra) as flower:
            yield flower
    elif conf.runtime.name == "local":
        with local.of_run(conf, extra) as flower:
            yield flower
            if conf.runtime.keep:
                local.linger(flower)
    else:
        yield Flower(conf.runtime.superlink or "", quiet_environment({}))


def share_of_gpu(conf: Settings) -> float:
    """What one simulated client takes of a GPU. Ray hides all GPUs from an actor that takes nothing."""
    if (given := conf.runtime.client_gpus) is not None:
        return float(given)
    return 0.25 if device_of(conf.clients.device).startswith("cuda") else 0.0


def federation(conf: Settings) -> str | None:
    """Flower's --federation-config of a simulation: no more actors than clients or cores."""
    runtime, clients = conf.runtime, len(conf.clients.mix)
    if runtime.name != "simulation":
        return None
    cpus = runtime.cpus or max(os.cpu_count() or 1, runtime.client_cpus)
    parts = {
        "num-supernodes": clients,
        "client-resources-num-cpus": runtime.client_cpus,
        "client-resources-num-gpus": share_of_gpu(conf),
        "init-args-num-cpus": min(cpus, clients * runtime.client_cpus),
        "init-args-log-to-driver": "false",
    }
    if runtime.gpus is not None:
        parts["init-args-num-gpus"] = runtime.gpus
    return " ".join(f"{key}={value}" for key, value in parts.items())


def bundle(target: Path) -> Path:
    """Copy what belongs in Flower's bundle to `target`: a checkout may have any name and hold a virtual environment."""
    patterns = tomllib.loads(inprocess.PROJECT.read_text())["tool"]["flwr"]["app"]["fab-include"]
    target.mkdir()
    shutil.copy(inprocess.PROJECT, target / "pyproject.toml")
    for pattern in patterns:
        top = pattern.split("/")[0]
        source = composition.CONF if top == "conf" else inprocess.PACKAGE.parent / top
        if source.is_dir():
            wanted = ignoring(f"*{Path(pattern).suffix}")
            shutil.copytree(source, target / top, ignore=wanted, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copy(source, target / top)
        else:  # a wheel has no LICENSE and README.md beside its packages, but Flower asks for them
            (target / top).write_text(f"See the florilegium package for its {top}.\n")
    return target


def ignoring(wanted: str) -> Any:
    """For copytree: leave out everything that is neither a directory nor `wanted`."""

    def unwanted(folder: str, names: list[str]) -> list[str]:
        return [
            name
            for name in names
            if name in ("__pycache__", "assets") or not (fnmatch.fnmatch(name, wanted) or Path(folder, name).is_dir())
        ]

    return unwanted


def follow(flower: Flower, run_id: str, log: Path) -> Status:
    """Copy the run's log into `log` until the run ends; return how it ended. Stops the run on Ctrl-C."""
    start, silent = log.stat().st_size if log.exists() else 0, 0.0
    try:
        with open(log, "a", encoding="utf-8") as file:
            while True:
                file.truncate(start)  # Flower's log always streams from its beginning
                with flower.follow(run_id) as stream:
                    assert stream.stdout is not None
                    for line in stream.stdout:
                        file.write(ANSI.sub("", line))
                        file.flush()
                if (status := flower.status(run_id)).finished:
                    return status
                silent = 0.0 if status.known else silent or time.monotonic()
                if silent and time.monotonic() - silent > SILENCE_SECONDS:
                    raise LaunchError(
                        f"the SuperLink '{flower.superlink}' has not answered for {SILENCE_SECONDS:.0f} "
                        "s; once it is back, resume=true goes on"
                    )
                time.sleep(0.5)
    except KeyboardInterrupt:
        if not flower.owned:
            flower.stop(run_id)
        raise


def reason(status: Status, log: Path) -> str:
    """Why a run ended, in one line: what Flower says of it, else the last error in the log."""
    said = re.sub(r"^(Simulation|ServerApp) failed with exception: ", "", status.details)
    if said == "No heartbeat received from the task":
        return "the process of the server died (killed, or out of memory)"
    if said and not WITHOUT_REASON.search(said):
        return said
    text = ANSI.sub("", log.read_text(errors="replace"))
    errors = re.findall(r"^(?:ERROR *: *)?(?:\w+\.)*(\w*(?:Error|Exception): .+)$", text, re.MULTILINE)
    errors = [line for line in errors if not WITHOUT_REASON.search(line)]
    return errors[-1] if errors else f"the run ended as {status.state} {said}".strip()
