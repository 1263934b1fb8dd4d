"""Real federations over loopback, of two toy clients, and what a test does to them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from florilegium import assets
from florilegium.runtime import superlink
from florilegium.runtime.local import LocalFederation

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 240.0  # seconds that a test waits for any one thing; a busy machine is slow
TWO = "clients.mix=[{modality:image,model:resnet},{modality:text,model:bert}]"


class Deployment(LocalFederation):
    """A local federation of the test's own, whose processes it may kill."""

    def __init__(self, sites: int, folder: Path, toy: list[str]) -> None:
        super().__init__(sites, folder / "state", str(assets.root()), libraries=None)
        self.folder, self.toy = folder, toy

    def warmth(self) -> list[str]:
        return []  # a warm process of its own, as a site on a machine of its own has

    def launch(self, *overrides: str) -> subprocess.Popen:
        """`florilegium run` on this federation, as its operator would."""
        given = [
            *self.toy,
            "runtime=deployment",
            "runtime.superlink=local",
            "references=none",
            f"out={self.folder / 'run'}",
            *overrides,
        ]
        return subprocess.Popen(
            [sys.executable, "-m", "florilegium.cli.main", "run", *given],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def working(self, name: str, run: subprocess.Popen, what: str) -> list[psutil.Process]:
        """Wait until a client process that is not there yet has started at this site; all that are there then."""
        earlier = self.descendants(name, "flwr-clientapp")  # of the exchange before; may not have ended yet
        until(
            f"{name} to work on {what}",
            lambda: set(self.descendants(name, "flwr-clientapp")) - set(earlier),
            process=run,
        )
        return self.descendants(name, "flwr-clientapp")

    def descendants(self, name: str, program: str) -> list[psutil.Process]:
        """The processes below one of this federation's that run `program`, a warm site's forks (warm.py) among them."""
        found = []
        for process in psutil.Process(self.processes[name].pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it ended just now
                if any(program in part.replace("_", "-") for part in process.cmdline()[:6]):
                    found.append(process)
        return found


def alive(process: psutil.Process) -> bool:
    """Whether a process still does something: one that has ended, but that nobody waited for, does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(
    name: str, what: Callable[[], object], limit: float = LIMIT, process: subprocess.Popen | None = None
) -> object:
    """The first true answer of `what`; fails after `limit` seconds, or when `process` has ended, saying its `name`."""
    deadline = time.monotonic() + limit
    while not (found := what()):
        assert process is None or process.poll() is None, (f"{name}: the run ended first", process.communicate())
        assert time.monotonic() < deadline, f"waited {limit:.0f} s for {name}"
        time.sleep(0.1)
    return found


def ended(run: subprocess.Popen, limit: float = LIMIT) -> None:
    """Wait for the end of `florilegium run`; fails with what it said when that is late, or not a good one."""
    try:
        out, err = run.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        run.terminate()
        out, err = run.communicate(timeout=30)
        pytest.fail(f"waited {limit:.0f} s for the run's end\n{out}{err}")
    assert run.returncode == 0, out + err


@pytest.fixture
def deployment(tiny_overrides: list[str], tmp_path: Path) -> Iterator[Callable[[int], Deployment]]:
    """`deployment(2)`: a federation that is up; nothing of it is left after the test."""
    made: list[Deployment] = []

    def up(sites: int) -> Deployment:
        mix = TWO if sites == 2 else TWO.replace("},{modality:text,model:bert}", "}")
        one = Deployment(sites, tmp_path, ["data=toy", "clients=toy", mix, *tiny_overrides])
        one.__enter__()
        made.append(one)
        return one

    yield up
    for one in made:
        one.__exit__()
        assert not superlink.marked_processes(one.mark) and not one.home.exists()
