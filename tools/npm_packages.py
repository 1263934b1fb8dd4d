"""npm packages by name: unpack what is missing into the cache, and read icon sets and their licences."""

import json
import subprocess
from pathlib import Path

# style -> npm package; the first four are public (pre-training), the last four are the clients' domain
STYLES = {
    "noto": "@iconify-json/noto",
    "noto-v1": "@iconify-json/noto-v1",
    "fluent": "@iconify-json/fluent-emoji",
    "fxemoji": "@iconify-json/fxemoji",
    "twemoji": "@iconify-json/twemoji",
    "openmoji": "@iconify-json/openmoji",
    "fluent-flat": "@iconify-json/fluent-emoji-flat",
    "emojione": "@iconify-json/emojione",
}
PUBLIC_STYLES = ("noto", "noto-v1", "fluent", "fxemoji")
TEXTS = "emojibase-data"
# further styles of the lexicon's pictures; game-icons are no emoji, their names are the concepts
MORE_STYLES = {
    "emojione-v1": "@iconify-json/emojione-v1",
    "streamline": "@iconify-json/streamline-emojis",
    "high-contrast": "@iconify-json/fluent-emoji-high-contrast",
}
ICONS = "@iconify-json/game-icons"


def unpack(cache: Path, packages: tuple[str, ...] = (*STYLES.values(), TEXTS)) -> Path:
    """Returns the node_modules folder; runs the npm client only for packages not there yet."""
    modules = cache / "npm" / "node_modules"
    missing = [name for name in packages if not (modules / name / "package.json").exists()]
    if missing:
        modules.parent.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--prefix", str(modules.parent), "--no-audit", "--no-fund", "--ignore-scripts"]
        # emojibase-data names a peer that brings only code; the JSON files are all we read
        subprocess.run([*command, "--legacy-peer-deps", *missing], check=True)
    return modules


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def version(package: Path) -> str:
    return read_json(package / "package.json")["version"]


def credit(package: Path) -> dict[str, str]:
    """Name, author, licence and source of an icon set, as its own info.json states them."""
    info = read_json(package / "info.json")
    return {
        "name": info["name"],
        "author": info["author"]["name"],
        "source": info["author"].get("url", ""),
        "licence": info["license"]["spdx"],
        "licence_url": info["license"].get("url", ""),
        "version": version(package),
    }
