"""Own data of a run on this machine: read once, split by a seed, and kept in the run directory.

`conf.data.path` is everybody's data, `conf.clients.mix[k].data` those of client k alone. Writes `own-data/` (train,
validation and test .parquet beside classes.json) and data.json: classes, prompts, and the split of each row by a hash
of its content. A resumed run uses them again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florilegium.config.settings import Settings
from florilegium.data.datasets import SPLITS, Classes, DataError, Rows, class_list
from florilegium.data.own.cells import label_of
from florilegium.data.own.examination import examine
from florilegium.data.own.findings import BadCell, Unread, listed
from florilegium.data.own.names import folded
from florilegium.data.own.sources import OwnSettings, modality_of, open_table
from florilegium.data.own.splits import drawn, groups_of, hashes_of
from florilegium.data.stored_images import StoredImages
from florilegium.data.stored_images import write as write_images
from florilegium.protocol import pixels
from florilegium.runs import files

TAKEN = ("text_column", "label_column", "image_column", "max_pixels", "workers")
Splits = dict[str, list[tuple[int, int]]]  # (number of the piece, row) of each row of a split
EVERYBODY = -1  # owner of the rows that are dealt to the clients without data of their own


@dataclass
class Piece:
    """Rows of one owner and one given split (None: it is drawn); `hashes` name each by its content."""

    owner: int
    split: str | None
    rows: Rows
    hashes: list[str]
    groups: list[int]  # equal for rows that show or say the same

    def drawn(self, shares: dict[str, float], seed: str, rest: str, only: set[str] | None = None) -> dict[str, str]:
        """A name for each of these rows (`only`: of some), as splits.drawn gives it."""
        return drawn(self.hashes, self.groups, self.rows.labels.tolist(), shares, seed, rest, only)


def sources_of(conf: Settings) -> dict[int, OwnSettings]:
    """Where own data lie: {client or EVERYBODY: settings}. {} for a run on other data. DataError."""
    if not conf.data.own:
        return {}
    given = {name: getattr(conf.data, name) for name in TAKEN}
    paths = {k: member.data for k, member in enumerate(conf.clients.mix)}
    paths[EVERYBODY] = conf.data.path
    try:
        return {who: OwnSettings(str(Path(path).expanduser()), **given) for who, path in sorted(paths.items()) if path}
    except ValueError as error:
        raise DataError(f"data.{error}") from error


def prepare(conf: Settings) -> dict[str, Any] | None:
    """Read the own data of a run, unless that is done; what data.json holds, None for other data. DataError."""
    if not conf.data.own:
        return None
    place, facts = Path(str(conf.data.prepared)), Path(str(conf.out), "data.json")
    if facts.is_file() and (place / "test.parquet").is_file():
        return dict(json.loads(facts.read_text()))
    if not (sources := sources_of(conf)):
        if conf.data.classes:  # the rows are at the sites
            return None
        raise DataError(
            "data.path is not set (where all rows are at sites of a deployment: data=sites, with data.classes)"
        )
    classes = _classes(conf, sources)
    kind, pieces = _read(conf, sources, classes)
    before = json.loads(facts.read_text()) if facts.is_file() else None
    splits, public = _assigned(conf, pieces, before, with_public=kind != "text")
    if missing := [split for split in SPLITS if split not in splits]:
        raise DataError(f"data.path: too few rows to split: no row is left for {missing[0]} (data.split)")
    _write(place, pieces, splits, public, classes, kind)
    return _record(facts, pieces, splits, public, classes, kind)


# -- classes -----------------------------------------------------------------------------------------------------------


def _classes(conf: Settings, sources: dict[int, OwnSettings]) -> Classes:
    """The classes of the settings, else those that the data name, by the alphabet and by numbers. DataError."""
    template = conf.data.prompt
    if given := conf.data.classes:
        return class_list([str(name) for name in given], template)
    names = sorted(derived_classes(list(sources.values())), key=in_order)
    if len(names) < 2:
        raise DataError(f"data.path: {listed(names) or 'no class'} is the only class; a run needs two or more")
    return class_list(names, template)


def in_order(name: str) -> list[Any]:
    """A key that sorts `class 2` before `class 10`, and whatever the case."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", name)]


def derived_classes(sources: Sequence[OwnSettings]) -> list[str]:
    """The class names of data, each by its first spelling, with blanks for underscores. DataError."""
    found: dict[str, str] = {}
    for own in sources:
        for split in SPLITS:
            try:
                opened = open_table(own, modality_of(own), (), split)
                for _, cells in opened.rows():
                    value = label_of(cells["label"])
                    number = isinstance(value, int) and opened.names is not None and 0 <= value < len(opened.names)
                    name = str(opened.names[value] if number else value).replace("_", " ").strip()  # type: ignore[index]
                    found.setdefault(folded(name), name)
            except BadCell:
                continue  # the examination names the row
            except Unread as error:
                if split == "train":
                    raise DataError(str(error.findings[0])) from error
    return list(found.values())


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(conf: Settings, sources: dict[int, OwnSettings], classes: Classes) -> tuple[str, list[Piece]]:
    """(modality, all rows). DataError, naming file and row of the first that is refused."""
    kinds = {who: modality_of(own) for who, own in sources.items()}
    kind = "image" if "image" in kinds.values() else kinds[next(iter(kinds))]
    if "text" in kinds.values() and set(kinds.values()) != {"text"}:
        raise DataError("data.path: some of the data have images and some have none; all need the same")
    pieces = []
    for who, own in sources.items():
        for split in SPLITS:
            found = examine(own, tuple(classes), kind, int(conf.data.image_size), split, derived=True)
            if split != "train" and found.split != split:
                continue
            rows = found.whole()
            pieces.append(Piece(who, found.split, rows, hashes_of(rows, classes), groups_of(rows)))
            if found.split is None:
                break
    return kind, pieces


# -- splits ------------------------------------------------------------------------------------------------------------


def _assigned(
    conf: Settings, pieces: list[Piece], before: dict[str, Any] | None, with_public: bool
) -> tuple[Splits, set[str]]:
    """{split: [(piece, row)]} and the hashes of public rows: as in data.json where there is one, else by the seed."""
    if before is not None:
        known = {row: split for split, rows in before["splits"].items() for row in rows}
        if strange := [row for piece in pieces for row in piece.hashes if row not in known]:
            raise DataError(f"data.path has {len(strange)} rows that it did not have when this run started")
        return _listed(pieces, known), set(before["public"])
    chosen: dict[str, str] = {}
    shares = conf.data.split
    for owner in sorted({piece.owner for piece in pieces}):
        mine = [piece for piece in pieces if piece.owner == owner]
        there = {piece.split for piece in mine}
        wanted = {name: float(getattr(shares, name)) for name in ("test", "validation") if name not in there}
        for piece in mine:
            if piece.split in (None, "train"):
                chosen |= piece.drawn(wanted, f"{shares.seed} split", "train")
            else:
                chosen |= dict.fromkeys(piece.hashes, str(piece.split))
    public: set[str] = set()
    share = conf.data.public.share if with_public else 0.0
    for piece in pieces:
        for split in SPLITS if piece.owner == EVERYBODY and share else ():  # each split has its public part
            of_split = {row for row in piece.hashes if chosen[row] == split}
            parts = piece.drawn({"public": share}, "public", "private", of_split)
            public |= {row for row, part in parts.items() if part == "public"}
    return _listed(pieces, chosen), public


def _listed(pieces: list[Piece], split: dict[str, str]) -> Splits:
    found: Splits = {}
    for p, piece in enumerate(pieces):
        for n, row in enumerate(piece.hashes):
            found.setdefault(split[row], []).append((p, n))
    return found


# -- writing -----------------------------------------------------------------------------------------------------------


def _write(
    place: Path,
    pieces: list[Piece],
    splits: Splits,
    public: set[str],
    classes: Classes,
    kind: str,
) -> None:
    """The rows in the layout of the embedded data, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".own-data-", dir=place.parent))
    number = 0
    for split in SPLITS:
        rows = []
        for p, n in splits[split]:
            rows.append(_row(pieces[p], n, number, p, classes) | {"part": _part(pieces[p].hashes[n], public)})
            rows[-1]["modality"] = "text" if kind == "text" else "image"
            number += 1
        _store(scratch / f"{split}.pixels", pieces, splits[split], rows)
        image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        schema = pa.Table.from_pylist([{k: v for k, v in row.items() if k != "image"} for row in rows])
        column = pa.array([row["image"] for row in rows], image)
        pq.write_table(schema.append_column("image", column), scratch / f"{split}.parquet")
    names = [{"name": name, "article": article} for name, article in zip(classes.names, classes.articles, strict=True)]
    (scratch / "classes.json").write_text(json.dumps(names), encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    os.replace(scratch, place)


def _store(file: Path, pieces: list[Piece], chosen: list[tuple[int, int]], rows: list[dict[str, Any]]) -> None:
    """Images of a large split go into a file beside the table, decoded; its cells name it and their row."""
    large = [isinstance(piece.rows.images, StoredImages) for piece in pieces]
    if not any(large[p] for p, _ in chosen):
        return
    write_images(file, (pieces[p].rows.images[n] for p, n in chosen))
    for n, row in enumerate(rows):
        row["image"] = {"bytes": None, "path": f"{file.name}:{n}"}


def _part(row: str, public: set[str]) -> str:
    return "public" if row in public else "private"


def _row(piece: Piece, n: int, number: int, where: int, classes: Classes) -> dict[str, Any]:
    rows, label = piece.rows, int(piece.rows.labels[n])
    image = None
    if len(rows.images) and not isinstance(rows.images, StoredImages):
        image = {"bytes": pixels.encode(rows.images[n : n + 1])[0], "path": None}
    text = rows.texts[n] if rows.texts else classes[label]
    group = where * 1_000_000_000 + piece.groups[n]
    return {"id": number, "text": text, "label": label, "concept": group, "owner": piece.owner, "image": image}


def _record(
    file: Path,
    pieces: list[Piece],
    splits: Splits,
    public: set[str],
    classes: Classes,
    kind: str,
) -> dict[str, Any]:
    """data.json of the run."""
    facts = {
        "kind": kind,
        "classes": list(classes.names),
        "prompts": [classes.prompt(label) for label in range(len(classes))],
        "rows": {split: len(splits[split]) for split in SPLITS},
        "classes_of_train": _counts(pieces, splits["train"], classes),
        "splits": {split: [pieces[p].hashes[n] for p, n in splits[split]] for split in SPLITS},
        "public": sorted(public),
    }
    files.write_json(file, facts)
    return facts


def _counts(pieces: list[Piece], rows: list[tuple[int, int]], classes: Classes) -> dict[str, int]:
    counts = Counter(int(pieces[p].rows.labels[n]) for p, n in rows)
    return {name: counts[label] for label, name in enumerate(classes.names)}


def summary(facts: dict[str, Any]) -> str:
    """One line for the console."""
    rows = ", ".join(f"{split} {count}" for split, count in facts["rows"].items())
    return (
        f"own data: {sum(facts['rows'].values())} rows of {len(facts['classes'])} classes ({rows};"
        f" {len(facts['public'])} of them public); data.json in the run directory has the split"
    )
