"""Data sets: three splits of rows, and the classes with the prompt that names them.

A data set is a directory of train, validation and test .parquet files with the columns `id`, `image`, `text`, `label`
and, where they are known, `tags`, `concept` (rows that show one thing), `style` (a domain), `part` (`private` rows are
the clients', `public` ones pre-trained the models) and `modality` (`text` rows have no image), beside a classes.json
[{"name": ...}]. Axes: N rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from florilegium import assets
from florilegium.config.data import DataSettings
from florilegium.config.instances import from_text, to_text
from florilegium.data import captions_on_disk, hub, stored_images, toy
from florilegium.data.decoding import decoded_rows

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
STORED = re.compile(r"([a-z]+\.pixels):(\d+)")  # a file of decoded images beside the table, and a row of it
COLUMNS = ("id", "image", "text", "label")
NO_ARTICLE = frozenset({"clothing", "weather", "trousers"})  # nouns that stand without "a"; classes.json may say more
PROMPT = "A picture of {article} {name}."


class DataError(ValueError):
    """A data set cannot be used; the one-line message names the file and, where there is one, the row."""


@dataclass(frozen=True)
class Classes(Sequence):
    """The class names in label order, and the prompt of each."""

    names: tuple[str, ...]
    articles: tuple[str, ...]
    template: str = PROMPT

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, label: Any) -> Any:
        return self.names[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def prompt(self, label: int) -> str:
        """What the T2I model is asked for, e.g. "A picture of an aircraft."."""
        return " ".join(self.template.format(article=self.articles[label], name=self.names[label]).split())


@dataclass(frozen=True)
class Splits:
    """The three splits as `datasets.Dataset`s; `place` is where they came from, for messages."""

    train: Dataset
    validation: Dataset
    test: Dataset
    classes: Classes
    place: str

    def private(self, split: str) -> Dataset:
        """The rows of a split that are the clients' (all of them when the data set has no `part`)."""
        dataset = getattr(self, split)
        return dataset if "part" not in dataset.column_names else self._part(split, "private")

    def public(self, split: str) -> Dataset:
        """The rows of a split that everybody may have. DataError when the data set has none."""
        dataset = getattr(self, split)
        if "part" not in dataset.column_names or not len(rows := self._part(split, "public")):
            raise DataError(f"{self.place}/{split} has no public rows (a column `part` with `public` names them)")
        return rows

    def _part(self, split: str, part: str) -> Dataset:
        dataset = getattr(self, split)
        return dataset.select(np.flatnonzero(np.array(dataset["part"][:]) == part))

    def prompt(self, label: int) -> str:
        return self.classes.prompt(label)


@dataclass(frozen=True)
class Rows:
    """Decoded rows: ids [N], labels [N], and images uint8 [N, 3, S, S] or texts with their tags; of pairs both, and the
    `groups` [N] of rows that show or say the same. Images of many rows lie in a file (stored_images.py)."""

    ids: Tensor
    labels: Tensor
    images: Any = field(default_factory=lambda: torch.zeros(0, 3, 1, 1, dtype=torch.uint8))
    texts: tuple[str, ...] = ()
    tags: tuple[tuple[str, ...], ...] = ()
    groups: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.ids)


# -- opening ---------------------------------------------------------------------------------------------------------


def open_dataset(data: DataSettings) -> Splits:
    """The data set of `conf.data`; read once in a process. DataError, AssetError."""
    if data.name == "toy":
        return _toy(data.prompt or PROMPT, int(data.image_size))
    if at_sites(data):
        return _nowhere(class_list(list(data.classes or ()), data.prompt))
    if data.hub or data.hub_domains:
        return _hub(to_text(data))
    if data.path and not data.own:
        if captions_on_disk.is_one(Path(data.path)):
            return _captions(to_text(data))
        if not Path(data.path, "classes.json").is_file():
            wrong = "has none" if Path(data.path).is_dir() else "is not there: it needs one"
            raise DataError(f"the data directory {data.path} {wrong} of the layouts that docs/full-size.md lists")
    return _read(str(_place(data)), data.prompt or PROMPT)


def _place(data: DataSettings) -> Path:
    if data.own:  # data/own/preparation.py has put them there
        return Path(str(data.prepared))
    return Path(data.path or assets.path("data", data.name))


def at_sites(data: DataSettings) -> bool:
    """Whether this machine has no row of own data: all are at the sites of a deployment."""
    return data.own and not Path(str(data.prepared), "test.parquet").is_file()


def _nowhere(classes: Classes) -> Splits:
    """Splits without rows."""
    from datasets import Dataset

    empty = Dataset.from_dict({"id": [], "image": [], "text": [], "label": [], "part": []})
    return Splits(empty, empty, empty, classes, "the sites' own data")


def class_list(names: Sequence[str], template: str | None = None) -> Classes:
    """Classes by their names alone, with the usual article for each."""
    return _classes([{"name": name} for name in names], template or PROMPT, "data.classes")


def classes_of(data: DataSettings) -> Classes:
    """The classes of `conf.data`: the list in the settings where there is one, so that a site needs no file of the
    operator's; else those of the data set. DataError, AssetError."""
    if given := data.classes:
        return class_list([str(name) for name in given], data.prompt)
    return open_dataset(data).classes


def files(data: DataSettings) -> list[tuple[str, int, int]]:
    """(name, bytes, time of the last change) of the files of a data set, if it lies on this machine. AssetError."""
    if data.name == "toy" or data.hub or data.hub_domains:
        return []
    there = sorted(path for path in _place(data).glob("*") if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in there]


@lru_cache(maxsize=4)
def _toy(template: str, side: int) -> Splits:
    named = [{"name": name} for name in toy.CLASSES]
    train, validation, test = (toy.dataset(split, side) for split in SPLITS)
    return Splits(train, validation, test, _classes(named, template, "toy"), "toy")


@lru_cache(maxsize=4)
def _read(place: str, template: str) -> Splits:
    file = Path(place, "classes.json")
    try:
        named = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
    classes = _classes(named, template, str(file))
    train, validation, test = (_split(Path(place, f"{split}.parquet"), len(classes)) for split in SPLITS)
    return Splits(train, validation, test, classes, place)


@lru_cache(maxsize=2)
def _hub(settings: str) -> Splits:
    """A data set of a hub (hub.py); a labelled picture without a text says its class name."""
    data = from_text(DataSettings, settings)
    try:
        found = hub.read(data)
    except ValueError as error:
        raise DataError(str(error)) from error
    named = [{"name": name} for name in found.names]
    place = f"hub {data.hub or ' and '.join(map(str, data.hub_domains))}"
    return Splits(**found.splits, classes=_classes(named, data.prompt or PROMPT, place), place=place)


@lru_cache(maxsize=2)
def _captions(settings: str) -> Splits:
    """Pictures with captions in their authors' layout (captions_on_disk.py); one class where they have none."""
    data = from_text(DataSettings, settings)
    try:
        splits, names = captions_on_disk.read(Path(str(data.path)), data.classes or ())
        found = hub.finished(data, [splits], names or [hub.ONE_CLASS])
    except ValueError as error:
        raise DataError(f"data.path: {error}") from error
    classes = _classes([{"name": name} for name in found.names], data.prompt or PROMPT, str(data.path))
    return Splits(**found.splits, classes=classes, place=str(data.path))


def _classes(named: Sequence[Mapping[str, str]], template: str, file: str) -> Classes:
    if not isinstance(named, list) or not named or not all(isinstance(c, Mapping) and c.get("name") for c in named):
        raise DataError(f'{file} should be a list of {{"name": ...}}, one per class')
    articles = (entry.get("article", _article(entry["name"])) for entry in named)
    return Classes(tuple(entry["name"] for entry in named), tuple(articles), template)


def _article(name: str) -> str:
    return "" if name in NO_ARTICLE else "an" if name[0].lower() in "aeiou" else "a"


def _split(file: Path, classes: int) -> Dataset:
    """One split, its columns, labels and ids checked; no image is decoded yet."""
    import pyarrow.parquet
    from datasets import Dataset
    from datasets.table import InMemoryTable

    try:
        dataset = Dataset(InMemoryTable(pyarrow.parquet.read_table(file)))
    except Exception as error:  # Arrow has a dozen errors for a torn file
        raise DataError(f"{file} cannot be read: {str(error).splitlines()[0]}") from error
    if missing := [column for column in COLUMNS if column not in dataset.column_names]:
        raise DataError(f"{file} has no column {missing[0]!r}; it has {', '.join(dataset.column_names)}")
    labels, ids = np.array(dataset["label"][:]), np.array(dataset["id"][:])
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise DataError(f"{file}, row {wrong[0]} (id {ids[wrong[0]]}): label {labels[wrong[0]]} of {classes} classes")
    if len(np.unique(ids)) != len(ids):
        raise DataError(f"{file} has the same id on two rows")
    return dataset


# -- rows ------------------------------------------------------------------------------------------------------------


def modality_rows(dataset: Dataset, modality: str) -> Dataset:
    """The rows a modality uses: every image, but each text once (a concept's styles share their text).

    A data set with a column `modality` has rows that are a text alone (`text`). Text clients use only those, image and
    pair clients only the others.
    """
    if "modality" in dataset.column_names:
        alone = texts_alone(dataset)
        dataset = dataset.select(np.flatnonzero(alone if modality == "text" else ~alone))
    if modality != "text" or "concept" not in dataset.column_names or "owner" in dataset.column_names:
        return dataset  # in own data (`owner`) a concept is a picture, and each of its texts counts
    _, first = np.unique(np.array(dataset["concept"][:]), return_index=True)
    return dataset.select(np.sort(first))


def texts_alone(dataset: Dataset) -> np.ndarray:
    """[N] bool: the rows that are a text without an image, by the column `modality`."""
    return np.array(dataset["modality"][:]) == "text"


def read_rows(
    dataset: Dataset, modality: str, side: int, place: str, ids: Sequence[int] | None = None, workers: int = 0
) -> Rows:
    """Decode the rows with these ids (None: all), images resized to side x side. DataError names place and row.

    `workers` processes decode; 0: this one. The rows are the same.
    """
    if ids is not None:
        where = {int(i): n for n, i in enumerate(dataset["id"][:])}
        if unknown := [i for i in ids if int(i) not in where]:
            raise DataError(f"{place} has no row with id {unknown[0]}")
        dataset = dataset.select([where[int(i)] for i in ids])
    numbers = {
        name: torch.tensor(dataset[column][:], dtype=torch.int64).reshape(-1)
        for name, column in (("ids", "id"), ("labels", "label"))
    }
    found: dict[str, Any] = {}
    if modality in ("text", "pair"):
        tags = dataset["tags"][:] if "tags" in dataset.column_names else [()] * len(dataset)
        found |= {"texts": tuple(dataset["text"][:]), "tags": tuple(tuple(t or ()) for t in tags)}
    if modality in ("image", "pair"):
        found["images"] = _images(dataset, numbers["ids"].tolist(), side, place, workers)
    if modality == "pair":
        concepts = dataset["concept"][:] if "concept" in dataset.column_names else numbers["ids"].tolist()
        found["groups"] = grouped(
            concepts, [", ".join([t, *g]) for t, g in zip(found["texts"], found["tags"], strict=True)]
        )
    return Rows(numbers["ids"], numbers["labels"], **found)


def grouped(concepts: Sequence[Any], texts: Sequence[str]) -> Tensor:
    """[N] numbers, equal for rows that share a concept or a whole text, directly or through others."""
    first: dict[Any, int] = {}
    above = list(range(len(concepts)))

    def root(n: int) -> int:
        while above[n] != n:
            n = above[n] = above[above[n]]
        return n

    for n, names in enumerate(zip((("concept", c) for c in concepts), (("text", t) for t in texts), strict=True)):
        for name in names:
            a, b = root(first.setdefault(name, n)), root(n)
            above[max(a, b)] = min(a, b)
    return torch.tensor([root(n) for n in range(len(above))], dtype=torch.int64)


def _images(dataset: Dataset, ids: list[int], side: int, place: str, workers: int) -> Any:
    """uint8 [N, 3, side, side]."""
    encoded = undecoded(dataset)
    if ids and (stored := STORED.fullmatch(str(encoded[0]["image"]["path"] or ""))):
        numbers = [int(STORED.fullmatch(row["path"])[2]) for row in encoded["image"][:]]  # type: ignore[index]
        return stored_images.opened(Path(place).parent / stored[1], side, numbers)
    pictures = stored_images.Pictures(side)
    for n, image in enumerate(decoded_rows(encoded, len(ids), side, workers)):
        if isinstance(image, str):
            raise DataError(f"{place}, id {ids[n]}: {image}")
        pictures.append(image)
    return pictures.images()


def undecoded(dataset: Dataset) -> Dataset:
    """The column `image` alone, its cells {"bytes": ..., "path": ...}."""
    from datasets import Image as ImageColumn

    return dataset.select_columns(["image"]).cast_column("image", ImageColumn(decode=False))


@lru_cache(maxsize=16)
def _held_out(data: str, split: str, modality: str, part: str) -> Rows:
    conf = from_text(DataSettings, data)
    splits = open_dataset(conf)
    rows = modality_rows(getattr(splits, part)(split), modality)
    return read_rows(rows, modality, int(conf.image_size), f"{splits.place}/{split}", workers=conf.workers)


def held_out(data: DataSettings, split: str, modality: str, part: str = "private") -> Rows:
    """All rows of the global `validation` or `test` split in the clients' domain (or the public one), decoded once in a
    process."""
    return _held_out(to_text(data), split, modality, part)
