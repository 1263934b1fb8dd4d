"""How soon a run in this process starts: CPU seconds until its first message, against those of its imports alone.

    python bench/start.py                    # three pairs, one after the other
    python bench/start.py --pairs 5

Each measurement is a process of its own. "start" calls `florilegium.run`: it composes and checks the settings, opens
the run directory and the data, and ends when the ServerApp asks the grid who is there. "imports" imports the modules
that the first start had loaded, in the same order, and does nothing else. CPU seconds leave out what other processes
do; the result is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START = """
import florilegium
from florilegium.runtime import inprocess

class Started(BaseException): pass

def started(grid):
    raise Started

inprocess.InProcessGrid.get_node_ids = started
try:
    florilegium.run("references=none", out={out!r})
except Started:
    pass
"""
IMPORTS = """
import contextlib, importlib, json
for name in json.load(open({names!r})):
    with contextlib.suppress(Exception):  # a module that only exists inside another
        importlib.import_module(name)
"""
REPORT = """
import json, sys, time
print(json.dumps({"cpu": time.process_time(), "modules": [name for name in sys.modules if name != "__main__"]}))
"""


def measured(code: str) -> dict[str, Any]:
    """CPU seconds, and names of the modules loaded, of a new Python that runs `code`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"bench/start.py: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each kind, taken in turn")
    args = parser.parse_args()
    imports, starts = [], []
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder, "modules.json")
        for n in range(args.pairs):
            starts.append(measured(START.format(out=str(Path(folder, f"run-{n}")))))
            names.write_text(json.dumps(starts[0]["modules"]))
            imports.append(measured(IMPORTS.format(names=str(names))))
    alone, begun = (statistics.median(found["cpu"] for found in kind) for kind in (imports, starts))
    print(f"imports alone {alone:.2f} CPU s, {len(imports[0]['modules'])} modules")
    print(f"until the first message {begun:.2f} CPU s, {len(starts[0]['modules'])} modules")
    print(f"ratio {begun / alone:.2f}")


if __name__ == "__main__":
    main()
