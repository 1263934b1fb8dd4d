"""A run in a process of its own that is killed by SIGKILL at its n-th change of the run directory.

What a kill can harm is what is on the disk, so moments are counted in changes of files: before one is opened for
writing, before it is flushed to the disk, before it is renamed, before an old one is removed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

from florilegium.config.settings import settings_of

CHECKPOINT = re.compile(r"checkpoints/(?P<arm>\w+)/round-(?P<round>\d+)\.safetensors$")
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}
UNCOUNTED = "progress.jsonl"  # grows by the clock


class Changes:
    """Counts the changes below `out`; at number `last` the process dies. `rounds`: (arm, round, changes before it)."""

    def __init__(self, out: Path, last: int | None) -> None:
        self.out, self.last, self.count = str(out), last, 0
        self.rounds: list[tuple[str, int, int]] = []
        self.fsync = os.fsync
        os.fsync = self._flush
        sys.addaudithook(self._heard)

    def _flush(self, file: Any) -> None:
        self._one()
        self.fsync(file)

    def _heard(self, event: str, given: tuple) -> None:
        path = str(given[1] if event == "os.rename" else given[0]) if given else ""
        if not path.startswith(self.out) or path.endswith(UNCOUNTED):
            return
        if event in CHANGES or (event == "open" and set(str(given[1] or "")) & set("wax+")):
            self._one()
            if event == "os.rename" and (found := CHECKPOINT.search(path)):
                self.rounds.append((found["arm"], int(found["round"]), self.count))

    def _one(self) -> None:
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def serve(settings_text: str, last: int | None, told: str) -> None:
    """Run the apps to their end, or to the kill; then say in the file `told` how many changes there were."""
    from client_app.app import app as client_app
    from server_app.app import app as server_app
    from tests.local_grid import run_apps

    conf = settings_of(json.loads(settings_text))
    changes = Changes(Path(conf.out), last)
    run_apps(server_app, client_app, len(conf.clients.mix), {"settings": settings_text, "overrides": ""})
    Path(told).write_text(json.dumps({"count": changes.count, "rounds": changes.rounds}))
