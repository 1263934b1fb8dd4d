"""A hook of mkdocs: pages that are not files of docs/, and links that leave docs/.

README, CONTRIBUTING, CHANGELOG and SECURITY become pages, so do the data and model cards beside the assets, and each
package gets an API page with the docstrings of its modules. A link to another file of the repository that is no page
becomes plain text. A link to nothing is an error, because the build is strict (`mkdocs build --strict`).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("florilegium", "strategies", "client_app", "server_app")
PROJECT = {  # file of the repository -> page of the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
REPLACED = "README.md"  # docs/README.md lists the guides for readers of the repository; the site has its navigation
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
FENCE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)


def cards() -> dict[str, str]:
    """The data and model cards: file of the repository -> page of the site."""
    found = sorted((ROOT / "assets").rglob("README.md"))
    paths = [path.relative_to(ROOT).as_posix() for path in found]
    return {path: f"cards/{posixpath.dirname(path).removeprefix('assets/').replace('/', '-')}.md" for path in paths}


def packages() -> Iterator[tuple[str, list[str]]]:
    """Each package with its modules, as dotted names."""
    for room in ROOMS:
        for marker in sorted((ROOT / room).rglob("__init__.py")):
            folder = marker.parent
            modules = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
            name = ".".join(folder.relative_to(ROOT).parts)
            yield name, [f"{name}.{module}" for module in modules]


def api_page(package: str, modules: list[str]) -> str:
    own = f"::: {package}\n    options:\n      heading_level: 1\n      members: false\n      show_source: false\n"
    return own + "".join(f"\n::: {module}\n" for module in modules)


def published() -> dict[str, str]:
    """File of the repository -> page of the site, for the pages that do not lie in docs/."""
    return PROJECT | cards()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    api = [{package: f"api/{package}.md"} for package, _ in packages()]
    config.nav = [*(config.nav or []), {"Data and model cards": sorted(cards().values())}, {"API": api}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    replaced = files.get_file_from_path(REPLACED)
    if replaced is not None:
        files.remove(replaced)
    for source, page in published().items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for package, modules in packages():
        files.append(File.generated(config, f"api/{package}.md", content=api_page(package, modules)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    source = {page: source for source, page in published().items()}.get(here, f"docs/{here}")
    pieces = FENCE.split(markdown)  # code at odd places: it holds no links
    return "".join(
        piece if i % 2 else LINK.sub(lambda link: relinked(link, source, here, files), piece)
        for i, piece in enumerate(pieces)
    )


def relinked(link: re.Match[str], source: str, here: str, files: Files) -> str:
    """The link as the page `here`, made from the file `source`, needs it."""
    target, _, anchor = link["target"].partition("#")
    if not target or "://" in target or target.startswith("mailto:"):
        return link[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (ROOT / path).exists():
        return link[0]  # mkdocs reports it
    uri = next((uri for uri in uris(path) if files.get_file_from_path(uri)), None)
    if uri is None:
        return link["text"]
    found = posixpath.relpath(uri, posixpath.dirname(here) or ".") + (f"#{anchor}" if anchor else "")
    return f"{link['image']}[{link['text']}]({found})"


def uris(path: str) -> Iterator[str]:
    """Where the site may have the file or folder `path` of the repository."""
    if path in published():
        yield published()[path]
    if path.startswith("docs/"):
        yield path.removeprefix("docs/")
        yield posixpath.join(path.removeprefix("docs/"), "README.md")
    if path.endswith(".py"):
        yield f"api/{posixpath.dirname(path).replace('/', '.')}.md"
