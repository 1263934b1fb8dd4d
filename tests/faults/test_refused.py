"""Nodes that do not belong: without a key, with one nobody registered, with another authority's certificate."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from florilegium.runs.reader import read_lines
from florilegium.runtime import commands, keys, superlink
from tests.faults.conftest import LIMIT, Deployment, ended

pytestmark = pytest.mark.faults


def ours(federation: Deployment, site: Path, name: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "florilegium.cli.main",
        "deploy",
        "supernode",
        "--keys",
        str(site),
        "--superlink",
        federation.fleet,
        "--client",
        "0",
        "--clients",
        "1",
        "--state",
        str(federation.folder / name / "state"),
        "--home",
        str(federation.folder / name / "flower"),
    ]


def flowers(federation: Deployment, authority: Path) -> list[str]:
    grpc = ["--grpc-rere"] if commands.fleet_is_grpc() else []
    return [
        superlink.program("flower-supernode"),
        *grpc,
        "--superlink",
        federation.fleet,
        "--root-certificates",
        str(authority),
        "--host",
        "127.0.0.1",
        "--port",
        str(superlink.free_port()),
        "--node-config",
        "partition-id=0 num-partitions=1",
    ]


def test_three_nodes_that_do_not_belong_are_refused_while_a_run_goes_on(
    deployment: Callable[[int], Deployment],
    tmp_path: Path,
) -> None:
    federation = deployment(1)
    own, foreign = federation.keys, tmp_path / "foreign"
    keys.make(own, ["stranger"])  # the right authority, but nobody registered this key
    keys.make(foreign, ["stranger"])  # an authority of its own
    stranger = own / "sites" / "stranger"
    impostor = tmp_path / "impostor"  # a key nobody registered, and another authority's certificate
    impostor.mkdir()
    (impostor / "node.key").write_bytes((foreign / "sites" / "stranger" / "node.key").read_bytes())
    (impostor / "ca.crt").write_bytes((foreign / "authority" / "ca.crt").read_bytes())

    run = federation.launch("method=standalone", "rounds=0", "timeouts.quorum=1")
    intruders = {
        "unregistered": (ours(federation, stranger, "unregistered"), "does not take this node"),
        "foreign": (ours(federation, impostor, "foreign"), "is refused: "),
        "keyless": (flowers(federation, federation.authority), "2001"),
        "foreign keyless": (flowers(federation, impostor / "ca.crt"), "CERTIFICATE_VERIFY_FAILED"),
    }
    started = {}
    for name, (command, _) in intruders.items():
        environment = {**federation.environment, "FLWR_HOME": str(tmp_path / name / "flower")}
        # files, not pipes: a refused node's SuperExec lives until the node is waited for, and would hold a pipe open
        with open(tmp_path / f"{name}.out", "wb") as out, open(tmp_path / f"{name}.err", "wb") as err:
            started[name] = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
    for name, (command, sign) in intruders.items():
        assert started[name].wait(timeout=LIMIT) != 0, name
        out, err = ((tmp_path / f"{name}.{stream}").read_text() for stream in ("out", "err"))
        assert sign in out + err, (name, out + err)
        if "florilegium.cli.main" in command:
            told = [line for line in err.splitlines() if line.startswith("florilegium: ")]
            assert len(told) == 1 and sign in told[0] and "Traceback" not in err, (name, err)
        assert not (tmp_path / name / "flower" / "apps").exists(), f"{name} was given the app"
        assert not list((tmp_path / name).rglob("*.safetensors")), f"{name} was given something of the run"
    assert superlink.Flower("local", federation.environment).online() == 1
    ended(run)
    trained = [e for e in read_lines(tmp_path / "run" / "ledger.jsonl") if e["phase"] == "train"]
    assert {e["client"] for e in trained} == {0} and not any(e["fault"] for e in trained)
