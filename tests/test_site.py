"""The documentation as a site: it builds without a warning, shows every module, and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long  # building the site takes a minute
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_guides_and_project_pages_are_there(site):
    guides = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    guides = {path.parent / "index.html" if path.stem == "README" else path for path in guides}
    assert [str(path) for path in sorted(guides) if not (site / path).is_file()] == []
    assert all((site / f"{page}.html").is_file() for page in ("contributing", "changelog", "security"))


@pytest.mark.parametrize("room", ["florilegium", "strategies", "client_app", "server_app"])
def test_every_module_has_its_api_entry(site, room):
    missing = []
    for path in (ROOT / room).rglob("*.py"):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        name = package if path.stem == "__init__" else f"{package}.{path.stem}"
        if f'id="{name}"' not in (site / f"api/{package}.html").read_text():
            missing.append(name)
    assert missing == []


def test_the_round_of_a_method_is_shown(site):
    page = (site / "api/strategies.html").read_text()
    assert 'id="strategies.fedafd.FedAFD.round"' in page


def test_pages_load_nothing_from_elsewhere(site):
    loads = re.compile(
        r'<(?:script|img|iframe)[^>]*\ssrc="?https?:|<link[^>]*rel="?(?:stylesheet|icon|preconnect)[^>]*https?:'
    )
    assert [str(page) for page in site.rglob("*.html") if loads.search(page.read_text())] == []
