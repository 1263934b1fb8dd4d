"""Tables of a site's own data in one file: CSV, JSON or Parquet, read so that every fault names its row.

Nothing guesses at types here: a text stays the text it is.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: its kind, where (file and row), what; `refused` data are not opened."""

    kind: str
    where: str
    what: str
    refused: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Table:
    """Rows as they were found: columns image, text, label (and BESIDE), as far as they are there.

    `names` are the classes of labels that are numbers; `at(n)` says where row n is; image paths start at `folder`.
    """

    dataset: Dataset
    layout: str
    folder: Path
    at: Callable[[int], str]
    names: tuple[str, ...] | None = None
    findings: tuple[Finding, ...] = ()


class Unread(ValueError):
    """The data cannot be read as a table at all; `findings` say why."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__(str(findings[0]))
        self.findings = findings


def table_of(file: Path, suffix: str) -> Table:
    """A table in one file."""
    import pyarrow.parquet
    from datasets import Dataset
    from datasets.table import InMemoryTable

    if suffix not in SUFFIXES:
        raise Unread(Finding("malformed file", str(file), f"is no {', '.join(SUFFIXES)} file and no directory"))
    if suffix == ".parquet":
        with reading(file):
            found = Dataset(InMemoryTable(pyarrow.parquet.read_table(file)))
        return Table(undecoded(found), "Parquet table", file.parent, numbered(file))
    rows, bad = (_json if suffix.startswith(".json") else _csv)(file, _text(file))
    if bad:
        raise Unread(*bad)
    if not rows:
        raise Unread(Finding("no rows", str(file), "there is no row"))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    found = Dataset.from_dict({name: [_plain(row.get(name)) for row in rows] for name in columns})
    return Table(found, f"{suffix[1:].upper()} table", file.parent, numbered(file))


def _text(file: Path) -> str:
    """The file as UTF-8. Unread names every line that is not."""
    data = file.read_bytes()
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise Unread(Finding("wrong encoding", f"{file}, line 1", "is UTF-16; save the file as UTF-8"))
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


def _csv(file: Path, text: str) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Rows by column name; the separator is a comma, in .tsv a tab, or a semicolon where the header has no comma."""
    header = text.partition("\n")[0]
    separator = "\t" if file.suffix == ".tsv" else ";" if ";" in header and "," not in header else ","
    rows: list[dict[str, Any]] = []
    bad: list[Finding] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        columns = [name.strip() for name in next(reader, [])]
        for cells in (cells for cells in reader if cells):
            rows.append(dict(zip(columns, cells, strict=False)))
            if len(cells) != len(columns):
                bad.append(
                    Finding(
                        "malformed row",
                        f"{file}, row {len(rows)}",
                        f"has {len(cells)} columns, the header {len(columns)}",
                    )
                )
    except csv.Error as error:
        bad.append(Finding("malformed row", f"{file}, row {len(rows) + 1}", str(error)))
    return rows, bad


def _json(file: Path, text: str) -> tuple[list[dict[str, Any]], list[Finding]]:
    """One object a line, or one list of objects."""
    rows: list[dict[str, Any]] = []
    bad: list[Finding] = []
    pieces: Sequence[Any] = [line for line in text.splitlines() if line.strip()]
    try:
        if text.lstrip().startswith("["):
            pieces = json.loads(text)
    except ValueError as error:
        return [], [Finding("malformed row", str(file), f"is no JSON: {error}")]
    for n, piece in enumerate(pieces, 1):
        try:
            row = json.loads(piece) if isinstance(piece, str) else piece
        except ValueError as error:
            row = str(error)
        rows.append(row if isinstance(row, dict) else {})
        if not isinstance(row, dict):
            bad.append(Finding("malformed row", f"{file}, row {n}", f"is no JSON object: {str(row)[:80]}"))
    return rows, bad


def _plain(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def undecoded(dataset: Dataset) -> Dataset:
    """The same with encoded images instead of decoded ones."""
    from datasets import Image

    for name, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
    return dataset


def numbered(file: Path) -> Callable[[int], str]:
    """Rows count from 1, without a header."""
    return lambda n: f"{file}, row {n + 1}"


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """Whatever a reader raises becomes one finding."""
    try:
        yield
    except Exception as error:  # Arrow and `datasets` have dozens of errors for a torn file
        line = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        raise Unread(Finding("malformed file", str(place), f"cannot be read: {line[:160]}")) from error
