"""Runs docs/tour.ipynb and stores its outputs: `make tour`. The tests run it by the same function."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
TOUR = ROOT / "docs" / "tour.ipynb"
CELL_SECONDS = 900  # the most that one cell may take, on a busy machine
# the code beside this file, whatever is installed; a kernel without ipywidgets warns of it, with a path of the machine
KERNEL = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """`notebook` with the outputs of a new kernel whose working directory is `folder`. CellExecutionError."""
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, record_timing=False, resources={"metadata": {"path": str(folder)}}
    )
    return client.execute(env=os.environ | KERNEL)


def main() -> None:
    notebook = nbformat.read(TOUR, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(execute(notebook, Path(folder)), TOUR)


if __name__ == "__main__":
    main()
