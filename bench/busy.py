"""How much longer a run takes beside busy processes than alone: one run of each kind, one after the other.

    python bench/busy.py                                     # as `make demo`, beside one busy process a core
    python bench/busy.py --busy 2 method=fedavg data=fashion clients=ten references=none rounds=2

Run it on a machine that does nothing else. With as many busy processes as cores, a run that loses nothing but its
share of the cores takes twice as long. More than 2.5 times means that threads spin while they wait.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST = 2.5
BUSY = "while True: pass"


@contextlib.contextmanager
def beside(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute; they end with the block."""
    those = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in those:
            process.kill()
            process.wait()


def seconds(overrides: list[str]) -> float:
    """How long `florilegium run` takes. SystemExit with its last words when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "florilegium.cli.main", "run", *overrides, f"out={Path(folder, 'run')}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        begun = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"bench/busy.py: {(done.stderr.strip().splitlines() or ['the run failed'])[-1]}")
        return time.monotonic() - begun


def main() -> None:
    """Print both times and their ratio as JSON; exit code 1 when the ratio is above the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="busy processes (default: one a core)")
    parser.add_argument("overrides", nargs="*", help="of the run", default=["references=controls"])
    args = parser.parse_args()
    load = os.getloadavg()[0]
    alone = seconds(args.overrides)
    with beside(args.busy):
        busy = seconds(args.overrides)
    ratio = busy / alone
    found = {"alone": alone, "busy": busy, "ratio": ratio, "processes": args.busy, "load_before": load}
    print(json.dumps({key: round(value, 2) for key, value in found.items()}))
    sys.exit(ratio > MOST)


if __name__ == "__main__":
    main()
