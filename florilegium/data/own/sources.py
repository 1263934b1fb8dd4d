"""Own data: where they lie, in which layout, and their rows before any is checked (examination.py).

Opened by data/private.py, and by the site itself through `florilegium data check`. Layouts: an image folder
(class/*.jpg), with or without a text beside each image; the same with metadata.csv, .jsonl or .parquet; a table (.csv,
.tsv, .jsonl, .json, .parquet) or a folder of its parts and splits; a directory of the `datasets` library
(save_to_disk); and train.parquet beside classes.json as the embedded data are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from florilegium.config.bounds import between
from florilegium.config.errors import SettingsError
from florilegium.config.node import NodeSettings, node_settings
from florilegium.data.datasets import DataError
from florilegium.data.own.findings import Finding, Unread, listed, quoted, reading, shown
from florilegium.data.own.folders import Tree, by_split, chosen_split, class_folders, walk
from florilegium.data.own.names import SPLIT_COLUMNS, SPLITS, alike, folded, is_leftover, split_of
from florilegium.data.own.saved import saved
from florilegium.data.own.tables import Row, Table, joined, table_of

METADATA = tuple(f"metadata{suffix}" for suffix in (".csv", ".jsonl", ".parquet"))
NEEDED = {"image": ("image", "label"), "text": ("text", "label"), "pair": ("image", "text", "label")}
EMBEDDED = ("tags", "concept", "modality")  # columns that mean something in the embedded layout alone


@dataclass(frozen=True)
class OwnSettings:
    """Keys of a site's node configuration about one path of data (docs/own-data.md)."""

    path: str
    text_column: str = NodeSettings.text_column
    label_column: str = NodeSettings.label_column
    image_column: str = NodeSettings.image_column  # `file_name` does as well
    max_pixels: int = NodeSettings.max_pixels
    workers: int = NodeSettings.workers

    def __post_init__(self) -> None:
        between("max-pixels", self.max_pixels, 1, 1 << 30)

    @classmethod
    def of(cls, node_config: Mapping[str, Any], key: str = "data-path") -> OwnSettings | None:
        """The settings of the data under `key`; None when the node configuration does not name any. DataError."""
        if not node_config.get(key):
            return None
        try:
            node = node_settings(node_config)
        except SettingsError as error:
            raise DataError(str(error)) from error
        path = Path(getattr(node, key.replace("-", "_"))).expanduser()
        return cls(str(path), node.text_column, node.label_column, node.image_column, node.max_pixels, node.workers)

    def column(self, name: str) -> str:
        """What the data call `image`, `text` or `label`."""
        return str(getattr(self, f"{name}_column", name))


@dataclass
class Opened:
    """A table with its columns chosen. `rows()` gives (where, cells by our names) of each row that `modality` uses.

    `names` are the classes of labels that are numbers, None where the data name none.
    """

    table: Table
    chosen: dict[str, str]  # our name -> the data's
    modality: str
    split_column: str | None = None
    wanted: str = "train"

    @property
    def names(self) -> tuple[str, ...] | None:
        return self.table.names(self.chosen["label"])

    def rows(self) -> Iterator[Row]:
        """Each row once. Unread when the file turns out to be torn."""
        columns = [*self.chosen.values(), *([self.split_column] if self.split_column else [])]
        rows: Iterator[tuple[str, dict[str, Any]]] = self.table.read(list(dict.fromkeys(columns)))
        if self.split_column:
            rows = self._of_split(list(rows), self.split_column)
        found = ((where, {name: cells[column] for name, column in self.chosen.items()}) for where, cells in rows)
        return _embedded_rows(found, self.modality) if self.table.embedded else found

    def _of_split(self, rows: list[Row], column: str) -> Iterator[Row]:
        """Rows of the wanted split, by the column that names it; all, with a warning, where it names none."""
        splits = {where: split_of(str(cells[column] or "")) for where, cells in rows}
        if not any(splits.values()):
            return iter(rows)
        unnamed = [where for where, split in splits.items() if not split]
        if unnamed:
            what = f"column {quoted(column)} names no split here, but in other rows"
            raise Unread(Finding("split", unnamed[0], what))
        there = {split for split in splits.values() if split}
        chosen, said = chosen_split(self.table.folder, there, self.wanted)
        self.table.findings += said
        self.table.split = chosen
        return ((where, cells) for where, cells in rows if splits[where] == chosen)


def _embedded_rows(rows: Iterator[Row], modality: str) -> Iterator[Row]:
    """Of the embedded layout: texts alone for text clients, the others for the rest; each text of a concept once."""
    seen: set[Any] = set()
    for where, cells in rows:
        if "modality" in cells and (cells["modality"] == "text") != (modality == "text"):
            continue
        if modality == "text" and "concept" in cells:
            if cells["concept"] in seen:
                continue
            seen.add(cells["concept"])
        yield where, cells


def open_table(own: OwnSettings, modality: str, classes: Sequence[str] = (), split: str = "train") -> Opened:
    """The rows under `own.path` that a client of `modality` uses. Raises Unread when there is nothing to look at.

    `classes` are the federation's, () when the data themselves say which there are.
    """
    place = Path(own.path)
    with reading(place):
        if not place.exists():
            raise Unread(Finding("missing file", str(place), "there is no such file or directory"))
        table = _file(place) if not place.is_dir() else _directory(place, tuple(classes), split)
    chosen = {name: _column(own, name, table, place) for name in NEEDED[modality]}
    beside = ("id", *EMBEDDED) if table.embedded else ("id",)
    chosen |= {name: name for name in beside if name in table.columns and name not in chosen.values()}
    by = next((name for name in table.columns if folded(name) in SPLIT_COLUMNS and not table.embedded), None)
    if by in chosen.values():
        by = None
    if table.split is None and by is None and "image" in chosen and not table.by_folder:
        table = _split_by_path(table, chosen["image"], split)
    return Opened(table, chosen, modality, by, split)


def modality_of(own: OwnSettings, classes: Sequence[str] = ()) -> str:
    """What the data have: images and texts (`pair`), images or texts."""
    for modality in ("pair", "image"):
        try:
            open_table(own, modality, classes)
            return modality
        except Unread:
            continue
    return "text"


def _column(own: OwnSettings, name: str, table: Table, place: Path) -> str:
    """The data's name of a column of ours. Unread when it has none."""
    there, asked = table.columns, own.column(name)
    found = alike(asked, there)
    if found is None and name == "image":
        found = alike("file_name", there)
    if found is not None:
        return found
    way = f" ({name}-column of the node configuration names it)" if len(there) > 1 else ""
    what = f"no column {quoted(asked, 40)}; there are {listed(list(there), 5)}{way}"
    raise Unread(Finding("missing column", str(place), what))


def _split_by_path(table: Table, column: str, wanted: str) -> Table:
    """A table whose image paths lie in folders of splits, cut to the wanted one."""
    read = table.read

    def chosen(columns: Sequence[str]) -> Iterator[Row]:
        if column not in columns:
            yield from read(columns)
            return
        rows = list(read(columns))
        found.split, kept, said = by_split(rows, lambda row: _path_split(row[1][column]), table.folder, wanted)
        found.findings += said
        yield from kept

    found = replace(table, read=chosen)
    return found if _has_paths(table, column) else table


def _path_split(cell: Any) -> str | None:
    path = cell if isinstance(cell, str) else ""
    return next((name for name in map(split_of, path.replace("\\", "/").split("/")[:-1]) if name), None)


def _has_paths(table: Table, column: str) -> bool:
    """Whether the first row's image is a path."""
    try:
        first = next(iter(table.read([column])), None)
    except Unread:
        return False
    return first is not None and isinstance(first[1][column], str)


# -- files and directories ---------------------------------------------------------------------------------------------


def _file(place: Path) -> Table:
    """One file; a part of several is read with a warning."""
    if not place.is_file():
        raise Unread(Finding("malformed file", str(place), "is no file and no directory"))
    table = table_of(place)
    if shard := re.search(r"-(\d+)-of-(\d+)$", place.stem):
        what = f"is one of {int(shard[2])} parts; the others are not read (the folder as the path reads them all)"
        table.findings.append(Finding("parts", str(place), what, False))
    return table


def _directory(place: Path, classes: tuple[str, ...], wanted: str) -> Table:
    """The layout of a directory is read from what lies in it."""
    if (place / "classes.json").is_file() and (place / "train.parquet").is_file():
        return _embedded(place, wanted)
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return saved(place, wanted)
    if (metadata := _metadata(place)) is not None:
        found = table_of(metadata)
        found.findings += _unlisted(walk(place, classes), metadata, found)
        return replace(found, layout=f"image folder with {metadata.name}")
    if inner := _split_folders(place):
        chosen, said = chosen_split(place, set(inner), wanted)
        table = _directory(inner[chosen], classes, wanted)
        table.findings += said
        return replace(table, split=chosen, findings=table.findings)
    tree = walk(place, classes)
    if tree.of("image"):
        return class_folders(tree, classes, wanted)
    if tree.of("table"):
        return _tables(tree, wanted)
    if refused := [finding for finding in tree.findings if finding.refused]:
        raise Unread(*refused)
    raise Unread(Finding("no rows", str(place), "holds no image, table or saved data set (docs/own-data.md)"))


def _metadata(place: Path) -> Path | None:
    there = {path.name.lower(): path for path in sorted(place.iterdir()) if path.is_file()}
    return next((there[name] for name in METADATA if name in there), None)


def _split_folders(place: Path) -> dict[str, Path]:
    """Folders of splits that each hold data of a layout of their own; {} where the folders are not that."""
    inner = [path for path in sorted(place.iterdir()) if path.is_dir() and not is_leftover(path.name)]
    splits = {name: path for path in inner if (name := split_of(path.name))}
    marks = ("state.json", "dataset_dict.json", "classes.json")
    marked = [path for path in inner if _metadata(path) or any((path / mark).is_file() for mark in marks)]
    return splits if marked and len(splits) == len(inner) else {}


def _unlisted(tree: Tree, metadata: Path, table: Table) -> list[Finding]:
    """Images of the folder that its metadata do not name."""
    column = alike("file_name", table.columns) or alike("image", table.columns)
    listed_there = set()
    if column:
        for _, cells in table.read([column]):
            if isinstance(name := cells[column], str):
                listed_there.add(tree.place / name.strip().replace("\\", "/"))
    return [
        *tree.findings,
        *(
            Finding("other file", str(path), f"is not in {metadata.name} and left out", False)
            for path in tree.of("image")
            if path not in listed_there
        ),
    ]


# -- a folder of tables ------------------------------------------------------------------------------------------------


def _tables(tree: Tree, wanted: str) -> Table:
    """The parts of one table, by their splits: train-00000-of-00002.parquet, train.csv and test.csv, train/0.parquet.

    Unread when it is not clear which table is meant.
    """
    place, files = tree.place, [path for path in tree.of("table") if path.name not in ("dataset_info.json",)]
    data = [path for path in files if path.suffix.lower() != ".json"] or files
    split, kept, said = by_split(data, lambda path: _file_split(path, place), place, wanted)
    names = {(path.parent, _without_number(path.stem), path.suffix.lower()) for path in kept}
    if len(names) > 1:
        what = f"holds several tables: {listed([path.relative_to(place) for path in kept], 4)}; name one as the path"
        raise Unread(Finding("no rows", str(place), what))
    findings = [*tree.findings, *said, *_missing_parts(kept)]
    findings += [Finding("other file", str(path), "is left out", False) for path in files if path not in data]
    parts = [table_of(path) for path in kept]
    table = joined(parts, parts[0].layout if len(parts) == 1 else f"{parts[0].layout} in {len(parts)} parts", place)
    folder = parts[0].folder
    return replace(table, folder=folder, split=split, findings=[*table.findings, *findings])


def _file_split(path: Path, place: Path) -> str | None:
    parts = (*path.relative_to(place).parts[:-1], path.stem)
    return next((name for name in map(split_of, parts) if name), None)


def _without_number(stem: str) -> str:
    """What the parts of one table have in common: `train-00000-of-00002` and `part-0001` without their numbers."""
    return re.sub(r"([-_.]?\d+)?([-_.]of[-_.]\d+)?([-_.][0-9a-f-]{32,})?([-_.]c\d+)?$", "", stem)


def _missing_parts(files: Sequence[Path]) -> list[Finding]:
    """A warning that names how many parts of those that the names count are not there."""
    counted = [found for path in files if (found := re.search(r"(\d+)-of-(\d+)$", path.stem))]
    if not counted or len(counted) >= (total := int(counted[0][2])):
        return []
    what = f"is one of {total} parts, of which {len(counted)} are here; the rows of the others are missing"
    return [Finding("parts", str(files[0]), what, False)]


# -- the embedded layout -----------------------------------------------------------------------------------------------


def _embedded(place: Path, wanted: str) -> Table:
    """train.parquet and classes.json, as the embedded data are; its rows that are public are nobody's own."""
    file = place / "classes.json"
    there = {split for split in SPLITS if (place / f"{split}.parquet").is_file()}
    split, _ = chosen_split(place, there, wanted)
    table = table_of(place / f"{split}.parquet")
    try:
        names = tuple(str(entry["name"]) for entry in json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        what = f'should be a list of {{"name": ...}} ({shown(error)[:80]})'
        raise Unread(Finding("malformed file", str(file), what)) from error
    read = _private(table.read) if "part" in table.columns else table.read
    return replace(table, layout="Parquet directory", read=read, names=lambda column: names, embedded=True, split=split)


def _private(read: Callable[[Sequence[str]], Iterator[Row]]) -> Callable[[Sequence[str]], Iterator[Row]]:
    def private(columns: Sequence[str]) -> Iterator[Row]:
        for where, cells in read([*columns, "part"]):
            if cells.pop("part") == "private":
                yield where, cells

    return private
