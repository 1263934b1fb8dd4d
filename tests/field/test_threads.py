"""Threads that wait do not spin, whichever way a process is started."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from florilegium.runtime import local, superlink

ROOT = Path(__file__).resolve().parents[2]
# ends when torch is to be loaded, and says what OpenMP would then find
UNTIL_TORCH = """
import importlib, os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Finder())
importlib.import_module(sys.argv[1])
"""


def policy(module, **environment):
    """OMP_WAIT_POLICY when a new process that imports `module` comes to load torch."""
    inherited = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", UNTIL_TORCH, module],
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module",
    [
        "server_app.app",  # flwr run, and every runtime but inprocess
        "client_app.app",  # Ray's actors, SuperNodes that Flower started itself
        "florilegium.runtime.launch",  # florilegium run, runtime=inprocess
        "florilegium.runtime.from_python",  # florilegium.run
    ],
)
def test_it_is_said_before_torch_is_loaded(module):
    assert policy(module) == "PASSIVE"


def test_what_the_user_says_wins():
    assert policy("client_app.app", OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"


def test_superlink_actors_and_supernodes_inherit_it(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert superlink.quiet_environment({})["OMP_WAIT_POLICY"] == "PASSIVE"
    federation = local.LocalFederation(2, Path("state"), "assets")
    shutil.rmtree(federation.home)
    assert federation.environment["OMP_WAIT_POLICY"] == federation.warm.environment["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert superlink.quiet_environment({})["OMP_WAIT_POLICY"] == "ACTIVE"
