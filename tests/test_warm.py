"""The process that keeps a client's libraries imported, with an entry of the tests' own in the place of Flower's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from florilegium.runtime import superlink
from florilegium.runtime.warm import COMMAND, Warm

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux alone has process descriptors")

ENTRY = """
import os, random, sys, time
def main():
    kind, *rest = sys.argv[1:]
    if kind == "tell":
        told = [*rest, os.environ["COLOUR"], os.getcwd(), str("colorsys" in sys.modules), str(random.random())]
        print(*told, sep="|", flush=True)
    if kind == "echo":
        print(sys.stdin.read().upper())
    if kind == "fail":
        raise KeyError("no such thing")
    if kind == "late":
        import atexit, threading
        atexit.register(print, "then this")
        threading.Timer(0.2, print, ["first this"]).start()
    if kind == "words":
        sys.exit("in words")
    if kind == "exit":
        sys.exit(int(rest[0]))
    if kind == "sleep":
        open(rest[0], "w").write(str(os.getpid()))
        time.sleep(60)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "entry_of_tests.py").write_text(ENTRY)
    return superlink.quiet_environment({"PYTHONPATH": str(tmp_path), "COLOUR": "red"})


@pytest.fixture
def warm(environment: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    home = tmp_path / ("a home with a name longer than a socket's path may be" * 3)
    with Warm(home, environment, "/bin/echo", "entry_of_tests:main", ["colorsys", "no_such_library"]) as given:
        yield given


def asked(environment: dict[str, str], *arguments: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([COMMAND, *arguments], env=environment, capture_output=True, text=True, **options)


def eventually(what: Callable[[], object], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(what())


def test_a_fork_has_what_a_new_process_would_have(
    warm: dict[str, str],
    tmp_path: Path,
) -> None:
    first, second = (asked(warm | {"COLOUR": colour}, "tell", "a b", "", cwd=tmp_path) for colour in ("green", "blue"))
    assert first.returncode == 0, first.stderr
    (a, nothing, colour, place, imported, drawn), other = first.stdout.strip().split("|"), second.stdout.split("|")
    assert (a, nothing, colour, place, imported) == ("a b", "", "green", str(tmp_path), "True")
    assert other[2] == "blue" and other[5].strip() != drawn  # nor do two forks draw the same numbers
    assert asked(warm, "late").stdout == "first this\nthen this\n"
    assert asked(warm, "echo", input="one line").stdout == "ONE LINE\n"


@pytest.mark.parametrize(("arguments", "code"), [(["tell"], 0), (["exit", "7"], 7), (["fail"], 1), (["words"], 1)])
def test_its_exit_code_is_passed_on(
    warm: dict[str, str],
    arguments: list[str],
    code: int,
) -> None:
    done = asked(warm, *arguments)
    assert done.returncode == code and ("KeyError: 'no such thing'" in done.stderr) is (arguments == ["fail"])
    assert ("in words" in done.stderr) is (arguments == ["words"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 128 + 15), (signal.SIGKILL, -9)])
def test_a_fork_ends_with_the_command_that_asked_for_it(
    warm: dict[str, str],
    number: int,
    code: int,
    tmp_path: Path,
) -> None:
    asker = subprocess.Popen([COMMAND, "sleep", str(tmp_path / "pid")], env=warm)
    assert eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    fork = psutil.Process(int((tmp_path / "pid").read_text()))
    assert fork.pid != asker.pid and fork.is_running()
    asker.send_signal(number)
    assert asker.wait(10) == code
    assert eventually(lambda: not fork.is_running())
    assert asked(warm, "exit", "3").returncode == 3  # and the warm process goes on


def test_forks_work_side_by_side_and_end_with_the_warm_process(environment: dict[str, str], tmp_path: Path) -> None:
    with Warm(tmp_path / "home", environment, "/bin/echo", "entry_of_tests:main", []) as given:
        askers = [subprocess.Popen([COMMAND, "sleep", str(tmp_path / str(k))], env=given) for k in range(3)]
        assert eventually(
            lambda: all((tmp_path / str(k)).exists() and (tmp_path / str(k)).read_text() for k in range(3))
        )
        forks = [psutil.Process(int((tmp_path / str(k)).read_text())) for k in range(3)]
        assert asked(given, "exit", "4").returncode == 4
    assert [asker.wait(10) for asker in askers] == [1, 1, 1]
    assert eventually(lambda: not any(fork.is_running() for fork in forks))


def test_flowers_own_command_runs_when_the_warm_process_is_gone(environment: dict[str, str], tmp_path: Path) -> None:
    with Warm(tmp_path / "home", environment, "/bin/echo", "entry_of_tests:main", []) as given:
        pass
    assert asked(given, "exit", "5").stdout == "exit 5\n"


def test_a_warm_process_ends_with_the_one_that_started_it_and_nobody_else_reaches_it(
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from florilegium.runtime.warm import Warm; import os\n"
        f"one = Warm(Path({str(tmp_path)!r}), dict(os.environ), '/bin/echo', 'entry_of_tests:main', [])\n"
        "one.__enter__(); print(one.process.pid, flush=True); time.sleep(60)"
    )
    root = str(Path(superlink.__file__).parents[1])
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
    )
    assert owner.stdout is not None
    process = psutil.Process(int(owner.stdout.readline()))
    assert (tmp_path / "warm").stat().st_mode & 0o777 == 0o700
    owner.kill()
    owner.communicate()
    assert eventually(lambda: not process.is_running())
