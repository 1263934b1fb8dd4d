"""A site's own data: where they lie, in which of five layouts, and their rows before any is checked (examined.py).

Opened by data/private.py, and by the site itself through `florilegium data check`. Layouts: an image folder
(class/*.jpg), the same with metadata.csv, .jsonl or .parquet, a table (.csv, .tsv, .jsonl, .json, .parquet), a
directory of the `datasets` library (save_to_disk), and train.parquet beside classes.json as the embedded data are.
"""

from __future__ import annotations

import glob
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florilegium.config.bounds import between
from florilegium.data.datasets import DataError, modality_rows
from florilegium.data.own.tables import Finding, Table, Unread, numbered, reading, table_of, undecoded

if TYPE_CHECKING:
    from datasets import Dataset

METADATA = tuple(f"metadata{suffix}" for suffix in (".csv", ".jsonl", ".parquet"))
IMAGES = (".jpg", ".jpeg", ".png", ".webp")
NEEDED = {"image": ("image", "label"), "text": ("text", "label"), "pair": ("image", "text", "label")}
BESIDE = ("id", "tags", "concept")  # columns of the embedded layout that a table of one's own may have as well
SPLITS = frozenset({"train", "validation", "valid", "val", "test"})


@dataclass(frozen=True)
class OwnSettings:
    """Keys of a site's node configuration about one path of data (docs/data.md)."""

    path: str
    text_column: str = "text"
    label_column: str = "label"
    image_column: str = "image"  # of a table: a path relative to it, or the encoded image; `file_name` does as well
    max_pixels: int = 1 << 26  # of one image; a larger one is refused before a pixel is decoded

    def __post_init__(self) -> None:
        between("max-pixels", self.max_pixels, 1, 1 << 30)

    @classmethod
    def of(cls, node_config: Mapping[str, Any], key: str = "data-path") -> OwnSettings | None:
        """The settings of the data under `key`; None when the node configuration does not name any. DataError."""
        if not (path := str(node_config.get(key, ""))):
            return None
        given = {
            name: node_config[name.replace("_", "-")]
            for name in cls.__dataclass_fields__
            if name != "path" and name.replace("_", "-") in node_config
        }
        try:
            return cls(str(Path(path).expanduser()), **given)
        except (TypeError, ValueError) as error:
            raise DataError(f"node configuration: {error}") from error

    def column(self, name: str) -> str:
        """What the data call `image`, `text` or `label`."""
        return str(getattr(self, f"{name}_column", name))


def open_table(own: OwnSettings, modality: str) -> Table:
    """The rows under `own.path` that a client of `modality` uses. Raises Unread when there is nothing to look at."""
    place = Path(own.path)
    if not place.exists():
        raise Unread(Finding("missing file", str(place), "there is no such file or directory"))
    table = table_of(place, place.suffix.lower()) if place.is_file() else _directory(place)
    dataset, there = table.dataset, list(table.dataset.column_names)
    chosen: dict[str, str] = {}  # column of the data -> ours
    for name in NEEDED[modality]:
        column = own.column(name)
        if name == "image" and column not in there and "file_name" in there:
            column = "file_name"
        if column not in there:
            raise Unread(
                Finding(
                    "missing column",
                    str(place),
                    f"no column {column!r}; there are {', '.join(there)}"
                    + (f" ({name}-column of the node configuration names it)" if len(there) > 1 else ""),
                )
            )
        chosen[column] = name
    chosen |= {name: name for name in BESIDE if name in there and name not in chosen.values()}
    names = table.names or getattr(dataset.features[own.column("label")], "names", None)
    dataset = dataset.select_columns(list(chosen))
    dataset = dataset.rename_columns({column: name for column, name in chosen.items() if column != name})
    return Table(dataset, table.layout, table.folder, table.at, tuple(names) if names else None, table.findings)


# -- directories -------------------------------------------------------------------------------------------------------


def _directory(place: Path) -> Table:
    """The layout of a directory is read from what lies in it."""
    if (place / "classes.json").is_file() and (place / "train.parquet").is_file():
        return _embedded(place)
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return _saved(place)
    for name in METADATA:
        if (place / name).is_file():
            found = table_of(place / name, Path(name).suffix)
            return replace(found, layout=f"image folder with {name}", findings=_unlisted(place, name, found.dataset))
    inner = {path.name for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if "train" in inner and inner <= SPLITS:
        return _directory(place / "train")
    return _folder(place)


def _unlisted(place: Path, metadata: str, dataset: Dataset) -> tuple[Finding, ...]:
    """Images of the folder that its metadata do not name."""
    column = next((name for name in ("file_name", "image") if name in dataset.column_names), None)
    listed = {place / str(name) for name in dataset[column][:]} if column else set()
    return tuple(
        Finding("other file", str(path), f"is not in {metadata} and left out", False)
        for path in sorted(place.rglob("*"))
        if path.suffix.lower() in IMAGES and path not in listed and not _hidden(path, place)
    )


def _folder(place: Path) -> Table:
    """class/*.jpg, read by the `datasets` library's image folder; the folder of an image is its class."""
    from datasets import Image, load_dataset
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    files = [path for path in sorted(place.rglob("*")) if path.is_file() and not _hidden(path, place)]
    known = [path for path in files if path.suffix.lower() in ImageFolder.EXTENSIONS]
    if not known:
        raise Unread(Finding("no rows", str(place), "holds no image, table or saved data set (docs/data.md)"))
    others = [
        Finding("other file", str(path), "is no image and left out", False) for path in files if path not in set(known)
    ]
    everything = f"{glob.escape(str(place.resolve()))}/**"
    with _nowhere() as scratch, reading(place):
        found = load_dataset(
            "imagefolder",
            data_files={"train": everything},
            drop_labels=False,
            drop_metadata=True,
            split="train",
            cache_dir=scratch,
            keep_in_memory=True,
        )
    found = found.cast_column("image", Image(decode=False))
    paths = [cell["path"] for cell in found["image"][:]]
    order = sorted(range(len(paths)), key=paths.__getitem__)
    found, paths = found.select(order, keep_in_memory=True), sorted(paths)
    empty = [
        Finding("empty folder", str(path), "holds no image", False)
        for path in sorted(place.iterdir())
        if path.is_dir() and not _hidden(path, place) and not any(path in file.parents for file in known)
    ]
    shown = [str(place / Path(path).relative_to(place.resolve())) for path in paths]  # as the site named the folder
    return Table(found, "image folder", place, shown.__getitem__, None, tuple(others + empty))


def _saved(place: Path) -> Table:
    """A Dataset or DatasetDict of save_to_disk: of a dict `train`, or its only split."""
    from datasets import DatasetDict, load_from_disk

    with reading(place):
        found = load_from_disk(str(place))
    if isinstance(found, DatasetDict):
        split = "train" if "train" in found else next(iter(found))
        if split != "train" and len(found) > 1:
            raise Unread(Finding("no rows", str(place), f"has no split train; it has {', '.join(found)}"))
        found = found[split]
    return Table(undecoded(found), "saved data set", place, numbered(place))


def _embedded(place: Path) -> Table:
    """train.parquet and classes.json, as the embedded data are; its rows that are public are nobody's own."""
    file, table = place / "classes.json", table_of(place / "train.parquet", ".parquet")
    try:
        names = tuple(str(entry["name"]) for entry in json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Unread(Finding("malformed file", str(file), f'should be a list of {{"name": ...}} ({error})')) from error
    dataset, rows = table.dataset, list(range(len(table.dataset)))
    if "part" in dataset.column_names:
        rows = [n for n, part in enumerate(dataset["part"][:]) if part == "private"]
        dataset = dataset.select(rows, keep_in_memory=True)
    return Table(dataset, "Parquet directory", place, lambda n: table.at(rows[n]), names)


# -- small parts -------------------------------------------------------------------------------------------------------


def _hidden(path: Path, place: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.relative_to(place).parts)


@contextmanager
def _nowhere() -> Iterator[str]:
    """A cache folder that goes when it was read: no copy of private data is left behind, no progress bar shown."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory(prefix="florilegium-") as scratch:
            yield scratch
    finally:
        if not before:
            enable_progress_bars()


def used(table: Table, modality: str) -> tuple[Dataset, Sequence[int]]:
    """The rows a modality uses (a text of a concept once) and their numbers in the table."""
    numbered = table.dataset.add_column("_row", list(range(len(table.dataset))))
    rows = modality_rows(numbered, modality)
    return rows.remove_columns("_row"), rows["_row"][:]
