"""Where the embedded data and models lie, whatever the working directory.

Flower installs the bundle of .py and .yaml files elsewhere and without binaries, so code that runs from the bundle
finds the assets through FLORILEGIUM_ASSETS (set by the launcher) or through the installed package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

VARIABLE = "FLORILEGIUM_ASSETS"
HERE = Path(__file__).resolve().parent


class AssetError(FileNotFoundError):
    """An asset is not there; the one-line message says which and how to get it."""


def root() -> Path:
    """The asset directory: FLORILEGIUM_ASSETS, else the checkout, else the installed package. AssetError if none."""
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_dir():
            raise AssetError(f"{VARIABLE} names {named}, which is not a directory")
        return Path(named).resolve()
    for place in (HERE.parent / "assets", HERE / "assets", *_installed()):
        if place.is_dir():
            return place
    raise AssetError(f"no assets found: set {VARIABLE} to the assets directory of a florilegium checkout")


def _installed() -> Iterator[Path]:
    """The assets of an editable install (a checkout) or of a wheel, seen from the bundle."""
    try:
        package = metadata.distribution("florilegium")
    except metadata.PackageNotFoundError:
        return
    origin = json.loads(package.read_text("direct_url.json") or "{}").get("url", "")
    if origin.startswith("file:"):
        yield Path(unquote(urlparse(origin).path)) / "assets"
    yield Path(str(package.locate_file("florilegium/assets")))


def path(kind: str, name: str) -> Path:
    """`path("data", "emoji")`: the asset's directory or file. AssetError names what is missing."""
    found = root() / kind / name
    if not found.exists():
        there = sorted(entry.name for entry in (root() / kind).glob("*"))
        raise AssetError(
            f"no asset {kind}/{name} in {root()}; there are {', '.join(there) or 'none'} (`make assets` rebuilds them)"
        )
    return found


def located(name: str, bare: bool = False) -> str:
    """Where a model lies: an asset by its name, a directory by its path, else the hub id itself (one without an owner,
    such as bert-base-uncased, if `bare`). AssetError."""
    if (place := Path(name).expanduser()).is_absolute() or name.startswith("."):
        if not place.is_dir():
            raise AssetError(f"no model directory {place}")
        return str(place)
    try:
        return str(path("models", name))
    except AssetError:
        if place.is_dir():
            return str(place.resolve())
        owners = (0, 1) if bare else (1,)
        if name.count("/") in owners and not name.startswith(("judges/", "backbones/")):
            return name
        raise
