"""Every `florilegium run` that the documentation prints composes and passes the checks of a run."""

import re
import shlex
from pathlib import Path

import pytest

from florilegium import preflight
from florilegium.config import composition, overrides
from florilegium.config.composition import SettingsError

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def printed() -> list[str]:
    """The overrides of each printed run, once each; a line may go on behind a backslash."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^\s*(?:\$ )?florilegium run ([^\n#`]*=[^\n#`]*)", text, re.MULTILINE):
            found.setdefault(line.strip(), page.name)
    return list(found)


def plain(line: str) -> bool:
    """Whether a line is a whole command for one run, without placeholders and sweeps, of a method that is here."""
    if "silobn" in line:
        return False
    return not re.search(r"\.\.\.|\bDIR\b|\bX\b|<|\$|;|&|\||^-|\s-m|resume=|hydra", line)


@pytest.mark.parametrize("line", [line for line in printed() if plain(line)])
def test_a_printed_run_composes_and_passes_the_checks(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    conf = composition.complete(composition.compose(overrides.readable(shlex.split(line), False)))
    if conf.data.own:
        return  # the data are the reader's own; tests/test_own_runs.py runs such settings
    try:
        preflight.validate(conf)
    except SettingsError as error:
        assert "opacus" in str(error)  # an extra that need not be installed
