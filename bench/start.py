"""How soon a run in this process starts: CPU seconds until its first round, against those of its imports alone.

    python bench/start.py                    # three pairs, one after the other
    python bench/start.py --pairs 5

Each measurement is a process of its own. "imports" imports the command, the two apps and what torch, diffusers and the
datasets load on their way. "start" does the same and goes on: it composes and checks the settings, opens the run
directory, and ends when the ServerApp asks the grid who is there. CPU seconds leave out what other processes do; the
result is the ratio of the medians.
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

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = """
import time
from florilegium.runtime import from_python, inprocess
inprocess.load_app("serverapp"), inprocess.load_app("clientapp")
"""
START = """
class Started(BaseException): pass

def started(grid):
    raise Started

inprocess.InProcessGrid.get_node_ids = started
try:
    from_python.run("references=none", out={out!r})
except Started:
    pass
"""
REPORT = """
import json, sys
print(json.dumps({"cpu": time.process_time(), "modules": len(sys.modules)}))
"""


def measured(code: str) -> dict[str, float]:
    """CPU seconds, and modules loaded, of a new Python that runs `code`."""
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
        for n in range(args.pairs):
            imports.append(measured(IMPORTS))
            starts.append(measured(IMPORTS + START.format(out=str(Path(folder, f"run-{n}")))))
    alone, begun = (statistics.median(found["cpu"] for found in kind) for kind in (imports, starts))
    print(f"imports {alone:.2f} CPU s, {imports[0]['modules']} modules")
    print(f"until the first message {begun:.2f} CPU s, {starts[0]['modules']} modules")
    print(f"ratio {begun / alone:.2f}")


if __name__ == "__main__":
    main()
