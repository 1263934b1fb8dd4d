"""Pictures with captions in the layouts of their authors: COCO, Flickr30k, Karpathy's split, Flowers, UPMC Food-101.

A directory is one of these: `dataset_coco.json` or `dataset_flickr30k.json` (Karpathy) beside the image folders;
`annotations/captions_train2017.json` and `captions_val2017.json` beside train2017 and val2017 (COCO);
`results.csv` or `results_20130124.token` beside `flickr30k-images` (Flickr30k);
`text_c10/class_00001/image_00001.txt` beside `jpg` (Oxford Flowers with texts of Reed et al., and setid.mat);
`texts/train_titles.csv` beside `images/train/<class>` (UPMC Food-101). Pictures are read when they are needed.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

Entry = tuple[str, Path, list[str], str]  # split, picture, captions, class ("" where there is none)
TENTHS = {9: "test", 8: "validation"}  # of rows whose layout names no such split


def is_one(place: Path) -> bool:
    """Whether the directory has one of the layouts."""
    return _reader(place) is not None


def read(place: Path, names: Sequence[str] = ()) -> tuple[dict[str, Dataset], list[str]]:
    """{split: rows with image, text, label and concept}, and the classes. ValueError names a missing or torn file.

    Where the layout has no test or validation split, every tenth picture is of it. COCO's val is test. `names` are the
    classes in the order of their numbers, for a layout that has numbers alone (Flowers).
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
    if (first := next((path for _, path, *_ in entries if not path.is_file()), None)) is not None:
        raise ValueError(f"{first} is missing, but the captions name it")
    named = {split: [e for e in entries if e[0] == split] for split in ("train", "validation", "test")}
    missing = {tenth: split for tenth, split in TENTHS.items() if not named[split]}
    for tenth, split in missing.items():
        named[split] = named["train"][tenth::10]
    named["train"] = [e for n, e in enumerate(named["train"]) if n % 10 not in missing]
    if empty := [split for split, those in named.items() if not those]:
        raise ValueError(f"{place}: there are too few captions for a split {empty[0]}")
    found = sorted({entry[3] for entry in entries})
    return {split: _rows(those, found) for split, those in named.items()}, _spelled(place, found, names)


def _spelled(place: Path, found: list[str], names: Sequence[str]) -> list[str]:
    """The classes' names: those given, where the layout has numbers."""
    if found == [""]:
        return []
    if not names:
        return [name.replace("_", " ") for name in found]
    if len(names) != len(found):
        raise ValueError(f"{place}: data.classes has {len(names)} names, but the data have {len(found)} classes")
    return list(names) if found[0].isdecimal() else [name.replace("_", " ") for name in found]


def _rows(entries: list[Entry], classes: list[str]) -> Dataset:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn

    pairs = [(str(path), text, classes.index(name)) for _, path, texts, name in entries for text in texts]
    cells = {
        "image": [{"bytes": None, "path": path} for path, _, _ in pairs],
        "text": [text for _, text, _ in pairs],
        "label": [label for _, _, label in pairs],
        "concept": [path for path, _, _ in pairs],
    }
    kinds = {"image": ImageColumn(), "text": Value("string"), "label": Value("int64"), "concept": Value("string")}
    return Dataset.from_dict(cells, features=Features(kinds))


def _reader(place: Path):
    if _karpathy_file(place):
        return _karpathy
    if (place / "annotations").is_dir() and next(place.glob("annotations/captions_*.json"), None):
        return _coco
    if (place / "text_c10").is_dir():
        return _flowers
    if (place / "texts" / "train_titles.csv").is_file():
        return _food
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
        yield splits[image["split"]], place / folder / image["filename"], texts, ""


def _coco(place: Path) -> Iterator[Entry]:
    for file in sorted(place.glob("annotations/captions_*.json")):
        folder = file.stem.removeprefix("captions_")
        held = json.loads(file.read_text(encoding="utf-8"))
        texts: dict[int, list[str]] = {}
        for said in held["annotations"]:
            texts.setdefault(said["image_id"], []).append(said["caption"].strip())
        split = "test" if folder.startswith("val") else "train"
        for image in held["images"]:
            yield split, place / folder / image["file_name"], texts.get(image["id"], []), ""


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
    yield from (("train", place / "flickr30k-images" / name, said, "") for name, said in texts.items())


def _flowers(place: Path) -> Iterator[Entry]:
    """Ten captions an image. With setid.mat the large official part trains and the two balanced ones judge."""
    splits = _official(place / "setid.mat") if (place / "setid.mat").is_file() else {}
    for file in sorted(place.glob("text_c10/class_*/image_*.txt")):
        number = file.stem.removeprefix("image_")
        texts = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        name = str(int(file.parent.name.removeprefix("class_"))).zfill(3)
        yield splits.get(int(number), "train"), place / "jpg" / f"image_{number}.jpg", texts, name


def _official(file: Path) -> dict[int, str]:
    """{number of an image: split}."""
    from scipy.io import loadmat

    parts = loadmat(file)
    named = {"tstid": "train", "valid": "validation", "trnid": "test"}
    return {int(n): split for key, split in named.items() for n in parts[key].ravel()}


def _food(place: Path) -> Iterator[Entry]:
    """`image,title,class`: one title an image, train and test."""
    for split in ("train", "test"):
        with (place / "texts" / f"{split}_titles.csv").open(encoding="utf-8", newline="") as stream:
            for row in csv.reader(stream):
                if len(row) >= 3:
                    name, label = row[0].strip(), row[-1].strip()
                    yield split, place / "images" / split / label / name, [",".join(row[1:-1]).strip()], label
