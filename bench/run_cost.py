"""What one run costs: seconds to start and a round, peak memory of all its processes, bytes a client and round.

python bench/run_cost.py data=emoji rounds=2        # any overrides; the run is thrown away
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil

from florilegium.runs.reader import read_lines

LOOK_SECONDS = 1.0


def resident(process: psutil.Process) -> int:
    """Bytes that a process and everything below it hold; what detached itself is found by its session's parent."""
    total = 0
    for one in [process, *process.children(recursive=True), *detached()]:
        try:
            told = one.memory_full_info()
            total += getattr(told, "pss", told.rss)  # a page that several processes share counts once
        except (psutil.Error, OSError):
            continue
    return total


def detached() -> list[psutil.Process]:
    """Flower's and Ray's processes of this run: they carry our variable, but hang below init."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLORILEGIUM_BENCH") == str(os.getpid()) and process.ppid() == 1:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def measure(overrides: list[str], out: Path) -> dict[str, float]:
    """Run `florilegium run` once and say what it took. SystemExit with its code when it fails."""
    environment = {**os.environ, "FLORILEGIUM_BENCH": str(os.getpid())}
    begun, first, peak = time.monotonic(), None, 0
    command = [sys.executable, "-m", "florilegium.cli.main", "run", *overrides, f"out={out}"]
    process = psutil.Popen(command, env=environment)
    while process.poll() is None:
        time.sleep(LOOK_SECONDS)
        peak = max(peak, resident(process))
        if first is None and (out / "progress.jsonl").exists():
            first = time.monotonic() - begun
    if process.returncode:
        sys.exit(process.returncode)
    rounds = [record["seconds"] for record in read_lines(out / "rounds.jsonl") if record["round"] > 0]
    moved: dict[str, list[int]] = defaultdict(list)
    for entry in read_lines(out / "ledger.jsonl"):
        for way in ("down", "up"):
            moved[way].append(entry[way])
    whole = time.monotonic() - begun
    return {
        "seconds": whole,
        "seconds to first phase": first or whole,
        "seconds a round": sum(rounds) / max(len(rounds), 1),
        "peak MiB": peak / 2**20,
        **{f"{way} MiB in all": sum(sizes) / 2**20 for way, sizes in moved.items()},
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="florilegium-bench-") as scratch:
        figures = measure(sys.argv[1:] or ["rounds=1", "references=none"], Path(scratch, "run"))
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}, indent=1))
    print(
        subprocess.run(["uname", "-sm"], capture_output=True, text=True, check=False).stdout.strip(),
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    )
