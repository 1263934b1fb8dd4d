"""Pictures with captions in the layouts of their authors: COCO, Flickr30k, and Karpathy's split of both.

A directory is one of these: `dataset_coco.json` or `dataset_flickr30k.json` (Karpathy) beside the image folders;
`annotations/captions_train2017.json` and `captions_val2017.json` beside train2017 and val2017 (COCO);
`results.csv` or `results_20130124.token` beside `flickr30k-images` (Flickr30k). Pictures are read when they are needed.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

Entry = tuple[str, Path, list[str]]  # split, picture, captions


def is_one(place: Path) -> bool:
    """Whether the directory has one of the layouts."""
    return _reader(place) is not None


def read(place: Path) -> dict[str, Dataset]:
    """{split: rows with image, text, label 0 and concept}. ValueError names the file that is missing or torn.

    Without a split of its own the last tenth is test, the tenth before it validation. COCO's val is test.
    """
    reader = _reader(place)
    if reader is None:
        raise ValueError(f"{place} has none of the layouts of COCO and Flickr30k (docs/full-size.md)")
    try:
        entries = list(reader(place))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place}: the captions cannot be read: {type(error).__name__}: {error}") from error
    if not entries:
        raise ValueError(f"{place}: there is no caption")
    if (first := next((path for _, path, _ in entries if not path.is_file()), None)) is not None:
        raise ValueError(f"{first} is missing, but the captions name it")
    named = {split: [e for e in entries if e[0] == split] for split in ("train", "validation", "test")}
    for split in ("test", "validation"):
        if not named[split]:
            some = max(1, len(named["train"]) // 10)
            named["train"], named[split] = named["train"][:-some], named["train"][-some:]
    return {split: _rows(those) for split, those in named.items()}


def _rows(entries: list[Entry]) -> Dataset:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn

    pairs = [(str(path), text) for _, path, texts in entries for text in texts]
    cells = {
        "image": [{"bytes": None, "path": path} for path, _ in pairs],
        "text": [text for _, text in pairs],
        "label": [0] * len(pairs),
        "concept": [path for path, _ in pairs],
    }
    kinds = {"image": ImageColumn(), "text": Value("string"), "label": Value("int64"), "concept": Value("string")}
    return Dataset.from_dict(cells, features=Features(kinds))


def _reader(place: Path):
    if _karpathy_file(place):
        return _karpathy
    if (place / "annotations").is_dir() and next(place.glob("annotations/captions_*.json"), None):
        return _coco
    return _flickr if _flickr_file(place) else None


def _karpathy_file(place: Path) -> Path | None:
    files = (place / f"dataset_{name}.json" for name in ("coco", "flickr30k"))
    return next((file for file in files if file.is_file()), None)


def _flickr_file(place: Path) -> Path | None:
    names = ("results.csv", "results_20130124.token")
    return next((place / name for name in names if (place / name).is_file()), None)


def _karpathy(place: Path) -> Iterator[Entry]:
    file = _karpathy_file(place)
    assert file is not None
    splits = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
    for image in json.loads(file.read_text(encoding="utf-8"))["images"]:
        folder = image.get("filepath") or "flickr30k-images"
        texts = [sentence["raw"].strip() for sentence in image["sentences"]]
        yield splits[image["split"]], place / folder / image["filename"], texts


def _coco(place: Path) -> Iterator[Entry]:
    for file in sorted(place.glob("annotations/captions_*.json")):
        folder = file.stem.removeprefix("captions_")
        held = json.loads(file.read_text(encoding="utf-8"))
        texts: dict[int, list[str]] = {}
        for said in held["annotations"]:
            texts.setdefault(said["image_id"], []).append(said["caption"].strip())
        split = "test" if folder.startswith("val") else "train"
        for image in held["images"]:
            yield split, place / folder / image["file_name"], texts.get(image["id"], [])


def _flickr(place: Path) -> Iterator[Entry]:
    """`name| number| caption` with a first line of titles, or `name#number<tab>caption`."""
    file = _flickr_file(place)
    assert file is not None
    texts: dict[str, list[str]] = {}
    with file.open(encoding="utf-8", newline="") as stream:
        if file.suffix == ".token":
            rows = ((line.split("\t", 1)[0].split("#")[0], line.split("\t", 1)[1]) for line in stream if "\t" in line)
        else:
            rows = ((row[0], row[-1]) for n, row in enumerate(csv.reader(stream, delimiter="|")) if n and len(row) > 1)
        for name, text in rows:
            texts.setdefault(name.strip(), []).append(text.strip())
    yield from (("train", place / "flickr30k-images" / name, said) for name, said in texts.items())
