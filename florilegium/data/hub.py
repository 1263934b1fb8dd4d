"""Data sets of a hub, or of a directory that `datasets.load_dataset` reads: columns and splits found by name.

Rows stay in Arrow files on disk; nothing is decoded here. ValueError is one line that names the key at fault.
Axes: N rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from florilegium import hub
from florilegium.config.data import DataSettings
from florilegium.config.errors import first_line

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

USUAL = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
CAPTIONS = ("text", "caption", "captions", "sentences", "sentence", "raw")
WORDNET = re.compile(r"n\d{8}")  # how ImageNet names a class
ONE_CLASS = "picture"  # of pictures with captions and no labels


@dataclass(frozen=True)
class Found:
    """Three splits with the columns id, image, text, label, and where they are known concept, style and part."""

    splits: dict[str, Dataset]
    names: list[str]


def read(data: DataSettings) -> Found:
    """The data set `data.hub`, or each of `data.hub_domains` (id, or id:subset) with its name as its rows' style."""
    places = {str(k): str(v) for k, v in data.hub_domains.items()} or {"": f"{data.hub}:{data.hub_subset or ''}"}
    parts: list[dict[str, Dataset]] = []
    names: list[str] = []
    for style, place in places.items():
        splits, found = _one(data, place, style)
        names = names or found
        if sorted(found) != sorted(names):
            raise ValueError(f"data.hub_domains: {style} has other classes than the first: {', '.join(found[:3])}, ...")
        parts.append({split: _in_order(rows, found, names) for split, rows in splits.items()})
    return finished(data, parts, names)


def _in_order(rows: Dataset, found: list[str], names: list[str]) -> Dataset:
    """The rows with the numbers that `names` gives their classes."""
    if found == names:
        return rows
    numbers = np.array([names.index(name) for name in found])[np.array(rows["label"][:], dtype=np.int64)]
    return rows.remove_columns(["label"]).add_column("label", numbers)


def finished(data: DataSettings, parts: Sequence[Mapping[str, Dataset]], names: list[str]) -> Found:
    """All parts under ids of their own, with the public share marked."""
    from datasets import concatenate_datasets

    first, splits = 0, {}
    for split in USUAL:
        whole = concatenate_datasets([part[split] for part in parts])
        whole = whole.add_column("id", np.arange(first, first + len(whole)))
        if "text" not in whole.column_names:
            whole = whole.add_column("text", [names[n] for n in whole["label"][:]])
        if share := data.public.share:
            whole = whole.add_column("part", _parts(whole, share, data.split.seed))
        first += len(whole)
        splits[split] = whole
    return Found(splits, names)


def _parts(rows: Dataset, share: float, seed: int) -> list[str]:
    """`public` for a share of the concepts, drawn by a seed of its own; all rows of a concept go the same way."""
    concepts = np.array(rows["concept" if "concept" in rows.column_names else "id"][:])
    distinct, which = np.unique(concepts, return_inverse=True)
    chosen = np.random.default_rng([seed, len(distinct)]).permutation(len(distinct)) < round(share * len(distinct))
    return np.where(chosen[which], "public", "private").tolist()


def _one(data: DataSettings, place: str, style: str) -> tuple[dict[str, Dataset], list[str]]:
    place, _, subset = place.partition(":")
    loaded = _loaded(place, subset or None)
    splits = _splits(loaded, {str(k): str(v) for k, v in data.hub_splits.items()}, place)
    columns = _columns(splits["train"], data, place)
    names = _names(splits["train"], columns, data)
    return {name: _rows(rows, columns, names, data, style) for name, rows in splits.items()}, names


def _loaded(place: str, subset: str | None) -> DatasetDict:
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    hub.open_or_offline(place)
    try:
        saved = any(Path(place, name).is_file() for name in ("dataset_dict.json", "state.json"))
        found: Any = load_from_disk(place) if saved else load_dataset(place, subset)
    except Exception as error:  # no network, no such set, another layout: each has its own class
        if hub.is_id(place) and hub.is_about_fetching(error):
            raise ValueError(hub.cannot("data.hub", place, error, data=True)) from error
        raise ValueError(f"data.hub: {place} cannot be used: {first_line(error)}") from error
    return DatasetDict({"train": found}) if isinstance(found, Dataset) else found


def _splits(found: DatasetDict, given: Mapping[str, str], place: str) -> dict[str, Dataset]:
    """Train, validation and test. What is missing is cut from train, a tenth each, or validation stands for test."""
    there = ", ".join(map(str, found))
    for split, name in given.items():
        if split not in USUAL:
            raise ValueError(f"data.hub_splits: there is no {split!r}; there are {', '.join(USUAL)}")
        if name not in found:
            raise ValueError(f"data.hub_splits.{split}: {place} has no split {name!r}; it has {there}")
    named = {s: given.get(s) or next((name for name in usual if name in found), None) for s, usual in USUAL.items()}
    if named["train"] is None:
        raise ValueError(f"data.hub_splits.train: {place} has no split 'train'; it has {there}")
    if named["test"] is None and "validation" not in given:
        named["test"], named["validation"] = named["validation"], None  # as where the test labels are not public
    splits = {split: found[name] for split, name in named.items() if name is not None}
    for split in ("test", "validation"):
        if split not in splits:
            train = splits["train"]
            end = len(train) - max(1, len(train) // 10)
            splits["train"], splits[split] = train.select(range(end)), train.select(range(end, len(train)))
    return splits


def _columns(rows: Dataset, data: DataSettings, place: str) -> dict[str, str]:
    """{ours: theirs} for image, text, label and style. ValueError names a column that is not there."""
    from datasets import ClassLabel
    from datasets import Image as ImageColumn

    features, there = rows.features, ", ".join(rows.column_names)
    images = [name for name, kind in features.items() if isinstance(kind, ImageColumn)]
    labels = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    found: dict[str, str] = {}
    usual = {"image": "image", "label": "label", "text": "text"}
    for ours, others in (("image", images), ("label", labels), ("text", [n for n in CAPTIONS if n in features])):
        asked = getattr(data, f"{ours}_column")
        if asked in features:
            found[ours] = asked
        elif asked != usual[ours]:
            raise ValueError(f"data.{ours}_column: {place} has no column {asked!r}; it has {there}")
        elif len(others) > 1 and ours == "label":
            raise ValueError(f"data.label_column: {place} has labels {' and '.join(others)}; name one")
        elif others:
            found[ours] = others[0]
    if data.domain_column:
        if data.domain_column not in features:
            raise ValueError(f"data.domain_column: {place} has no column {data.domain_column!r}; it has {there}")
        found["style"] = data.domain_column
    if "image" not in found and "text" not in found:
        raise ValueError(f"data.image_column: {place} has no column of images or texts; it has {there}")
    if "label" not in found and "text" not in found:
        raise ValueError(f"data.label_column: {place} has no column of labels; it has {there}")
    return found


def _names(rows: Dataset, columns: Mapping[str, str], data: DataSettings) -> list[str]:
    from datasets import ClassLabel

    if "label" not in columns:
        return [ONE_CLASS]
    kind = rows.features[columns["label"]]
    given = [spoken(name) for name in data.classes or ()]
    if isinstance(kind, ClassLabel) and kind.names:
        found = [spoken(str(name)) for name in kind.names]
    else:
        found = [spoken(str(value)) for value in sorted(set(rows[columns["label"]][:]))]
    if not given or sorted(given) == sorted(found):
        return found
    if len(given) != len(found):
        raise ValueError(f"data.classes has {len(given)} names, but the data have {len(found)} classes")
    if all(name.isdecimal() for name in found):  # numbers, perhaps in the order of words: 1, 10, 100, 2
        first = min(map(int, found))
        return [given[int(name) - first] for name in found]
    return given


def _rows(rows: Dataset, columns: Mapping[str, str], names: list[str], data: DataSettings, style: str) -> Dataset:
    """One split with our columns. A picture with several captions has a row for each; they share a concept."""
    numbers = _numbers(rows, columns, names)
    texts = _texts(rows[columns["text"]][:]) if "text" in columns else None
    styles = [str(value) for value in rows[columns["style"]][:]] if "style" in columns else None
    if "image" in columns:
        chosen = rows.select_columns([columns["image"]])
        chosen = chosen.rename_column(columns["image"], "image") if columns["image"] != "image" else chosen
    else:
        from datasets import Dataset

        chosen = Dataset.from_dict({"modality": ["text"] * len(rows)})
    if texts is not None:
        where = [n for n, said in enumerate(texts) for _ in said]
        chosen = chosen.select(where).add_column("text", [text for said in texts for text in said])
        if "image" in columns:
            chosen = chosen.add_column("concept", [f"{style} {n}" for n in where])
        numbers = numbers[where]
        styles = None if styles is None else [styles[n] for n in where]
    chosen = chosen.add_column("label", numbers)
    if style or styles is not None:
        chosen = chosen.add_column("style", styles or [style] * len(chosen))
    if "image" not in columns:
        chosen = chosen.add_column("image", [None] * len(chosen))
    return chosen


def _numbers(rows: Dataset, columns: Mapping[str, str], names: list[str]) -> np.ndarray:
    """The label of each row as its class's number. ValueError names a row without a class."""
    if "label" not in columns:
        return np.zeros(len(rows), dtype=np.int64)
    values = rows[columns["label"]][:]
    if not all(isinstance(value, int) for value in values):
        known = {name: n for n, name in enumerate(names)}
        values = [known.get(spoken(str(value)), -1) for value in values]
    numbers = np.array(values, dtype=np.int64)
    if len(wrong := np.flatnonzero((numbers < 0) | (numbers >= len(names)))):
        raise ValueError(
            f"data.label_column: row {wrong[0]} has label {numbers[wrong[0]]}, there are {len(names)} classes"
        )
    return numbers


def _texts(cells: Sequence[Any]) -> list[list[str]]:
    """All texts of each row: a cell is a text, a list of texts, or of {"raw": text}."""
    found = []
    for cell in cells:
        said = cell if isinstance(cell, (list, tuple)) else [cell]
        found.append([str(text.get("raw", "") if isinstance(text, Mapping) else text).strip() for text in said])
    return [[text for text in said if text] for said in found]


def spoken(name: str) -> str:
    """A class name as one says it: `apple_pie` is "apple pie", `n01443537` is "goldfish"."""
    if WORDNET.fullmatch(name):
        from timm.data import ImageNetInfo

        try:
            name = ImageNetInfo("imagenet-1k").label_name_to_description(name).split(",")[0]
        except (KeyError, ValueError):
            return name
    return name.replace("_", " ").strip().lower()
