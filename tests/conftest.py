"""What the tests share: one thread, toy settings, and a federation run in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: tests and Flower's processes share few cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # embedded assets only

import pytest
import torch
from flwr.app import Message

from florilegium.config import composition
from florilegium.config.settings import Settings
from florilegium.runs.reader import read_lines

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_overrides() -> list[str]:
    """Overrides that put millisecond models, built once a session, in the place of the embedded ones."""
    from florilegium.contract.tiny_models import toy_overrides

    return toy_overrides()


@lru_cache(maxsize=512)
def composed_once(overrides: tuple[str, ...]) -> Settings:
    """Hydra takes half a second, and many tests start from the same settings."""
    return composition.compose(list(overrides))


@pytest.fixture
def toy_conf(tiny_overrides: list[str], tmp_path: Path) -> Callable[..., Settings]:
    """`toy_conf("rounds=2", ...)`: complete settings on toy data, clients and models, in a directory of the test's."""

    def composed(*overrides: str) -> Settings:
        given = ["data=toy", "clients=toy", *tiny_overrides, "references=none", "rounds=1"]
        out = [f"out={tmp_path / 'run'}", *(each for each in overrides if each.startswith("out="))][-1]
        conf = deepcopy(composed_once((*given, *(each for each in overrides if not each.startswith("out=")))))
        conf.out = out.removeprefix("out=")
        conf = composition.complete(conf)
        for side in ("server", "client"):
            guidance = conf.method.value(side, "guidance") or {}
            if guidance.get("cache") == str(Path.cwd() / ".cache" / "features"):
                guidance["cache"] = str(tmp_path / "features")  # what an earlier version computed proves nothing
        return conf

    return composed


@pytest.fixture
def federated() -> Callable[..., Path]:
    """`federated(conf, tamper=None)`: run the real ServerApp and ClientApp in this process; gives the run directory."""

    def run(conf: Settings, tamper: Callable | None = None) -> Path:
        from client_app.app import app as client_app
        from server_app.app import app as server_app
        from tests.local_grid import run_apps

        run_config = {"settings": json.dumps(composition.plain(conf)), "overrides": ""}
        run_apps(server_app, client_app, len(conf.clients.mix), run_config, tamper)
        return Path(conf.out)

    return run


@pytest.fixture
def resumed(federated: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """`resumed(conf_of, phase, calls=1)`: the directories of a run and of its twin, which died in round 2 at the
    `calls`-th answer of `phase` and went on by `resume`. `conf_of(*overrides)` gives complete settings."""
    from florilegium.protocol import codec

    def run(conf_of: Callable[..., Settings], phase: str, calls: int = 1) -> tuple[Path, Path]:
        whole, part = (conf_of(f"out={tmp_path / name}") for name in ("whole", "part"))
        left = calls

        def killed(question: Message, reply: Message) -> Message:
            nonlocal left
            left -= codec.header(question.content).round == 2 and question.metadata.message_type == phase
            if not left:
                raise KeyboardInterrupt
            return reply

        federated(whole)
        with pytest.raises(KeyboardInterrupt):
            federated(part, killed)
        assert [x["round"] for x in read_lines(Path(part.out) / "rounds.jsonl")] == [0, 1]
        part.resume = True
        return Path(whole.out), federated(part)

    return run
