"""docs/tour.ipynb runs from its first cell to its last, and what is stored of it is small and names no machine."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from tools import tour
from tools.tour import ROOT, TOUR


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook: nbformat.NotebookNode) -> list[set[str]]:
    """What each code cell gives: "stream", "text/html", "image/png" ..."""
    found = []
    for cell in code_cells(notebook):
        kinds = {output.output_type for output in cell.outputs}
        found.append(kinds | {kind for output in cell.outputs for kind in output.get("data", {})})
    return found


def runs(notebook: nbformat.NotebookNode) -> list[str]:
    """The first line that each run printed: the method, the data, how many clients and rounds."""
    printed = "".join(output.text for cell in code_cells(notebook) for output in cell.outputs if "text" in output)
    return re.findall(r"^\w+ on \w+: .*$", printed, re.MULTILINE)


@pytest.fixture(scope="module")
def stored() -> nbformat.NotebookNode:
    return nbformat.read(TOUR, as_version=4)


@pytest.mark.long
def test_the_notebook_runs(stored: nbformat.NotebookNode, tmp_path: Path) -> None:
    notebook = tour.execute(nbformat.from_dict(stored), tmp_path)
    assert kinds(notebook) == kinds(stored)  # the stored outputs are those of this code
    assert runs(notebook) == runs(stored) and len(runs(stored)) == 2


def test_what_is_stored_is_whole_and_small(stored: nbformat.NotebookNode) -> None:
    nbformat.validate(stored)
    assert TOUR.stat().st_size < 1_000_000
    assert [cell.execution_count for cell in code_cells(stored)] == list(range(1, len(code_cells(stored)) + 1))
    assert not [output for cell in code_cells(stored) for output in cell.outputs if output.output_type == "error"]
    assert not [o for cell in code_cells(stored) for o in cell.outputs if o.get("name") == "stderr"]
    shown = [kinds for kinds in kinds(stored) if "image/png" in kinds]
    assert len(shown) == 3  # the data, the curves, before and after


def test_it_names_no_machine() -> None:
    assert not re.search(r"[\"'\s>(](/(home|root|work|tmp|Users)/|[A-Z]:\\\\)", TOUR.read_text())


def test_readme_shows_lines_that_run() -> None:
    """The Python of README is the notebook's: same calls, same settings that are there."""
    section = (ROOT / "README.md").read_text().split("## In Python")[1].split("\n## ")[0]
    (text,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(text.splitlines()) == 10
    compile(text, "README.md", "exec")
