"""A site's own rows, looked at one by one: what is wrong with each, and those that can be learnt from.

The same examination opens a client's data (data/private.py) and answers `florilegium data check`.
Axes: N rows, S image side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from florilegium.data.datasets import DataError, Rows, grouped
from florilegium.data.decoding import AT_ONCE, in_order
from florilegium.data.own.cells import id_of, label_of, texts_of
from florilegium.data.own.findings import BadCell, Finding, Unread, cut, listed, quoted, reading
from florilegium.data.own.names import SPLITS, folded
from florilegium.data.own.photos import Deep, Photo, decoded, encoded, scaled
from florilegium.data.own.sources import Opened, OwnSettings, open_table
from florilegium.data.own.tables import Row
from florilegium.data.stored_images import Pictures

LOST = "\ufffd"  # what a decoder puts in the place of a character it could not read


class OwnDataError(DataError):
    """A site's own data are refused. `outside` is the same without file names, classes or texts: the server gets it."""

    def __init__(self, message: str, outside: str) -> None:
        super().__init__(message)
        self.outside = outside


@dataclass
class Examined:
    """What an examination found. `rows` are those with nothing to refuse; counts are of these."""

    layout: str
    found: int
    rows: Rows
    findings: list[Finding] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # width, height of each image as it was found
    split: str | None = None  # the split that was read, where the data have splits
    places: list[str] = field(default_factory=list)  # file and row of each of `rows`

    @property
    def refused(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.refused]

    def whole(self) -> Rows:
        """The rows. OwnDataError, naming the first file and row that is refused."""
        if bad := self.refused:
            more = f" ({len(bad) - 1} more; `florilegium data check` lists them)" if len(bad) > 1 else ""
            kinds = ", ".join(sorted({finding.kind for finding in bad}))
            raise OwnDataError(
                f"{bad[0]}{more}",
                f"own data are refused ({kinds}: {len(bad)} in all); the site's log names file and row",
            )
        return self.rows


def examine(
    own: OwnSettings, classes: Sequence[str], modality: str, side: int, split: str = "train", derived: bool = False
) -> Examined:
    """Look at everything under `own.path` as a client of `modality` would use it, images at side x side.

    With `derived` the classes were made from these data, so that folders need not match them to be read as classes.
    """
    place = Path(own.path)
    try:
        opened = open_table(own, modality, () if derived else classes, split)
    except Unread as error:
        return Examined("nothing", 0, _nothing(side), list(error.findings))
    look = _Look(opened, tuple(classes), modality, side)
    torn: tuple[Finding, ...] = ()
    count = 0
    try:
        with reading(place):
            for where, cells, seen in _seen(opened, side, own):
                look.row(where, cells, seen)
                count += 1
    except Unread as error:
        torn = error.findings
    look.after(count if not torn else max(count, 1))
    table = opened.table
    found = Examined(table.layout, count, look.rows(), [*torn, *table.findings, *look.findings], look.sizes)
    found.split, found.places = table.split, look.kept["where"]
    return found


def examine_splits(
    own: OwnSettings, classes: Sequence[str], modality: str, side: int, derived: bool = False
) -> Iterator[Examined]:
    """`examine` of each split that the data have, train first; once for data without splits (`split` is None)."""
    for split in SPLITS:
        found = examine(own, classes, modality, side, split, derived)
        if split == "train" or found.split == split:
            yield found
        if split == "train" and found.split is None:
            return


@dataclass(frozen=True)
class Seen:
    """What became of a row's image: the image and a hash of its file, or (kind, what) of why there is none."""

    photo: Photo | None = None
    content: bytes = b""
    refused: tuple[str, str] | None = None


def _seen(opened: Opened, side: int, own: OwnSettings) -> Iterator[tuple[str, Mapping[str, Any], Seen | None]]:
    """Each row with its image, decoded by `own.workers` processes."""
    folder = opened.table.folder

    def look(rows: list[Row]) -> list[tuple[str, Mapping[str, Any], Seen | None]]:
        return [(where, *_without_image(cells, folder, side, own.max_pixels)) for where, cells in rows]

    for part in in_order(look, batched(opened.rows(), AT_ONCE), own.workers):
        yield from part


def _without_image(
    cells: Mapping[str, Any], folder: Path, side: int, most: int
) -> tuple[Mapping[str, Any], Seen | None]:
    """The cells but the image's, which is large, and what became of the image; None for a row without such a cell."""
    if "image" not in cells:
        return cells, None
    rest = {name: cell for name, cell in cells.items() if name != "image"}
    try:
        data = encoded(cells["image"], folder)
        return rest, Seen(decoded(data, side, most), hashlib.sha256(data).digest())
    except BadCell as error:
        return rest, Seen(refused=(error.kind, str(error)))


def batched(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Lists of at most `size` rows; what `rows` raises is raised after the rows before it."""
    part: list[Row] = []
    try:
        for row in rows:
            part.append(row)
            if len(part) == size:
                yield part
                part = []
    except Exception:
        yield part
        raise
    yield part


# -- one row -----------------------------------------------------------------------------------------------------------


class _Look:
    """Goes through the rows and keeps what can be used of them."""

    def __init__(self, opened: Opened, classes: tuple[str, ...], modality: str, side: int) -> None:
        self.folder, self.names, self.embedded = opened.table.folder, opened.names, opened.table.embedded
        self.classes, self.modality, self.side = classes, modality, side
        self.match = Matching(classes)
        self.findings: list[Finding] = []
        self.bad = 0  # findings that refuse
        self.sizes: list[tuple[int, int]] = []
        self.kept: dict[str, Any] = {name: [] for name in ("id", "label", "text", "tags", "concept", "where")}
        self.kept["image"] = Pictures(side)
        self.seen: dict[bytes, tuple[str, int]] = {}  # content -> where it was first, and its label
        self.ids: dict[int | str, str] = {}  # id -> where it was first
        self.unknown: dict[str, list[str]] = {}
        self.spelled: dict[str, str] = {}

    def row(self, where: str, cells: Mapping[str, Any], seen: Seen | None) -> None:
        """Keep a row, once for each of its texts, or say why not."""
        before = self._refused()
        id_ = self._id(where, cells.get("id"))
        label, picture = self._label(where, cells["label"]), b""
        texts = self._texts(where, cells["text"]) if "text" in cells else [""]
        image = None
        if seen is not None:
            image, picture = self._image(where, seen)
        tags = tuple(str(tag) for tag in cells["tags"]) if isinstance(cells.get("tags"), list) else ()
        if texts and (seen is None or image is not None):
            self._compare(where, picture, texts, tags, label)
        if self._refused() > before:
            return
        concept = cells.get("concept", picture or None)
        for n, text in enumerate(texts, 1):
            place = where if len(texts) == 1 else f"{where}, text {n}"
            row = {"id": id_ if len(texts) == 1 else None, "label": label, "image": image, "text": text, "tags": tags}
            for name, value in (row | {"concept": concept, "where": place}).items():
                self.kept[name].append(value)

    def _refused(self) -> int:
        return self.bad + sum(map(len, self.unknown.values()))

    def _say(self, kind: str, where: str, what: str, refused: bool = True) -> None:
        self.findings.append(Finding(kind, where, what, refused))
        self.bad += refused

    def _label(self, where: str, cell: Any) -> int:
        """The federation's number of a class, or -1."""
        try:
            value = label_of(cell)
        except BadCell as error:
            self._say(error.kind, where, str(error))
            return -1
        if isinstance(value, int) and self.names is not None:
            if not 0 <= value < len(self.names):
                self._say("no label", where, f"label {value} of {len(self.names)} classes")
                return -1
            value = self.names[value]
        name = str(value)
        if (label := self.match(name)) is None:
            self.unknown.setdefault(name, []).append(where)
            return -1
        if name != self.classes[label]:
            self.spelled.setdefault(name, where)
        return label

    def _texts(self, where: str, cell: Any) -> list[str]:
        try:
            texts = texts_of(cell)
        except BadCell as error:
            self._say(error.kind, where, str(error))
            return []
        if not texts:
            self._say("empty text", where, "the text is empty")
        if any(LOST in text for text in texts):
            self._say("wrong encoding", where, f"the text has {LOST!r}, left by an earlier conversion", False)
        return texts

    def _image(self, where: str, seen: Seen) -> tuple[np.ndarray | Deep | None, bytes]:
        """The image, and a hash of its file."""
        if seen.refused is not None:
            kind, what = seen.refused
            self._say(kind, where, what)
            return None, b""
        photo = seen.photo
        assert photo is not None
        self.sizes.append(photo.size)
        for kind, what in photo.warnings:
            self._say(kind, where, what, False)
        if min(photo.size) < self.side:
            what = f"is {photo.size[0]}x{photo.size[1]} pixels and enlarged to {self.side}x{self.side}"
            self._say("small image", where, what, False)
        return photo.pixels, seen.content

    def _id(self, where: str, cell: Any) -> int | str | None:
        try:
            id_ = id_of(cell)
        except BadCell as error:
            self._say(error.kind, where, str(error))
            return None
        if id_ is not None and (first := self.ids.setdefault(id_, where)) != where:
            self._say("same id", where, f"id {quoted(id_)} stands at {cut(first, 80)} as well")
        return id_

    def _compare(self, where: str, picture: bytes, texts: list[str], tags: tuple[str, ...], label: int) -> None:
        """Warn of content that was there before, and of one picture in two classes."""
        whole = hashlib.sha256(picture + repr((texts, tags)).encode("utf-8", "replace")).digest()
        first, same = self.seen.setdefault(whole, (where, label))
        if first == where and picture and texts != [""]:
            first, same = self.seen.setdefault(picture, (where, label))
            if same == label:  # another text of the same picture
                return
        if first != where:
            alike = same == label or -1 in (same, label)
            other = "" if alike else f", but of class {quoted(self.classes[label])} instead of "
            other += "" if alike else quoted(self.classes[same])
            self._say("duplicate" if alike else "two classes", where, f"is the same as {cut(first, 80)}{other}", False)

    # -- all rows ------------------------------------------------------------------------------------------------------

    def after(self, count: int) -> None:
        """What only all rows together tell."""
        for name, places in self.unknown.items():
            more = f" (and {len(places) - 1} more rows of it)" if len(places) > 1 else ""
            what = f"class {quoted(name, 40)} is none of the federation's: {shortened(self.classes)}{more}"
            self._say("unknown class", places[0], what)
        for name, where in self.spelled.items():
            read = self.classes[self.match(name) or 0]
            self._say("other spelling", where, f"class {quoted(name)} is read as {quoted(read)}", False)
        here = set(self.kept["label"])
        if not count:
            self._say("no rows", str(self.folder), "there is no row")
        elif missing := [name for label, name in enumerate(self.classes) if label not in here]:
            what = f"no row of {len(missing)} of {len(self.classes)} classes: {shortened(missing)}"
            self._say("class without rows", str(self.folder), what, False)
        deep = [n for n, image in enumerate(self.kept["image"]) if isinstance(image, Deep)]
        if deep:
            found, what = scaled([self.kept["image"][n] for n in deep])
            for n, image in zip(deep, found, strict=True):
                self.kept["image"][n] = image
                self._say("deep image", self.kept["where"][n], what, False)

    def rows(self) -> Rows:
        """The rows kept, as tensors."""
        kept, found = self.kept, _nothing(self.side)
        if not kept["label"]:
            return found
        found = Rows(self._numbers(), torch.tensor(kept["label"], dtype=torch.int64))
        if self.modality in ("image", "pair"):
            found = replace(found, images=kept["image"].images())
        if self.modality in ("text", "pair"):
            found = replace(found, texts=tuple(kept["text"]), tags=tuple(kept["tags"]))
        if self.modality == "pair":
            whole = [", ".join([text, *tags]) for text, tags in zip(found.texts, found.tags, strict=True)]
            found = replace(found, groups=grouped(kept["concept"], whole))
        return found

    def _numbers(self) -> torch.Tensor:
        """The ids where every row has one that is a whole number, else the numbers of the rows from 0 on."""
        ids = self.kept["id"]
        if not all(isinstance(id_, int) for id_ in ids):
            ids = list(range(len(ids)))
        return torch.tensor(ids, dtype=torch.int64)


def _nothing(side: int) -> Rows:
    empty = torch.zeros(0, dtype=torch.int64)
    return Rows(empty, empty, torch.zeros(0, 3, side, side, dtype=torch.uint8))


def shortened(names: Sequence[str], most: int = 8) -> str:
    """The names, or the first of many."""
    return listed(tuple(names), most)


# -- classes -----------------------------------------------------------------------------------------------------------


class Matching:
    """Class names to the federation's numbers: the name itself, else the only one that differs in case, spaces,
    hyphens or underscores."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.exact = {name: label for label, name in enumerate(classes)}
        self.loose: dict[str, list[int]] = {}
        for label, name in enumerate(classes):
            self.loose.setdefault(folded(name), []).append(label)

    def __call__(self, name: str) -> int | None:
        """The number of the class, or None."""
        alike = self.loose.get(folded(name), [])
        return self.exact.get(name, alike[0] if len(alike) == 1 else None)
