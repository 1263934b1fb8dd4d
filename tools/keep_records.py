"""Keep what a run's tables need, so that the tables of the docs can be made again without the run.

    python tools/keep_records.py docs/records/lexicon runs/lexicon/*

Of each run two files stay: the settings, without paths of this machine, and the figures of the evaluated rounds without
those of single clients. `florilegium compare docs/records/lexicon` reads them like any runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml

from florilegium.runs.reader import Recorded, evaluated, recorded
from florilegium.runs.writer import plain

PATHS = ("out", "assets")
MEMORY = "run_id"  # names the clients' memory, and nothing that a table needs


def kept_settings(settings: dict) -> dict:
    """The settings without absolute paths and without the name of the clients' memory."""
    kept = {key: None if key in PATHS else value for key, value in settings.items() if key != MEMORY}
    return {key: without_paths(value) for key, value in kept.items()}


def without_paths(value):
    """`value`, each absolute path in it replaced by null."""
    if isinstance(value, dict):
        return {key: without_paths(held) for key, held in value.items()}
    if isinstance(value, list):
        return [without_paths(held) for held in value]
    return None if isinstance(value, str) and Path(value).is_absolute() else value


def rounded(metrics: dict) -> dict:
    """The metrics but those of single clients, with six digits, which is more than any table shows."""
    kept = {key: value for key, value in metrics.items() if not key.rpartition("/")[2].isdigit()}
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in kept.items()}


def keep(run: Recorded, folder: Path) -> None:
    """Write the two files of a run to `folder`. ValueError for a run that is not finished."""
    if run.unfinished:
        raise ValueError(f"{run.path}: the run is not finished")
    write(folder, run.settings, [record for record in run.rounds if evaluated(record)])


def write(folder: Path, settings: dict, records: list[dict]) -> None:
    """The two files of a kept run."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(kept_settings(settings), sort_keys=False, allow_unicode=True)
    (folder / "settings.yaml").write_text(text, encoding="utf-8")
    lines = [json.dumps(plain(record | {"metrics": rounded(record["metrics"])})) for record in records]
    (folder / "rounds.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the records stay, for example docs/records/lexicon")
    parser.add_argument("runs", nargs="+", type=Path)
    args = parser.parse_args()
    for path in args.runs:
        keep(recorded(path), args.folder / path.name)


if __name__ == "__main__":
    main()
