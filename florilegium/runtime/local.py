"""A whole deployment on this machine, over loopback: what `runtime=local` and `florilegium deploy local` run on.

SuperLink, server app and a SuperNode for each client are the same processes, started by the same commands, as in
docker/compose.yaml: TLS, a key for each node, a database, a Flower home and a state directory each. Whatever way it
ends, all of them are ended by process id; an ended process is started again, as a container would be.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from florilegium.assets import VARIABLE
from florilegium.runtime import commands, keys, processes, superlink
from florilegium.runtime.superlink import MARK, POLL, Flower, LaunchError
from florilegium.runtime.warm import COMMAND, LIBRARIES, Warm

NAME = "local"  # of the connection in the federation's config.toml
UP_SECONDS, UP_SECONDS_EACH = 180.0, 15.0  # for all nodes to be online: each imports Flower, on a busy machine
RESTART_SECONDS = 2.0
POLL_SECONDS_EACH = 0.02


class LocalFederation:
    """`with LocalFederation(sites, state, assets) as flower:` a SuperLink and a SuperNode for each of `sites` clients.

    `home` holds keys, logs and databases and is removed at the end; `state` holds what clients remember and is kept.
    `libraries` of a client stay imported between messages, once for all sites (warm.py); None: nowhere. `extra` is
    added to the environment of all processes.
    """

    def __init__(
        self,
        sites: int,
        state: Path,
        assets: str,
        libraries: Sequence[str] | None = LIBRARIES,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self.sites = [f"site-{k}" for k in range(sites)]
        self.state, self.mark = state, uuid.uuid4().hex
        self.home = superlink.short_directory()
        self.keys = self.home / "keys"
        self.control, self.fleet = (f"127.0.0.1:{superlink.free_port()}" for _ in range(2))
        if not commands.fleet_is_grpc():
            self.fleet = self.control
        self.environment = superlink.quiet_environment(
            {
                "FLWR_HOME": str(self.home),
                MARK: self.mark,
                VARIABLE: assets,
                "PYTHONPATH": _with_this_package(),
                POLL: f"{max(0.1, POLL_SECONDS_EACH * sites):.2f}",  # many that ask often leave no time to work
                **(extra or {}),
            }
        )
        self.processes: dict[str, subprocess.Popen] = {}
        self.warm = (
            None
            if libraries is None
            else Warm(self.home, self.environment, superlink.program(COMMAND), libraries=libraries)
        )
        self.guard: subprocess.Popen | None = None

    def __enter__(self) -> Flower:
        self.guard = superlink.start_guard(self.mark, self.home)
        try:
            if self.warm:
                self.warm.__enter__()
            keys.make(self.keys, self.sites)
            (self.home / "config.toml").write_text(commands.connection(NAME, self.control, self.authority))
            self.start(
                "superlink",
                "superlink",
                "--keys",
                str(self.keys / "server"),
                "--control",
                self.control,
                "--fleet",
                self.fleet,
                "--database",
                str(self.home / "superlink.db"),
            )
            self.wait_until_healthy()
            flower = Flower(NAME, self.environment, owned=True)
            self.start("serverapp", "serverapp", "--keys", str(self.keys / "server"), "--superlink", self.control)
            for k, site in enumerate(self.sites):
                flower.register(self.keys / "sites" / site / "node.pub", site)
                self.start_node(site, k)
            self._wait_until_online(flower)
            return flower
        except BaseException:
            self.__exit__()
            raise

    @property
    def authority(self) -> Path:
        return self.keys / "server" / "ca.crt"

    def start(self, name: str, *arguments: str) -> None:
        """Start `florilegium deploy ...` as a process of this federation, logging to <name>.log in its home."""
        command = [
            sys.executable,
            "-m",
            "florilegium.cli.main",
            "deploy",
            *arguments,
            "--home",
            str(self.home / name),
            "--restart",
            str(RESTART_SECONDS),
        ]
        with open(self.home / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.home,  # nothing is imported from the folder that the user happens to work in
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_node(self, site: str, client: int) -> None:
        """The SuperNode of one client, with its own key and its own state."""
        state = (self.state / site).resolve()
        state.mkdir(parents=True, exist_ok=True)
        self.start(
            site,
            "supernode",
            "--keys",
            str(self.keys / "sites" / site),
            "--superlink",
            self.fleet,
            "--client",
            str(client),
            "--clients",
            str(len(self.sites)),
            "--state",
            str(state),
            *self.warmth(),
        )

    def warmth(self) -> list[str]:
        """Whose warm process a SuperNode uses."""
        return ["--warm", str(self.warm.place)] if self.warm else ["--cold"]

    def said(self, name: str) -> str:
        """The last line of a process's log that is for the user, else its last line."""
        lines = (self.home / f"{name}.log").read_text(errors="replace").strip().splitlines() or ["no output"]
        return next((line for line in reversed(lines) if line.startswith("florilegium: ")), lines[-1])

    def wait_until_healthy(self) -> None:
        """LaunchError when the SuperLink does not answer in time."""
        deadline = time.monotonic() + superlink.START_SECONDS
        while time.monotonic() < deadline and self.processes["superlink"].poll() is None:
            if processes.healthy(self.control, self.authority):
                return
            time.sleep(0.2)
        raise LaunchError(f"the SuperLink did not start: {self.said('superlink')}")

    def _wait_until_online(self, flower: Flower) -> None:
        limit = UP_SECONDS + UP_SECONDS_EACH * len(self.sites)
        deadline = time.monotonic() + limit
        while (online := flower.online()) < len(self.sites):
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise LaunchError(f"{name} ended: {self.said(name)}")
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"{online} of {len(self.sites)} SuperNodes are online after {limit:.0f} s; "
                    f"{self.sites[-1]} says: {self.said(self.sites[-1])}"
                )
            time.sleep(0.5)

    def __exit__(self, *_: object) -> None:
        warm = self.warm.process if self.warm else None
        superlink.end_all(self.mark, self.home, [*self.processes.values(), warm, self.guard])


def _with_this_package() -> str:
    """The module search path with this package's parent first: a checkout need not be installed."""
    place = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([place, *filter(None, [os.environ.get("PYTHONPATH")])])


def linger(flower: Flower) -> None:
    """Say how the federation can be used and wait for Ctrl-C."""
    home = flower.environment["FLWR_HOME"]
    print(
        f"""the federation stays up until Ctrl-C (logs: {home}/*.log); from another terminal:
  export FLWR_HOME={home}
  florilegium run runtime=deployment runtime.superlink={flower.superlink} out=DIR
  flwr run . {flower.superlink} --run-config 'overrides="runtime=deployment runtime.superlink={flower.superlink} """
        """out=/absolute/DIR"'""",
        flush=True,
    )
    while True:
        time.sleep(3600)


def of_run(conf: Any, extra: Mapping[str, str]) -> LocalFederation:
    """The federation of a run's settings; `extra` is added to the environment of its processes."""
    libraries = LIBRARIES if conf.runtime.warm else None
    return LocalFederation(len(conf.clients.mix), Path(conf.out, "state"), str(conf.assets), libraries, extra)
