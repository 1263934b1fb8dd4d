"""Folders of own data: what lies in them, which files are pictures, and which class and split a picture is of."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from florilegium.data.own.findings import Finding, Unread, listed, quoted
from florilegium.data.own.names import SPLITS, alike, is_leftover, kind_of, split_of
from florilegium.data.own.tables import Row, Table

DEEPEST = 40  # folders within folders


@dataclass
class Tree:
    """The files below a folder by kind, each list in the order of the paths; `folders` are all that were entered."""

    place: Path
    files: dict[str, list[Path]] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def of(self, kind: str) -> list[Path]:
        """Files of one kind (names.kind_of)."""
        return self.files.get(kind, [])


# -- walking -----------------------------------------------------------------------------------------------------------


def walk(place: Path, known: Collection[str] = ()) -> Tree:
    """Everything below `place`, links to folders followed once. Folders named as a `known` class are never left out."""
    tree = Tree(place)
    seen: dict[tuple[int, int], Path] = {}
    _enter(place, tree, seen, known, 0)
    for those in tree.files.values():
        those.sort(key=str)
    return tree


def _enter(folder: Path, tree: Tree, seen: dict[tuple[int, int], Path], known: Collection[str], depth: int) -> None:
    try:
        found = folder.stat()
        inner = sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError as error:
        tree.findings.append(Finding("missing file", str(folder), f"cannot be opened: {error.strerror}"))
        return
    first = seen.setdefault((found.st_dev, found.st_ino), folder)
    if first != folder or depth > DEEPEST:
        why = f"is the same folder as {first}" if first != folder else f"lies in more than {DEEPEST} folders"
        tree.findings.append(Finding("other file", str(folder), f"{why}, and is left out", False))
        return
    tree.folders.append(folder)
    for entry in inner:
        path = folder / entry.name
        leftover = is_leftover(entry.name) and alike(entry.name, known) is None
        if leftover:
            _leave(path, entry, tree)
        elif entry.is_dir():
            _enter(path, tree, seen, known, depth + 1)
        elif entry.is_file():
            tree.files.setdefault(kind_of(path), []).append(path)
        elif entry.is_symlink():
            tree.findings.append(Finding("missing file", str(path), "is a link to nothing"))
        else:
            tree.findings.append(Finding("other file", str(path), "is no file and left out", False))


def _leave(path: Path, entry: os.DirEntry, tree: Tree) -> None:
    """A warning for what a system or another program left. Its small notes in every folder need none."""
    if entry.is_dir():
        what = "is a folder of a system or another program, and is left out"
    elif kind_of(path) in ("image", "table"):
        what = "is hidden and left out"
    else:
        return
    tree.findings.append(Finding("other file", str(path), what, False))


# -- splits ------------------------------------------------------------------------------------------------------------


def chosen_split(place: Path, there: Collection[str], wanted: str) -> tuple[str, list[Finding]]:
    """The split to read of those that are there, and the warning that names the others. Unread when there is none."""
    order = [split for split in SPLITS if split in there] + sorted(set(there) - set(SPLITS))
    if wanted not in order and len(order) > 1:
        raise Unread(Finding("no split", str(place), f"has no split {wanted}; it has {listed(order)}"))
    split = wanted if wanted in order else order[0]
    if split != wanted:
        return split, [Finding("split", str(place), f"has only the split {split}; it is read", False)]
    if others := [other for other in order if other != split]:
        what = f"is split: {split} is read, {' and '.join(others)} is left out"
        return split, [Finding("split", str(place), what, False)]
    return split, []


def by_split(items: Sequence[Any], split: Callable[[Any], str | None], place: Path, wanted: str) -> tuple[Any, ...]:
    """(split, items of it, warnings). Items without a split beside items with one are refused, by Unread; where no
    item has a split, all are taken and the split is None."""
    splits = [split(item) for item in items]
    there = {name for name in splits if name}
    if not there:
        return None, list(items), []
    if None in splits:
        first = items[splits.index(None)]
        other = items[next(n for n, name in enumerate(splits) if name)]
        what = f"lies in no split, but {quoted(_short(other, place))} does; put both into splits, or both outside"
        raise Unread(Finding("split", str(first), what))
    chosen, said = chosen_split(place, there, wanted)
    return chosen, [item for item, name in zip(items, splits, strict=True) if name == chosen], said


def _short(item: Any, place: Path) -> str:
    return str(item.relative_to(place)) if isinstance(item, Path) and item.is_relative_to(place) else str(item)


# -- class folders -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """A picture, its class ("" when it lies in no class folder) and its split (None where there are none)."""

    path: Path
    label: str
    split: str | None


def class_folders(tree: Tree, classes: Sequence[str], wanted: str) -> Table:
    """class/*.jpg: the class of a picture is the folder below the root, or below the root's splits. Unread."""
    place, pictures = tree.place, tree.of("image")
    placed, findings = _placed(place, pictures, classes)
    split, kept, said = by_split(placed, lambda picture: picture.split, place, wanted)
    findings = [*tree.findings, *findings, *said, *_others(tree), *_empty(tree)]
    texts = {(text.parent, text.stem): text for text in reversed(tree.of("text"))}
    beside = [texts.get((picture.path.parent, picture.path.stem)) for picture in kept]
    findings += _loose_texts(tree, {text for text in beside if text}, kept, beside)
    with_text = bool(beside) and all(beside)

    def read(columns: Sequence[str]) -> Iterator[Row]:
        for picture, text in zip(kept, beside, strict=True):
            cells: dict[str, Any] = {"image": str(picture.path.absolute()), "label": picture.label}
            if "text" in columns:
                cells["text"] = _beside(text, findings) if text else ""
            yield str(picture.path), cells

    columns = ("image", "label", "text") if with_text else ("image", "label")
    layout = "image folder with a text beside each image" if with_text else "image folder"
    return Table(layout, place, columns, read, findings=findings, split=split, by_folder=True)


def _beside(text: Path, findings: list[Finding]) -> str:
    """The text beside a picture, its lines joined."""
    try:
        return " ".join(text.read_bytes().decode("utf-8-sig").split())
    except OSError as error:
        findings.append(Finding("missing file", str(text), f"cannot be opened: {error.strerror}"))
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 (byte {error.object[error.start]:#04x}); save the file as UTF-8"
        findings.append(Finding("wrong encoding", str(text), what))
    return ""


def _placed(place: Path, pictures: list[Path], classes: Sequence[str]) -> tuple[list[Placed], list[Finding]]:
    """Class and split of each picture."""
    findings: list[Finding] = []
    parts = [path.relative_to(place).parts[:-1] for path in pictures]
    tops = _splits_at_the_top(place, parts, classes, findings)
    splits = [split_of(part[0]) if tops and part else None for part in parts]
    parts = [part[1:] if tops and part else part for part in parts]
    parts = _unwrapped(place, parts, classes, findings)
    if not tops:
        splits = [next((name for name in map(split_of, part[1:]) if name), None) for part in parts]
    alone = not tops and not any(parts)  # the folder itself is the class
    labels = [Path(os.path.abspath(place)).name if alone else part[0] if part else "" for part in parts]
    found = zip(pictures, labels, splits, strict=True)
    return [Placed(path, label, split) for path, label, split in found], findings


def _splits_at_the_top(place: Path, parts: list, classes: Sequence[str], findings: list[Finding]) -> bool:
    """Whether the folders below the root are splits. Unread when some are and others are not."""
    tops = {part[0] for part in parts if part}
    named = sorted(top for top in tops if split_of(top))
    deep = {part[0] for part in parts if len(part) > 1}
    if not named:
        return False
    as_classes = all(alike(top, classes) is not None for top in named) and not deep & set(named)
    if as_classes or (tops - set(named) and not deep & set(named)):
        findings += [
            Finding("split", str(place / top), "has the name of a split and is read as a class", False) for top in named
        ]
        return False
    if others := sorted(tops - set(named)):
        what = f"is named as a split, but {quoted(others[0])} beside it is not; move one of them"
        raise Unread(Finding("split", str(place / named[0]), what))
    return True


def _unwrapped(place: Path, parts: list, classes: Sequence[str], findings: list[Finding]) -> list:
    """Without a single folder that holds all class folders, such as `images`."""
    while parts and all(len(part) > 1 for part in parts) and len({part[0] for part in parts}) == 1:
        outer, inner = parts[0][0], {part[1] for part in parts}
        if classes and (alike(outer, classes) is not None or not any(alike(name, classes) for name in inner)):
            break
        if not classes and len(inner) == 1:
            break
        findings.append(Finding("outer folder", str(place / outer), "holds the class folders; they are read", False))
        parts = [part[1:] for part in parts]
    return parts


# -- what is left out --------------------------------------------------------------------------------------------------


def _others(tree: Tree) -> list[Finding]:
    """Files that are no pictures."""
    what = {
        "unread image": "is a picture of a kind that is not read, and is left out; save it as PNG or JPEG",
        "table": "is a table beside pictures and left out; name it as the path if it lists them",
        "other": "is no image and left out",
    }
    return [Finding("other file", str(path), why, False) for kind, why in what.items() for path in tree.of(kind)]


def _loose_texts(tree: Tree, used: set[Path], kept: list[Placed], beside: list) -> list[Finding]:
    """Texts that stand beside no picture, and pictures of which only some have a text."""
    every = {(path.parent, path.stem) for path in tree.of("image")}
    found = [
        Finding("other file", str(text), "is no image and left out", False)
        for text in tree.of("text")
        if text not in used and (text.parent, text.stem) not in every
    ]
    if used and (without := [picture for picture, text in zip(kept, beside, strict=True) if not text]):
        what = f"{len(used)} images have a text beside them, {len(without)} have none; no text is read"
        found.append(Finding("texts left out", str(without[0].path), what, False))
    return found


def _empty(tree: Tree) -> list[Finding]:
    """Folders at the top without a picture."""
    full = Counter(path.relative_to(tree.place).parts[0] for path in tree.of("image"))
    tops = [folder for folder in tree.folders if folder.parent == tree.place and folder != tree.place]
    return [Finding("empty folder", str(folder), "holds no image", False) for folder in tops if folder.name not in full]
