"""The figures that have a bar, measured one after the other: `make bench`. Under 20 minutes on a quiet machine.

    python bench/all.py                       # the scripts of bench/board.py; then the table and the two pages
    python bench/all.py fusion.py scale.py    # these alone; the others keep what was measured before
    python bench/all.py peers/whole.py        # one that takes long (`asked` in bench/board.py) is run when it is named
    python bench/all.py --page                # nothing is measured, the table and the pages are written again

Run it on a machine that does nothing else. The cores that are busy before each script are kept with its figures; above
a quarter of a core the figures are called provisional, in the file and on the page.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import board, performance, scaling
from bench.board import Script

MOST_SECONDS = 1200  # of one script; one that takes longer is ended and said to have failed


def run(script: Script) -> dict[str, Any]:
    """Run one script and keep what it printed: the content of its file of results."""
    file = board.ROOT / "bench" / script.file
    load, begun = board.busy_cores(), time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(board.ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(file), *script.arguments]
    try:
        done = subprocess.run(
            command, cwd=board.ROOT, env=environment, capture_output=True, text=True, check=False, timeout=MOST_SECONDS
        )
        found = board.last_object(done.stdout)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {MOST_SECONDS} s"}
    except ValueError:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"failed": lines[-1][:200]}
    return {
        "script": script.file,
        "arguments": list(script.arguments),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.monotonic() - begun, 1),
        "load": round(load, 2),
        "provisional": script.timed and load > board.QUIET,
        "machine": board.machine(),
        "versions": board.versions(),
        "found": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help="of bench/board.py; default: the quick ones")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    given = parser.parse_args()
    known = {script.file: script for script in board.scripts()}
    if unknown := [name for name in given.scripts if name not in known]:
        raise SystemExit(f"bench/all.py: no script {unknown[0]!r} has a bar; there are {', '.join(known)}")
    board.RESULTS.mkdir(exist_ok=True)
    failed = False
    usual = [script.file for script in board.usual()]
    for name in () if given.page else (given.scripts or usual):
        print(f"{name} ...", end=" ", flush=True)
        result = run(known[name])
        if why := result.get("failed"):
            print(f"failed: {why}", flush=True)
            failed = True
            continue
        known[name].result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"{result['seconds']:.0f} s", flush=True)
    performance.write()
    scaling.write()  # its words quote a figure of scale.py
    print(performance.text_table())
    sys.exit(failed)


if __name__ == "__main__":
    main()
