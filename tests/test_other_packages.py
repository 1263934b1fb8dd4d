"""docs/your-own-method.md: the package on that page is built, installed, listed and run as the page says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from florilegium.contract.tiny_models import toy_overrides

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "your-own-method.md"
FILES = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def written(folder: Path) -> Path:
    """The files of the page below `folder`."""
    for name, text in FILES.findall(PAGE.read_text()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """(source, environment): the package is built and installed in a folder that the environment's Python sees."""
    source, target = written(tmp_path_factory.mktemp("silobn-example")), tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    paths = [str(target), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return source, os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def florilegium(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    """What the command prints; it runs in `folder` and has to end well."""
    command = [sys.executable, "-m", "florilegium.cli.main", *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_the_files_that_it_names() -> None:
    names = [name for name, _ in FILES.findall(PAGE.read_text())]
    sides = ["silobn/__init__.py", "silobn/server.py", "silobn/client.py"]
    assert names == ["pyproject.toml", *sides, "silobn/conf/method/silobn.yaml", "tests/test_silobn.py"]


@pytest.mark.long
def test_it_is_listed_and_says_what_it_sends(installed, tmp_path: Path) -> None:
    _, environment = installed
    assert "weights without statistics of batch norm" in florilegium(environment, tmp_path, "methods")
    given = ["data=toy", "clients=toy", "clients.mix=[{modality: image, model: vit}]", "--format", "json"]
    told = json.loads(florilegium(environment, tmp_path, "privacy", "silobn", *given))
    sent = {f["payload"] for f in told["fields"] if f["way"] == "up" and f["phase"] != "every"}
    assert sent == {"Profile", "SiteProfile", "Weights", "Report"}


@pytest.mark.long
def test_it_keeps_the_contract_by_its_own_test(installed) -> None:
    source, environment = installed
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, env=environment, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.flower
@pytest.mark.long
def test_it_runs_in_a_simulation(installed, tmp_path: Path) -> None:
    """Flower's bundle has our files alone; the processes of a simulation import the package of this machine."""
    _, environment = installed
    given = ["method=silobn", "data=toy", "clients=toy", *toy_overrides(), "rounds=1", f"out={tmp_path / 'run'}"]
    alike = "clients.mix=[{modality: image, model: resnet}, {modality: image, model: resnet}]"
    florilegium(environment, tmp_path, "run", *given, alike)
    rounds = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [r["round"] for r in rounds] == [0, 1] and "client/accuracy/image" in rounds[-1]["metrics"]
