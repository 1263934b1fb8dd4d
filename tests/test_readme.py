"""README says what the code is: its excerpts are lines of the files, and what it points to is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
EXCERPTS = re.findall(r"```python\n# (\S+\.py): [^\n]*\n(.*?)```", TEXT, re.DOTALL)


def test_there_is_a_server_side_and_a_client_side():
    assert [file for file, _ in EXCERPTS] == ["strategies/fedavg.py", "client_app/methods/fedavg.py"]


@pytest.mark.parametrize("file, code", EXCERPTS, ids=[file for file, _ in EXCERPTS])
def test_excerpts_are_lines_of_the_files_in_their_order(file, code):
    ast.parse(code)
    there = iter([line.strip() for line in (ROOT / file).read_text().splitlines()])
    missing = [line for line in map(str.strip, code.splitlines()) if line and line not in there]
    assert missing == []


def test_links_lead_to_files():
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", TEXT)
    assert len(targets) > 20
    assert [t for t in targets if "://" not in t and not (ROOT / t).exists()] == []


@pytest.mark.parametrize("method", ["FedMMKT", "FedAFD", "CreamFL"])
def test_the_aggregation_of_a_method_is_where_readme_says(method):
    file, function = re.search(rf"\| {method} \| \[(\S+)\]\(\S+\) \| `{method}\.(\w+)`", TEXT).groups()
    classes = {c.name: c for c in ast.parse((ROOT / file).read_text()).body if isinstance(c, ast.ClassDef)}
    assert function in {f.name for f in classes[method].body if isinstance(f, ast.FunctionDef)}
