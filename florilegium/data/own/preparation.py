"""Own data of a run on this machine: read once, split by a seed, and kept in the run directory.

`conf.data.path` is everybody's data, `conf.clients.mix[k].data` those of client k alone. Writes `own-data/` (train,
validation and test .parquet beside classes.json) and data.json: classes, prompts, the settings they were read by, and
the split of each row by a hash of its content. A resumed run uses them again; a run that recorded no round, and begins
anew, reads its data anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from florilegium.config.settings import Settings
from florilegium.data.datasets import SPLITS, Classes, DataError, Rows, class_list
from florilegium.data.own.cells import label_of
from florilegium.data.own.examination import examine_splits
from florilegium.data.own.findings import BadCell, Unread, listed
from florilegium.data.own.names import folded
from florilegium.data.own.sources import OwnSettings, modality_of, open_table
from florilegium.data.own.splits import drawn, groups_of, hashes_of
from florilegium.data.stored_images import StoredImages
from florilegium.data.stored_images import write as write_images
from florilegium.protocol import pixels
from florilegium.runs import files, lock

TAKEN = ("text_column", "label_column", "image_column", "max_pixels", "workers")
Splits = dict[str, list[tuple[int, int]]]  # (number of the piece, row) of each row of a split
SCRATCH = ".own-data-"  # how a folder begins in which rows are written before it gets its name
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


def prepare(conf: Settings, afresh: bool = False) -> dict[str, Any] | None:
    """Read the own data of a run, unless that is done; what data.json holds, None for other data. DataError.

    `afresh`: whatever is there was left by an earlier run, whose files may have changed since. Data of a run that has
    recorded a round are never read anew: it trained on them.
    """
    if not conf.data.own:
        return None
    place, facts = Path(str(conf.data.prepared)), Path(str(conf.out), "data.json")
    before = json.loads(facts.read_text()) if facts.is_file() else None
    rounds = facts.with_name("rounds.jsonl")
    if not (rounds.is_file() and rounds.stat().st_size) and (afresh or not _suits(before, conf)):
        before = None
    if before is not None and (place / "test.parquet").is_file():
        return dict(before)
    place.parent.mkdir(parents=True, exist_ok=True)
    with lock.during(facts.with_name(".lock")) as ours:
        if not ours:
            raise DataError(f"run directory {conf.out}: another process writes it; wait for its end, or stop its run")
        _forget(place, facts, keep=before is not None)
        return _prepared(conf, place, facts, before)


def _suits(before: dict[str, Any] | None, conf: Settings) -> bool:
    """Whether rows on disk are those of these settings."""
    if before is None or before.get("settings") != _settings(conf):
        return False
    return conf.data.classes is None or list(conf.data.classes) == before["classes"]


def _settings(conf: Settings) -> dict[str, Any]:
    """What decides which rows there are, besides the classes: these are in data.json by name."""
    given = conf.plain()["data"]
    keys = ("path", "split", "prompt", "image_size", *TAKEN[:-1])
    members = [[member.modality, member.data] for member in conf.clients.mix]
    return {key: given[key] for key in keys} | {"public": conf.data.public.share, "clients": members}


def _forget(place: Path, facts: Path, keep: bool) -> None:
    """Remove what a killed preparation left, and unless `keep` also what an earlier run has prepared."""
    for scratch in place.parent.glob(f"{SCRATCH}*"):
        shutil.rmtree(scratch, ignore_errors=True)
    if not keep:
        facts.unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)


def _prepared(conf: Settings, place: Path, facts: Path, before: dict[str, Any] | None) -> dict[str, Any] | None:
    """Read, split and write all rows: the new data.json. None where all rows are at sites."""
    sources, classes = sources_of(conf), _classes(conf)
    if not sources:  # the rows are at the sites
        return None
    kind, pieces = _read(conf, sources, classes)
    splits, public = _assigned(conf, pieces, before, with_public=kind != "text")
    if missing := [split for split in SPLITS if split not in splits]:
        raise DataError(f"data.path: too few rows to split: no row is left for {missing[0]} (data.split)")
    with _whole(place) as scratch:
        _write_splits(scratch, pieces, splits, public, classes, kind)
    return _record(facts, pieces, splits, public, classes, kind, _settings(conf))


# -- classes -----------------------------------------------------------------------------------------------------------


def class_names(conf: Settings) -> list[str]:
    """The classes of a run on own data, in the order of their numbers; nothing is prepared. DataError."""
    return list(_classes(conf).names)


def _classes(conf: Settings) -> Classes:
    """The classes of the settings, else those that the data name, by the alphabet and by numbers. DataError."""
    template, sources = conf.data.prompt, sources_of(conf)
    if given := conf.data.classes:
        return class_list([str(name) for name in given], template)
    if not sources:
        raise DataError(
            "data.path is not set (where all rows are at sites of a deployment: data=sites, with data.classes)"
        )
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
        for found in examine_splits(own, tuple(classes), kind, int(conf.data.image_size), derived=True):
            rows = found.whole()
            pieces.append(Piece(who, found.split, rows, hashes_of(rows, classes), groups_of(rows)))
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


@contextlib.contextmanager
def _whole(place: Path) -> Iterator[Path]:
    """A directory that takes the name `place` when the block ends well, and is gone otherwise."""
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=place.parent))
    try:
        yield scratch
        shutil.rmtree(place, ignore_errors=True)
        os.replace(scratch, place)
    except BaseException:  # nobody looks for private rows there
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _write_splits(
    scratch: Path,
    pieces: list[Piece],
    splits: Splits,
    public: set[str],
    classes: Classes,
    kind: str,
) -> None:
    """The rows in the layout of the embedded data."""
    import pyarrow as pa
    import pyarrow.parquet as pq

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
    settings: dict[str, Any],
) -> dict[str, Any]:
    """data.json of the run."""
    facts = {
        "kind": kind,
        "settings": settings,
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
