"""A site's own rows, looked at one by one: what is wrong with each, and those that can be learnt from.

The same examination opens a client's data (data/private.py) and answers `florilegium data check`.
Axes: N rows, S image side.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from florilegium.data.datasets import DataError, Rows, grouped
from florilegium.data.own.photos import BadImage, decoded, encoded
from florilegium.data.own.sources import OwnSettings, open_table, used
from florilegium.data.own.tables import Finding, Table, Unread

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


def examine(own: OwnSettings, classes: Sequence[str], modality: str, side: int) -> Examined:
    """Look at everything under `own.path` as a client of `modality` would use it, images at side x side."""
    try:
        table = open_table(own, modality)
    except Unread as error:
        return Examined("nothing", 0, _nothing(side), list(error.findings))
    look = _Look(table, tuple(classes), modality, side, own.max_pixels)
    dataset, numbers = used(table, modality)
    names, rows = list(dataset.column_names), dataset
    for n, at in enumerate(numbers):
        cells = rows[n]
        look.row(n, table.at(at), {name: cells[name] for name in names})
    look.after(len(rows))
    return Examined(table.layout, len(rows), look.rows(), [*table.findings, *look.findings], look.sizes)


# -- one row -----------------------------------------------------------------------------------------------------------


class _Look:
    """Goes through the rows and keeps what can be used of them."""

    def __init__(self, table: Table, classes: tuple[str, ...], modality: str, side: int, most: int) -> None:
        self.table, self.classes, self.modality, self.side, self.most = table, classes, modality, side, most
        self.match = Matching(classes)
        self.findings: list[Finding] = []
        self.bad = 0  # findings that refuse
        self.sizes: list[tuple[int, int]] = []
        self.kept: dict[str, list[Any]] = {name: [] for name in ("id", "label", "image", "text", "tags", "concept")}
        self.seen: dict[bytes, tuple[str, int]] = {}  # content -> where it was first, and its label
        self.ids: set[int] = set()
        self.unknown: dict[str, list[str]] = {}
        self.spelled: dict[str, str] = {}

    def row(self, n: int, where: str, cells: dict[str, Any]) -> None:
        """Keep row n, or say why not."""
        before = self._refused()
        label, content = self._label(where, cells["label"]), hashlib.sha256()
        text = self._text(where, cells["text"], content) if "text" in cells else ""
        image = self._image(where, cells["image"], content) if "image" in cells else None
        id_ = self._id(where, cells.get("id"), n)
        tags = tuple(str(tag) for tag in cells["tags"]) if isinstance(cells.get("tags"), list) else ()
        if "image" not in cells or image is not None:
            content.update(repr(tags).encode())
            self._duplicate(where, content.digest(), label)
        if self._refused() > before:
            return
        for name, value in (
            ("id", id_),
            ("label", label),
            ("image", image),
            ("text", text),
            ("tags", tags),
            ("concept", cells.get("concept", id_)),
        ):
            self.kept[name].append(value)

    def _refused(self) -> int:
        return self.bad + sum(map(len, self.unknown.values()))

    def _say(self, kind: str, where: str, what: str, refused: bool = True) -> None:
        self.findings.append(Finding(kind, where, what, refused))
        self.bad += refused

    def _label(self, where: str, value: Any) -> int:
        """The federation's number of a class, or -1."""
        if isinstance(value, int) and not isinstance(value, bool) and self.table.names is not None:
            if not 0 <= value < len(self.table.names):
                self._say("no label", where, f"label {value} of {len(self.table.names)} classes")
                return -1
            value = self.table.names[value]
        if value is None or not str(value).strip():
            self._say("no label", where, "has no label")
            return -1
        name = str(value)
        if (label := self.match(name)) is None:
            self.unknown.setdefault(name, []).append(where)
            return -1
        if name != self.classes[label]:
            self.spelled.setdefault(name, where)
        return label

    def _text(self, where: str, value: Any, content: Any) -> str:
        text = "" if value is None else str(value).strip()
        if not text:
            self._say("empty text", where, "the text is empty")
        if LOST in text:
            self._say("wrong encoding", where, f"the text has {LOST!r}, left by an earlier conversion", False)
        content.update(text.encode("utf-8", "replace") + b"\0")
        return text

    def _image(self, where: str, cell: Any, content: Any) -> np.ndarray | None:
        try:
            data = encoded(cell, self.table.folder)
            content.update(data)
            image, size = decoded(data, self.side, self.most)
        except BadImage as error:
            self._say(error.kind, where, str(error))
            return None
        self.sizes.append(size)
        if min(size) < self.side:
            self._say(
                "small image", where, f"is {size[0]}x{size[1]} pixels and enlarged to {self.side}x{self.side}", False
            )
        return image

    def _id(self, where: str, value: Any, n: int) -> int:
        id_ = int(value) if isinstance(value, int) else n
        if id_ in self.ids:
            self._say("same id", where, f"id {id_} stands on an earlier row as well")
        self.ids.add(id_)
        return id_

    def _duplicate(self, where: str, content: bytes, label: int) -> None:
        first, same = self.seen.setdefault(content, (where, label))
        if first != where:
            alike = same == label or -1 in (same, label)
            other = "" if alike else f", but of class {self.classes[label]!r} instead of {self.classes[same]!r}"
            self._say("duplicate" if alike else "two classes", where, f"is the same as {first}{other}", False)

    # -- all rows ------------------------------------------------------------------------------------------------------

    def after(self, count: int) -> None:
        """What only all rows together tell."""
        for name, places in self.unknown.items():
            more = f" (and {len(places) - 1} more rows of it)" if len(places) > 1 else ""
            self._say(
                "unknown class",
                places[0],
                f"class {name!r} is none of the federation's: {shortened(self.classes)}{more}",
            )
        for name, where in self.spelled.items():
            read = self.classes[self.match(name) or 0]
            self._say("other spelling", where, f"class {name!r} is read as {read!r}", False)
        here = set(self.kept["label"])
        if not count:
            self._say("no rows", str(self.table.folder), "there is no row")
        elif missing := [name for label, name in enumerate(self.classes) if label not in here]:
            self._say(
                "class without rows",
                str(self.table.folder),
                f"no row of {len(missing)} of {len(self.classes)} classes: {shortened(missing)}",
                False,
            )

    def rows(self) -> Rows:
        """The rows kept, as tensors."""
        kept, found = self.kept, _nothing(self.side)
        if not kept["id"]:
            return found
        found = Rows(torch.tensor(kept["id"], dtype=torch.int64), torch.tensor(kept["label"], dtype=torch.int64))
        if self.modality in ("image", "pair"):
            found = replace(found, images=torch.from_numpy(np.stack(kept["image"])).permute(0, 3, 1, 2).contiguous())
        if self.modality in ("text", "pair"):
            found = replace(found, texts=tuple(kept["text"]), tags=tuple(kept["tags"]))
        if self.modality == "pair":
            whole = [", ".join([text, *tags]) for text, tags in zip(found.texts, found.tags, strict=True)]
            found = replace(found, groups=grouped(kept["concept"], whole))
        return found


def _nothing(side: int) -> Rows:
    empty = torch.zeros(0, dtype=torch.int64)
    return Rows(empty, empty, torch.zeros(0, 3, side, side, dtype=torch.uint8))


def shortened(names: Sequence[str], most: int = 8) -> str:
    """The names, or the first of many."""
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


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


def folded(name: str) -> str:
    """`Air-Craft ` and `aircraft` are one name."""
    return re.sub(r"[\s_\-]+", "", name).casefold()
