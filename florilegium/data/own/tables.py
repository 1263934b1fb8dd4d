"""Tables of own data in one file or in the parts of one: CSV, JSON or Parquet, read so that every fault names its row.

Nothing guesses at types here: a text stays the text it is. Columns that nobody asks for are not looked at. Rows count
from 1, without a header and without blank lines.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from florilegium.data.own.findings import Finding, Unread, cut, quoted, reading, shown
from florilegium.data.own.names import TABLES

Row = tuple[str, dict[str, Any]]  # where it stands, and its cells by column
SEPARATORS = (",", ";", "\t", "|")
BATCH = 64  # rows of Parquet in memory at a time: one stored value may stand for gigabytes of equal rows


def no_names(column: str) -> tuple[str, ...] | None:
    """The numbers of this column have no names."""
    return None


@dataclass
class Table:
    """Rows as they were found.

    `read(columns)` gives (where, cells) of each row. `names(column)` are the classes of labels that are numbers; image
    paths start at `folder`. `split` is the split these rows are of, where the layout has any; `embedded` says that
    columns mean what they do in the embedded data. Reading may add to `findings`.
    """

    layout: str
    folder: Path
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[Row]]
    names: Callable[[str], tuple[str, ...] | None] = no_names
    findings: list[Finding] = field(default_factory=list)
    split: str | None = None
    embedded: bool = False
    by_folder: bool = False  # class and split of a row are those of its folder


def table_of(file: Path) -> Table:
    """A table in one file. Unread."""
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        return _parquet(file)
    if suffix not in TABLES:
        raise Unread(Finding("malformed file", str(file), f"is no {', '.join(TABLES)} file and no directory"))
    text = _text(file)
    reader = _json if "json" in suffix or suffix == ".ndjson" else _csv
    columns, rows, bad = reader(file, text)
    if not rows:
        raise Unread(*(bad or [Finding("no rows", str(file), "there is no row")]))

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        _once(file, columns, wanted)
        for number, cells in rows:
            yield f"{file}, row {number}", {name: cells.get(name) for name in wanted}

    seen = tuple(dict.fromkeys(columns))
    return Table(f"{suffix[1:].upper()} table", file.parent, seen, read, findings=bad)


def _once(file: Path, columns: Sequence[str], wanted: Sequence[str]) -> None:
    """Unread unless each wanted column is there once."""
    if twice := [name for name in wanted if list(columns).count(name) > 1]:
        raise Unread(Finding("malformed file", str(file), f"has {list(columns).count(twice[0])} columns {twice[0]!r}"))


def joined(parts: Sequence[Table], layout: str, folder: Path) -> Table:
    """Several files with the same columns as one table, in their order. Unread when a column is missing in one."""
    first = parts[0]

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        for part in parts:
            yield from part.read(wanted)

    common = tuple(name for name in first.columns if all(name in part.columns for part in parts))
    findings = [finding for part in parts for finding in part.findings]
    return Table(layout, folder, common, read, first.names, findings)


# -- text files --------------------------------------------------------------------------------------------------------


def _text(file: Path) -> str:
    """The file as UTF-8. Unread names every line that is not."""
    with reading(file):
        data = file.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise Unread(Finding("wrong encoding", f"{file}, line 1", "is UTF-16; save the file as UTF-8"))
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        what = "has a NUL character, as UTF-16 has; save the file as UTF-8"
        raise Unread(Finding("wrong encoding", f"{file}, line {line}", what))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        bad = [
            Finding(
                "wrong encoding",
                f"{file}, line {n}",
                f"is not UTF-8 (byte {line[error.start]:#04x}); save the file as UTF-8",
            )
            for n, line in enumerate(data.split(b"\n"), 1)
            if (error := _broken(line))
        ]
        raise Unread(*bad) from None


def _broken(line: bytes) -> UnicodeDecodeError | None:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return error
    return None


Parsed = tuple[list[str], list[tuple[int, dict[str, Any]]], list[Finding]]  # columns, numbered rows, what is wrong


def _csv(file: Path, text: str) -> Parsed:
    """The separator is the one of `,;|` and tab that cuts the header into the most columns, or what `sep=` says."""
    if sys.maxsize > csv.field_size_limit():
        csv.field_size_limit(sys.maxsize)  # the default is 131,072 characters; a report may be longer
    stated = re.match(r"\s*\"?sep=(.)\"?\r?\n", text)
    if stated:
        text = text[stated.end() :]
    separator = stated[1] if stated else _separator(text, "\t" if file.suffix.lower() == ".tsv" else ",")
    columns: list[str] = []
    rows: list[tuple[int, dict[str, Any]]] = []
    bad: list[Finding] = []
    number = 0
    reader = _cells(text, separator)
    try:
        for cells in reader:
            if not columns:
                columns = [name.strip() for name in cells]
                continue
            number += 1
            row = dict(zip(columns, cells, strict=False))
            if not any(cells):
                bad.append(
                    Finding("empty row", f"{file}, row {number}", "has empty cells alone; it is left out", False)
                )
            elif len(cells) == len(columns) or not any(cells[len(columns) :]) and len(cells) > len(columns):
                rows.append((number, row))
            else:
                what = f"has {len(cells)} columns, the header {len(columns)}"
                bad.append(Finding("malformed row", f"{file}, row {number}", what))
    except csv.Error:
        what = "its quotation marks do not close, or text follows behind one"
        bad.append(Finding("malformed row", f"{file}, row {number + 1}", what))
    return columns, rows, bad


def _cells(text: str, separator: str) -> Iterator[list[str]]:
    blank = f'{separator} "' in text  # a quotation mark behind a blank opens a cell as well
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=blank)
    return (cells for cells in reader if any(cell.strip() for cell in cells) or len(cells) > 1)


def _separator(text: str, usual: str) -> str:
    def width(separator: str) -> int:
        try:
            return len(next(_cells(text, separator), []))
        except csv.Error:
            return 0

    return max((usual, *SEPARATORS), key=width)


def _json(file: Path, text: str) -> Parsed:
    """One object a line, or one list of objects. Lines end at the newline alone: a text may hold other line ends."""
    pieces: Sequence[Any]
    if text.lstrip().startswith("["):
        try:
            pieces = _loaded(text)
        except (ValueError, RecursionError) as error:
            raise Unread(Finding("malformed file", str(file), f"is no JSON: {_said(error)}")) from error
    elif (whole := _whole(text)) is not None:
        pieces = [whole]
        if whole and all(isinstance(value, (list, dict)) for value in whole.values()) and "\n" in text.strip():
            what = "is one JSON object; rows are a list of objects, or one object a line"
            raise Unread(Finding("malformed file", str(file), what))
    else:
        pieces = [line for line in text.split("\n") if line.strip()]
    columns: dict[str, None] = {}
    rows: list[tuple[int, dict[str, Any]]] = []
    bad: list[Finding] = []
    for number, piece in enumerate(pieces, 1):
        try:
            row = _loaded(piece) if isinstance(piece, str) else piece
            if not isinstance(row, dict):
                raise ValueError(f"a {type(row).__name__}")
        except (ValueError, RecursionError) as error:
            what = f"is no JSON object: {cut(shown(piece), 60)} ({_said(error)})"
            bad.append(Finding("malformed row", f"{file}, row {number}", what))
            continue
        rows.append((number, row))
        columns |= dict.fromkeys(row)
    return list(columns), rows, bad


def _whole(text: str) -> dict | None:
    """The file as one object over several lines, if it is one."""
    if "\n" not in text.strip():
        return None
    try:
        found = _loaded(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _loaded(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{quoted(next(name for name in names if names.count(name) > 1))} stands in it twice")
    return found


def _said(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "too many brackets within brackets"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, character {error.pos + 1}"
    return cut(shown(error), 80)


# -- Parquet -----------------------------------------------------------------------------------------------------------


def _parquet(file: Path) -> Table:
    import pyarrow.parquet

    with reading(file):
        schema = pyarrow.parquet.ParquetFile(file).schema_arrow
        count = pyarrow.parquet.ParquetFile(file).metadata.num_rows

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        _once(file, schema.names, wanted)
        number = 0
        with reading(file), pyarrow.parquet.ParquetFile(file) as stored:
            for batch in stored.iter_batches(batch_size=BATCH, columns=list(wanted), use_threads=False):
                batch.validate(full=True)
                for cells in batch.to_pylist():
                    number += 1
                    yield f"{file}, row {number}", {name: cells.get(name) for name in wanted}
        if number != count:
            raise Unread(Finding("malformed file", str(file), f"has {number} rows, but says that it has {count}"))

    if not count:
        raise Unread(Finding("no rows", str(file), "there is no row"))
    return Table("Parquet table", file.parent, tuple(schema.names), read, lambda column: class_names(schema, column))


def class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel column, as the `datasets` library writes them into the schema; None for another."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None
