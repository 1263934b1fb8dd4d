"""What people and programs call folders, files and columns: splits, kinds of files, and what is no data at all."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

SPLITS = ("train", "validation", "test")
SPELLINGS = {
    "train": ("train", "training", "trainset", "trn", "learn", "learning"),
    "validation": (
        *("validation", "valid", "validate", "val", "valset", "dev", "devset", "development"),
        *("eval", "evaluation", "holdout", "heldout"),
    ),
    "test": ("test", "testing", "tests", "testset", "tst"),
}
MEANS = {word: split for split, words in SPELLINGS.items() for word in words} | {"trainval": "train"}
# words that say nothing beside the name of a split: `my_train_images_2`, `PublicTest`, `train-00000-of-00002`
FILLERS = frozenset(
    "set sets data dataset datasets split splits subset image images imgs img pictures pics photos files folder dir "
    "directory seg sample samples public private final new the my own of shard part fold x raw cleaned".split()
)
SPLIT_COLUMNS = frozenset({"split", "splits", "datasplit", "subset", "set", "dataset", "partition", "usage", "phase"})

READ = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff")
# pictures of other kinds: left out, and named as such
UNREAD = frozenset(
    ".heic .heif .avif .svg .ico .psd .raw .cr2 .cr3 .nef .arw .dng .orf .rw2 .jp2 .j2k .jxl .tga .pcx .ppm .pgm .pbm "
    ".pnm .exr .hdr .eps .dcm .nii .mp4 .mov .avi .webm".split()
)
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
TEXTS = (".txt", ".caption")  # beside a picture of the same name: what the picture shows
# first bytes of the picture formats that are read
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*")
# what systems and network stores leave in folders
LEFTOVERS = frozenset(
    {"__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "lost+found"}
    | {"system volume information", "node_modules", "site-packages"}
)


def split_of(name: str) -> str | None:
    """The split that a folder, file or value is named after: `Train`, `val2017`, `test_set`, `TestImages`; or None."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word for word in re.split(r"[\W_\d]+", spaced.casefold()) if word]
    meant = [MEANS.get(_plain(word)) for word in words if word not in FILLERS]
    if not meant or None in meant:
        return None
    return "train" if "train" in meant and set(meant) <= {"train", "validation"} else _only(set(meant))


def _plain(word: str) -> str:
    """`trainingdata` and `testimages` are written as one word."""
    short = re.sub(r"(set|data|dataset|images|imgs|split)$", "", word)
    return short if short in MEANS else word


def _only(meant: set[str | None]) -> str | None:
    return next(iter(meant)) if len(meant) == 1 else None


def is_leftover(name: str) -> bool:
    """Whether a file or folder was left by a system, an editor or a network store, not put there by a person."""
    return name.startswith((".", "@", "#", "$", "~")) or name.casefold() in LEFTOVERS


def kind_of(path: Path) -> str:
    """image | unread image | table | text | other: by the ending of the name, and without one by the first bytes."""
    suffix = path.suffix.lower()
    if suffix in READ:
        return "image"
    if suffix in UNREAD:
        return "unread image"
    if suffix in TABLES:
        return "table"
    if suffix in TEXTS:
        return "text"
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except OSError:
        return "other"
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return "image" if head.startswith(MAGIC) or webp else "other"


def folded(name: str) -> str:
    """`Air-Craft ` and `aircraft` are one name."""
    return re.sub(r"[\s_\-]+", "", name).casefold()


def alike(name: str, names: Iterable[str]) -> str | None:
    """The name itself, or the only one that differs in case, spaces, hyphens or underscores; else None."""
    every = list(names)
    if name in every:
        return name
    found = [other for other in every if folded(other) == folded(name)]
    return found[0] if len(found) == 1 else None
