"""A SuperLink of our own, and the few `flwr` commands a run needs.

`OwnSuperLink` starts `flower-superlink --simulation` with a Flower home, a port and a Ray directory of its own,
and ends every process that came of it: SuperExec and Ray detach into sessions of their own, so they are found by
a mark in their environment and ended by process id. `Flower` talks to this or to any other SuperLink.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

MARK = "FLORILEGIUM_LAUNCH"  # every process we start carries it, with this launch's id
LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"  # seconds between a SuperExec's questions for work
START_SECONDS = 60.0
END_SECONDS = 8.0
OBJECT_STORE_BYTES = 256 * 2**20  # Ray's shared memory; it would reserve 30 % of the machine
SOCKET_ROOM = 40  # Ray adds ~65 characters to its directory; a Unix socket's path may have 107


ANSI = re.compile(r"\x1b\[[0-9;]*m")
CODE = re.compile(r"^(?:[A-Z]+ *: *)?Exit Code: \d+ *")  # how Flower begins its last message
SAYS_NOTHING = re.compile(r"^(?:[A-Z]+ *: *)?(?:For more information, visit:.*)?$")


class LaunchError(RuntimeError):
    """Flower could not be started, or a run failed; the message is one line for the user."""


@dataclass(frozen=True)
class Status:
    """How a run stands: `state` is Flower's, such as 'running' or 'finished:completed'."""

    state: str
    details: str

    @property
    def finished(self) -> bool:
        return self.state.startswith("finished")

    @property
    def known(self) -> bool:
        return self.state != "unknown"  # the SuperLink did not say

    @property
    def completed(self) -> bool:
        return self.state == "finished:completed"


def program(name: str) -> str:
    """The path of one of Flower's commands: the running Python's own first. LaunchError when it is missing."""
    found = shutil.which(name, path=_search_path())
    if found is None:
        raise LaunchError(f"the command '{name}' is not installed beside {sys.executable}: install flwr[simulation]")
    return found


def _search_path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def quiet_environment(extra: dict[str, str]) -> dict[str, str]:
    """The environment of Flower's processes: no installs at run time, no telemetry, no update checks."""
    return {
        **os.environ,
        "PATH": _search_path(),  # Flower starts its processes by name
        "PYTHONUNBUFFERED": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "SPT_NOENV": "1",  # Ray renames its processes; this keeps their environment, and our mark in it, readable
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),  # threads that wait shall not spin
        **loopback_unproxied(os.environ),
        "RAY_worker_niceness": "0",  # Ray's 15 starves the clients on a machine that does anything else
        POLL: os.environ.get(POLL, "0.1"),  # every message waits for it
        **extra,
    }


def loopback_unproxied(environment: Mapping[str, str]) -> dict[str, str]:
    """`no_proxy` and `NO_PROXY` with the loopback addresses among them: a company's proxy is not for this machine."""
    known = [name for key in ("no_proxy", "NO_PROXY") for name in environment.get(key, "").split(",") if name.strip()]
    whole = ",".join(dict.fromkeys([*(name.strip() for name in known), *LOOPBACK]))
    return {"no_proxy": whole, "NO_PROXY": whole}


def answers(url: str, seconds: float = 1.0, context: ssl.SSLContext | None = None, proxied: bool = False) -> bool:
    """Whether a server answers with success; no proxy is asked unless `proxied`."""
    handlers: list[Any] = [] if proxied else [urllib.request.ProxyHandler({})]
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    with contextlib.suppress(OSError), urllib.request.build_opener(*handlers).open(url, timeout=seconds):
        return True
    return False


def short_directory() -> Path:
    """A new temporary directory whose path leaves room for Ray's sockets."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="flo-", dir=usual if len(usual) + 13 <= SOCKET_ROOM else "/tmp"))


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def last_words(text: str) -> str:
    """Why a process of Flower ended, by the end of its output: the words of its last message, without the number of
    its exit code and the address of a help page, or its last line."""
    lines = [ANSI.sub("", line).strip() for line in text.splitlines()]
    coded = [n for n, line in enumerate(lines) if CODE.match(line)]
    said = [CODE.sub("", line) for line in lines[coded[-1] :]] if coded else lines
    said = [line for line in said if not SAYS_NOTHING.match(line)]
    if not said and coded:  # only a number: what stands before it
        return last_words("\n".join(lines[: coded[-1]]))
    return (" ".join(said) if coded else said[-1] if said else "") or "no output"


class OwnSuperLink:
    """`with OwnSuperLink(extra_environment) as flower:` a simulation SuperLink that lives as long as the block.

    `begin()` starts its process and does not wait for it. Entering the block waits, and begins where nobody has.
    """

    def __init__(self, extra: dict[str, str]) -> None:
        self.mark = uuid.uuid4().hex
        self.extra = extra
        self.home: Path | None = None
        self.process: subprocess.Popen | None = None
        self.guard: subprocess.Popen | None = None
        self.port = 0
        self.environment: dict[str, str] = {}

    def __enter__(self) -> Flower:
        if self.process is None:
            self.begin()
        try:
            assert self.home is not None
            self._wait_until_healthy(self.port, self.home / "superlink.log")
            return Flower("own", self.environment, owned=True)
        except BaseException:
            self.end()
            raise

    def begin(self) -> None:
        """Start the process; `end` ends it. LaunchError where Flower is not installed."""
        self.home = short_directory()
        try:
            self._start(self.home)
        except BaseException:
            self.end()
            raise

    def _start(self, home: Path) -> None:
        port = self.port = free_port()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        self.environment = quiet_environment(
            {
                "FLWR_HOME": str(home),
                "RAY_TMPDIR": str(home),
                "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(OBJECT_STORE_BYTES),
                MARK: self.mark,
                **self.extra,
            }
        )
        command = [
            program("flower-superlink"),
            "--insecure",
            "--simulation",
            "--isolation",
            "subprocess",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        self.guard = start_guard(self.mark, home)
        with open(home / "superlink.log", "wb") as log:
            self.process = subprocess.Popen(
                command,
                env=self.environment,
                cwd=home,  # Ray lets workers import from here: not from the user's folder, whatever lies in it
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_until_healthy(self, port: int, log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise LaunchError(f"flower-superlink ended: {last_words(log.read_text(errors='replace'))}")
            if answers(f"http://127.0.0.1:{port}/health"):
                return
            time.sleep(0.1)
        raise LaunchError(f"flower-superlink did not answer within {START_SECONDS:.0f} s")

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End everything this launch started and remove its directory; a second Ctrl-C does not cut that short."""
        if self.home is not None:  # it has begun, and has not ended
            end_all(self.mark, self.home, [self.process, self.guard])
        self.home = self.process = self.guard = None


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore SIGINT, SIGTERM and SIGHUP inside the block, where that is possible (the main thread)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    endings = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in endings}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def start_guard(mark: str, home: Path) -> subprocess.Popen:
    """This file as a process that ends the launch when our end of its pipe closes: also when we are killed with -9."""
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), mark, str(home)], stdin=subprocess.PIPE, start_new_session=True
    )


def end_launch(mark: str, home: Path) -> None:
    """End everything a launch started and remove its directory."""
    end_processes(mark)
    shutil.rmtree(home, ignore_errors=True)


def end_all(mark: str, home: Path | None, processes: list[subprocess.Popen | None]) -> None:
    """End a launch whose own children are `processes`, its guard the last of them, whatever signals come."""
    with uninterrupted():
        if home is not None:
            end_launch(mark, home)
        for process in processes:
            if process is not None:
                process.communicate()  # closes the guard's pipe; none has anything left to do


def marked_processes(mark: str) -> list[psutil.Process]:
    """All of this user's processes that carry the launch's mark in their environment, and all that came of them."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return list(found.values())


def end_processes(mark: str, patience: float = END_SECONDS) -> None:
    """Terminate, then kill, whatever carries the mark, until nothing is left."""
    for signal_name, seconds in (("terminate", patience), ("kill", 2.0), ("kill", 2.0)):
        processes = marked_processes(mark)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(process, signal_name)()
        psutil.wait_procs(processes, timeout=seconds)
        if not processes:
            return


@dataclass(frozen=True)
class Flower:
    """The `flwr` command line against one SuperLink connection of FLWR_HOME's config.toml."""

    superlink: str
    environment: dict[str, str]
    owned: bool = False  # it ends with its launch, and its runs with it

    def submit(self, app: Path, run_config: Path, federation: str | None) -> str:
        """Start a run of the app; return its id. LaunchError with Flower's own reason."""
        arguments = ["run", str(app), self.superlink, "--format", "json", "--run-config", str(run_config)]
        answer = self._ask([*arguments, *(["--federation-config", federation] if federation else [])])
        if not answer.get("run-id"):
            raise LaunchError(f"flwr run: {_one_line(answer.get('error-message') or 'the SuperLink gave no run id')}")
        return str(answer["run-id"])

    def status(self, run_id: str) -> Status:
        runs = self._ask(["list", self.superlink, "--run-id", run_id, "--format", "json"]).get("runs") or [{}]
        return Status(runs[0].get("status", "unknown"), _one_line(runs[0].get("status-details") or ""))

    def stop(self, run_id: str) -> None:
        self._ask(["stop", run_id, self.superlink, "--format", "json"])

    def register(self, public_key: Path, name: str) -> None:
        """Let the SuperNode with this key in. LaunchError with Flower's own reason."""
        answer = self._ask(
            ["supernode", "register", str(public_key), self.superlink, "--name", name, "--format", "json"]
        )
        if not answer.get("success"):
            raise LaunchError(f"flwr supernode register: {_one_line(answer.get('error-message') or str(answer))}")

    def online(self) -> int:
        """How many SuperNodes are connected."""
        nodes = self._ask(["supernode", "list", self.superlink, "--format", "json"]).get("nodes") or []
        return sum(node.get("status") == "online" for node in nodes)

    @contextlib.contextmanager
    def follow(self, run_id: str) -> Iterator[subprocess.Popen]:
        """`flwr log --stream`: its stdout is the run's log, and ends when the run ends."""
        command = [program("flwr"), "log", run_id, self.superlink, "--stream"]
        process = subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def _ask(self, arguments: list[str]) -> dict:
        done = subprocess.run(
            [program("flwr"), *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            start_new_session=True,
        )
        start = done.stdout.find("{")
        try:
            return json.loads(done.stdout[start:]) if start >= 0 else {"error-message": done.stderr or done.stdout}
        except ValueError:
            raise LaunchError(f"flwr {arguments[0]}: {_one_line(done.stderr or done.stdout)}") from None


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":  # the guard
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.read()
    end_launch(sys.argv[1], Path(sys.argv[2]))
