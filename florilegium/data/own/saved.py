"""Directories that the `datasets` library wrote (save_to_disk)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from florilegium.data.own.findings import Finding, Unread, reading
from florilegium.data.own.folders import chosen_split
from florilegium.data.own.names import split_of
from florilegium.data.own.tables import BATCH, Row, Table

if TYPE_CHECKING:
    from datasets import Dataset


def saved(place: Path, wanted: str) -> Table:
    """A Dataset, or of a DatasetDict the wanted split. Unread."""
    from datasets import DatasetDict, load_from_disk

    with reading(place):
        found = load_from_disk(str(place))
    if not isinstance(found, DatasetDict):
        return _table(found, place)
    named = {split_of(name) or name: name for name in found}
    if len(named) < len(found):
        raise Unread(Finding("split", str(place), f"has several splits of one kind: {', '.join(found)}"))
    said: list[Finding] = []
    if len(found) == 1:
        split = next(iter(named))
    else:
        split, said = chosen_split(place, set(named), wanted)
    table = _table(found[named[split]], place)
    table.findings += said
    table.split = split
    return table


def _table(dataset: Dataset, place: Path) -> Table:
    from datasets import ClassLabel

    features = dataset.features

    def read(columns: Sequence[str]) -> Iterator[Row]:
        number = 0
        with reading(place):
            dataset.data.table.validate(full=True)  # a torn Arrow file would end the process otherwise
            if dataset._indices is not None:
                dataset._indices.table.validate(full=True)
            chosen = dataset.with_format("arrow").select_columns(list(columns))  # images stay encoded
            for first in range(0, len(chosen), BATCH):
                for cells in chosen[first : first + BATCH].to_pylist():
                    number += 1
                    yield f"{place}, row {number}", cells

    def names(column: str) -> tuple[str, ...] | None:
        feature = features.get(column)
        return tuple(map(str, feature.names)) if isinstance(feature, ClassLabel) and feature.names else None

    return Table("saved data set", place, tuple(dataset.column_names), read, names)
